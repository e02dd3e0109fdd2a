import base64
import re
import subprocess
import sys

import pytest
from PIL import Image
from sweeps import GIOU, RATE, add_run

from bbu_train.compare.__main__ import main
from bbu_train.compare.scales import scale


@pytest.fixture(scope="session")
def program(made):
    """The made sweep, compared by the program; its folder and what it printed."""
    ran = subprocess.run(
        [sys.executable, "-m", "bbu_train.compare", "sweep=made", f"outputs={made}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return made / "made/compare", ran.stdout


def test_the_terminal_shows_ranking_effects_command_and_what_is_apart(program):
    said = program[1]
    assert re.search(r"\n +1 +0\.\d+ ± 0\.\d+ +3 +5 +1e-5 ", said)
    assert "eval/ap50, at each run's end (step 120); more is better" in said
    assert f"\n{RATE}  runs" in said
    assert said.index(RATE) < said.index(f"{GIOU}  runs")  # what matters most comes first
    assert "Not compared" in said
    assert "python -m bbu_train -m " in said


def test_two_swept_keys_give_four_pictures_and_one_page(program):
    folder = program[0]
    assert {path.name for path in folder.iterdir()} == {
        *("index.html", "parallel.png", "curves.png", "effects.png", "heat.png")
    }
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 500
            assert len(image.convert("RGB").getcolors(2**24)) > 20


def test_the_page_holds_all_it_shows_and_asks_no_network(program):
    text = (program[0] / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    assert sorted(map(base64.b64decode, sources)) == sorted(path.read_bytes() for path in program[0].glob("*.png"))
    assert not re.search(r"https?:|<link|src=\"(?!data:)", text)
    assert text.count("<th>") > 10


def test_what_a_user_wrote_cannot_become_html(outputs, capsys):
    for name in ("<script>alert(1)</script>", "b"):
        add_run(outputs, [f"data.cache='{name}'"], 0.4)
    assert main(["sweep=made", f"outputs={outputs}"]) == 0
    page = (outputs / "made/compare/index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_an_earlier_comparisons_pictures_do_not_stay(outputs, capsys):
    add_run(outputs, [], 0.4)
    (outputs / "made/compare").mkdir()
    (outputs / "made/compare/heat.png").write_bytes(b"old")
    assert main(["sweep=made", f"outputs={outputs}", "metric=loss/total"]) == 0
    assert sorted(path.name for path in (outputs / "made/compare").iterdir()) == ["curves.png", "index.html"]
    assert "less is better" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["swep=a"], "swep is no key. Did you mean sweep?"),
        (["sweep=a", "topp=3", "b"], "2 problems"),
        (["sweep=a", "mode=up"], "mode is max or min"),
        (["sweep=a", "top=0"], "top is a whole number"),
        (["sweep=[1"], "cannot be read"),
        ([], "sweep=<name>"),
    ],
)
def test_a_mistake_in_the_command_is_said_in_one_message(words, says, outputs, capsys):
    assert main([*words, f"outputs={outputs}"]) == 2
    assert says in capsys.readouterr().err


def test_help_and_reading_a_sweep_import_no_torch():
    check = (
        "import sys; from bbu_train.compare.__main__ import main; from bbu_train.compare import plots, panels; "
        "main(['--help']); sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'mlflow')))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False, capture_output=True).returncode == 0


@pytest.mark.filterwarnings("error:constrained_layout")
def test_long_and_chinese_values_leave_room_for_the_picture(outputs, capsys):
    for value in ("a very long value that says much more than anybody needs", "机柜/符合要求", "x"):
        add_run(outputs, [f"conversation.note={value}"], 0.4)
    assert main(["sweep=made", f"outputs={outputs}"]) == 0


def test_an_axis_is_logarithmic_over_decades_only():
    assert scale([1e-6, 1e-5, 1e-4]).kind == "log"
    assert scale([1, 2, 5]).kind == "linear"
    assert scale([0, 1e-6, 1e-5]).kind == "even"
    assert scale(["packed", "standard"]).kind == "even"


@pytest.mark.parametrize("values", [[1], ["a"], [0, 1], list(range(50)), [1e-6 * 1.3**i for i in range(40)]])
def test_labels_of_an_axis_keep_their_distance_and_name_both_ends(values):
    ticks = scale(values).ticks
    places = [place for place, _ in ticks]
    assert len(ticks) <= 10
    assert all(after - before > 0.1 for before, after in zip(places, places[1:], strict=False))
    assert {min(scale(values).places.values()), max(scale(values).places.values())} <= set(places)
