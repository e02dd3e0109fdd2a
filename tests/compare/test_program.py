import base64
import contextlib
import io
import re
import subprocess
import sys

import pytest
import sweeps
from PIL import Image
from sweeps import GIOU, RATE, add_run

from bbu_train.compare.__main__ import main
from bbu_train.compare.axis_scales import setting_scale


@pytest.fixture(scope="session")
def program(grid_outputs):
    """The report's folder and the printed text of the program on the grid."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([f"sweep={sweeps.NAME}", f"outputs={grid_outputs}"]) == 0
    return grid_outputs / sweeps.NAME / "compare", printed.getvalue()


def test_the_terminal_shows_ranking_effects_command_and_excluded_runs(program):
    printed = program[1]
    assert re.search(r"\n +1 +0\.\d+ ± 0\.\d+ +3 +5 +1e-5 ", printed)
    assert "eval/ap50, at each run's end (step 120); more is better" in printed
    assert f"\n{RATE}  runs" in printed
    assert printed.index(RATE) < printed.index(f"{GIOU}  runs")  # the key with the largest effect comes first
    assert "Not compared" in printed
    assert "python -m bbu_train -m " in printed


def test_two_swept_keys_give_four_plots_and_one_page(program):
    folder = program[0]
    plots = {"parallel.png", "curves.png", "effects.png", "heat.png"}
    assert {path.name for path in folder.iterdir()} == {"index.html", *plots}
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 500
            assert len(image.convert("RGB").getcolors(2**24)) > 20


def test_the_page_contains_its_plots_and_needs_no_network(program):
    text = (program[0] / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    assert sorted(map(base64.b64decode, sources)) == sorted(path.read_bytes() for path in program[0].glob("*.png"))
    assert not re.search(r"https?:|<link|src=\"(?!data:)", text)
    assert "default-src 'none'" in text
    assert text.count("<th>") > 10


def test_the_page_escapes_names_and_values_of_a_user(outputs, capsys):
    sweep = "<script>alert(1)\"'"
    for value in ("<script>alert(2)</script>\"'", "b"):
        add_run(outputs, [f"data.cache={value}"], 0.4, sweep=sweep)
    assert main([f"sweep={sweep}", f"outputs={outputs}"]) == 0
    page = (outputs / sweep / "compare/index.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1  # the one that sorts tables
    assert "<h1>&lt;script&gt;alert(1)&#34;&#39;: eval/ap50</h1>" in page
    assert '<td data-sort="&lt;script&gt;alert(2)&lt;">&lt;script&gt;alert(2)&lt;/script&gt;&#34;&#39;</td>' in page


def test_plots_of_an_earlier_comparison_are_removed(outputs, capsys):
    add_run(outputs, [], 0.4)
    folder = outputs / sweeps.NAME / "compare"
    folder.mkdir()
    (folder / "heat.png").write_bytes(b"old")
    assert main([f"sweep={sweeps.NAME}", f"outputs={outputs}", "metric=loss/total"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["curves.png", "index.html"]
    assert "less is better" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["swep=a"], "swep is not a key. Did you mean sweep?"),
        (["sweep=a", "topp=3", "b"], "2 problems"),
        (["sweep=a", "mode=up"], "mode is max or min"),
        (["sweep=a", "top=0"], "top is a whole number"),
        (["sweep=a", "mode=[1"], "cannot be read"),
        ([], "sweep=<name>"),
    ],
)
def test_mistakes_in_the_command_are_reported_in_one_message(words, message, outputs, capsys):
    assert main([*words, f"outputs={outputs}"]) == 2
    assert message in capsys.readouterr().err


def test_help_and_the_plots_need_no_torch():
    check = (
        "import runpy, sys; from bbu_train.compare import plots, effect_plots; sys.argv[1:] = ['--help']\n"
        "try: runpy.run_module('bbu_train.compare', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert end.code == 0\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'mlflow')))"
    )
    result = subprocess.run([sys.executable, "-c", check], check=False, capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.startswith("python -m bbu_train.compare sweep=<name>")


@pytest.mark.filterwarnings("error:constrained_layout")
def test_long_and_chinese_values_leave_room_for_the_plots(outputs, capsys):
    for value in ("a very long value that says much more than anybody needs", "机柜/符合要求", "x"):
        add_run(outputs, [f"conversation.note={value}"], 0.4)
    assert main([f"sweep={sweeps.NAME}", f"outputs={outputs}"]) == 0


def test_an_axis_is_logarithmic_over_decades_only():
    assert setting_scale([1e-6, 1e-5, 1e-4]).kind == "log"
    assert setting_scale([1, 2, 5]).kind == "linear"
    assert setting_scale([0, 1e-6, 1e-5]).kind == "even"
    assert setting_scale(["packed", "standard"]).kind == "even"


@pytest.mark.parametrize("values", [[1], ["a"], [0, 1], list(range(50)), [1e-6 * 1.3**i for i in range(40)]])
def test_tick_labels_keep_their_distance_and_include_both_ends(values):
    scale = setting_scale(values)
    positions = [position for position, _ in scale.ticks]
    assert len(positions) <= 10
    assert all(after - before > 0.1 for before, after in zip(positions, positions[1:], strict=False))
    assert {min(scale.positions.values()), max(scale.positions.values())} <= set(positions)
