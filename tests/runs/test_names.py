"""Names of runs and sweeps are what was typed, in every program, and their folders have names that every disk takes."""

from unicodedata import normalize

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from whole_runs import CONF

from bbu_train.cli import arguments
from bbu_train.errors import InputError
from bbu_train.runs import folder as run_folder
from bbu_train.runs import resume
from bbu_train.runs.names import check_name, folder_name, hydra_text, quote_typed

NAMES = (
    "0105",
    "2026_01",
    "no",
    "on",
    "1e3",
    "1.10",
    "12:30",
    "a #1",
    "true",
    "0x10",
    "~",
    "it's",
    "a\\b",
    "=x=",
    "数据 1",
    "5%",
    "😀 𠮷野",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "key", ["sweep", "run", "outputs", "data.root", "data.source.train", "cluster.account", "+experiment"]
)
def test_training_reads_a_name_or_a_path_as_it_was_typed(name, key):
    override = OverridesParser.create().parse_override(quote_typed(f"{key}={name}"))
    assert override.value() == name
    assert isinstance(override.value(), str)


@pytest.mark.parametrize("name", [*NAMES, "a,b", "${x}", "*.jpg", '"', "\udcff", "\x85\x9f"])
@pytest.mark.parametrize("key", ["sweep", "run", "split", "images", "out", "metric", "outputs"])
def test_the_other_programs_read_it_alike(name, key, capsys):
    read = []
    assert arguments.run_program(lambda cfg: read.append(cfg[key]), [f"{key}={name}"], "", {key: None}) == 0
    assert read == [name]


@pytest.mark.parametrize("value", ['"0105"', "'0105'"])
def test_a_name_may_stand_in_quotes_in_every_program(value):
    read = []
    arguments.run_program(lambda cfg: read.append(cfg.sweep), [f"sweep={value}"], "", {"sweep": None})
    assert [*read, OverridesParser.create().parse_override(quote_typed(f"sweep={value}")).value()] == ["0105", "0105"]


def test_values_of_a_sweep_are_read_one_by_one_and_hydras_own_syntax_stays():
    override = OverridesParser.create().parse_override(quote_typed("data.root=2026_01,a #1,null"))
    assert [getattr(value, "text", value) for value in override.sweep_iterator()] == ["2026_01", "a #1", None]
    for word in (
        "run=null",
        "outputs=${oc.env:X}",
        "experiment=[a,b]",
        "data.root=choice(a,b)",
        "run=",
        "seed=1e3",
        "-m",
    ):
        assert quote_typed(word) == word


@pytest.mark.parametrize("text", [*NAMES, "null", "a,b", 'a "b"', "[1"])
def test_a_text_is_written_so_that_hydra_reads_it(text):
    assert OverridesParser.create().parse_override(f"key={hydra_text(text)}").value() == text


@pytest.mark.parametrize("name", [*NAMES, "长" * 200])
def test_a_name_is_still_itself_in_a_stored_config(name, config, tmp_path):
    cfg = config("tracker=mlflow").copy()
    cfg.sweep, cfg.run, cfg.outputs = name.replace("\\", "_"), name.replace("\\", "_"), str(tmp_path)
    cfg = resume.resolve_run(cfg, "default", [], in_sweep=False)
    path = tmp_path / cfg.sweep / cfg.run
    path.mkdir(parents=True)
    (path / run_folder.CONFIG).write_text(run_folder.as_yaml(cfg), encoding="utf-8")
    loaded = run_folder.load(path)
    whole = name.replace("\\", "_")
    assert (loaded.about.sweep, loaded.about.run, loaded.tracker.mlflow.experiment) == (whole, whole, whole)
    assert loaded.sweep == loaded.run == folder_name(whole)


def test_folders_have_short_names_in_nfc_that_differ_where_names_differ():
    long = [letter * 90 + end for letter in "aé数😀" for end in ("", "1", "2")]
    names = [*NAMES, *long]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert all(len(folder.encode()) <= 100 for folder in folders)
    assert [folder_name(folder) for folder in folders] == folders
    assert [folder_name(normalize("NFD", name)) for name in names] == folders
    assert [folder for folder, name in zip(folders, names, strict=True) if len(name.encode()) <= 100] == [
        normalize("NFC", name) for name in names if len(name.encode()) <= 100
    ]


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", ".x", " x", "", "a\nb", "a\0b", "\udcff", 5, 1.5, True])
def test_what_cannot_be_the_name_of_a_folder_is_refused(name):
    with pytest.raises(InputError, match="sweep="):
        check_name("sweep", name)


@pytest.mark.parametrize("value", ["Price \\${x}", "Price ${x}"])
def test_a_value_that_a_component_would_take_for_a_reference_is_refused_by_its_key(value):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f'conversation.question="{value}"'])
    OmegaConf.set_struct(cfg, True)
    with pytest.raises(InputError, match=r"conversation\.question"):
        resume.resolve_run(cfg, "default", [], in_sweep=False)


@pytest.mark.parametrize("name", ["n" * 300, "\u4e2d" * 120, "cafe\u0301", "r"])
def test_a_run_is_found_by_its_whole_name(tmp_path, name):
    folder = tmp_path / "s" / folder_name(name)
    folder.mkdir(parents=True)
    (folder / run_folder.CONFIG).write_text("{sweep: s, run: r, outputs: o, folder: f}")
    assert run_folder.load(tmp_path / "s" / name).run == folder.name
