"""From the command of a sweep to its cells."""

from pathlib import Path

import pytest

from bbu_train.errors import InputError
from bbu_train.runs import identity
from launchers.cells import Cell, compose
from launchers.ledger import Ledger
from launchers.preflight.estimate import from_finished_runs, group_without_estimate

CONF = Path(__file__).resolve().parents[2] / "conf"


def cells(*overrides: str) -> list[Cell]:
    return compose(["-m", "hydra/launcher=local", *overrides], CONF)


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BBU_OUTPUTS", raising=False)


def test_a_sweep_has_a_cell_for_every_combination_in_hydras_order():
    sweep = cells("head=none,detr", "seed=1,2", "steps=5")
    assert [cell.overrides[1:] for cell in sweep] == [
        (f"head={head}", f"seed={seed}", "steps=5") for head in ("none", "detr") for seed in (1, 2)
    ]
    assert [(cell.cfg.head.get("d_model"), cell.cfg.seed, cell.cfg.steps) for cell in sweep] == [
        *((None, 1, 5), (None, 2, 5)),
        *((128, 1, 5), (128, 2, 5)),
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer.groups.llm.lr=1e-5,2e-5",),
        ("collator=standard,packed", "data.teachers.num_teachers=[1,2],1"),
        ("+optimizer.groups.lora={pattern: lora, submodule: lora, lr: 1e-4}", "optimizer.groups.llm.pattern=lm,'a, b'"),
        ("seed=range(1,3)", "experiment=smoke"),
    ],
)
def test_a_cell_is_the_run_that_its_overrides_compose_alone(config, overrides):
    for cell in cells("sweep=test", "head=detr", "data=synthetic", "loss=joint", *overrides):
        alone = config(*(text for text in cell.overrides if not text.startswith("hydra/")))
        assert cell.cfg.run == identity.run_identity(cell.cfg) == identity.run_identity(alone)


def test_the_folder_of_a_cell_is_absolute(tmp_path):
    (cell,) = cells("seed=3")
    assert cell.cfg.folder == str(tmp_path / "outputs/default" / cell.cfg.run)


def test_a_sweep_in_the_config_is_swept_unless_the_command_sets_its_keys(tmp_path):
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/seeds.yaml").write_text(
        "# @package _global_\nsteps: 3\nhydra: {sweeper: {params: {seed: '1,2', steps: '4,5'}}}\n"
    )
    options = ["-m", "--config-dir", str(tmp_path / "own")]
    sweep = compose([*options, "hydra/launcher=local", "experiment=seeds", "steps=7"], CONF)
    assert [(cell.cfg.seed, cell.cfg.steps) for cell in sweep] == [(1, 7), (2, 7)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("seed=1,1.0,2",), "seed=1.0: the same run"),
        (("sweep=a,b", "seed=1"), "one command starts one sweep"),
        (("data=jsonl,voc", "data.root=???"), "data.root must be given"),
        (("data=jsonl,voc", "data.root=/nowhere"), "/nowhere: no such folder"),
        (("data.root=/nowhere",), "draws its own pictures"),
        (("seed=interval(1,2)",), "an interval has no values"),
        (("resume=outputs/x",), "continues one run"),
    ],
)
def test_a_sweep_that_cannot_run_as_a_whole_is_refused(overrides, message):
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        cells(*overrides)


def test_a_sweep_over_roots_has_a_cell_for_the_data_in_each_and_refuses_the_same_data_twice(tmp_path):
    for name, line in (("one", '{"images": ["a.png"]}'), ("same", '{"images": ["a.png"]}'), ("other", "{}")):
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            (tmp_path / name / f"{split}.jsonl").write_text(line)
    sweep = cells("data=jsonl", "data.root=one,other", "seed=1,2")
    assert len({cell.cfg.run for cell in sweep}) == 4
    assert [cell.cfg.about.title for cell in sweep] == [
        f"root={root} seed={seed}" for root in ("one", "other") for seed in (1, 2)
    ]
    with pytest.raises(InputError, match=r"data\.root=same.*: the same run"):
        cells("data=jsonl", "data.root=one,other,same")


def test_every_cell_is_a_run_of_its_own_and_cells_that_differ_in_a_seed_have_one_shape(tmp_path):
    sweep = cells("seed=range(0,6)", "head=detr,none")
    assert group_without_estimate(sweep, from_finished_runs(sweep)) == [list(range(0, 12, 2)), list(range(1, 12, 2))]
    entries = Ledger(tmp_path / "outputs/default/ledger").add(sweep)
    assert len({entry.run for entry in entries}) == 12
