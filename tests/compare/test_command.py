import shlex

import pytest
import sweeps
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from sweeps import GIOU, RATE, add_run

from bbu_train.compare.comparison import compare
from bbu_train.runs import identity


def compare_runs(outputs):
    return compare(outputs, sweeps.NAME, "eval/ap50", "max", "last")


def overrides_of(command):
    program, overrides = shlex.split(command)[:3], shlex.split(command)[3:]
    assert program == ["python", "-m", "bbu_train"]
    return overrides


def identity_of(overrides):
    with initialize_config_dir(str(sweeps.CONF), version_base="1.3"):
        return identity.run_identity(compose("config", overrides))


def test_a_cell_of_several_seeds_is_a_sweep_over_them(grid_comparison):
    overrides = overrides_of(grid_comparison.command)
    assert overrides[0] == "-m"
    assert set(overrides[1:]) == {f"{RATE}=1e-05", f"{GIOU}=5", "steps=120", "seed=17,18,19"}


SMOKE = {"head": "detr", "data": "synthetic", "loss": "joint"}  # what experiment=smoke chooses
TYPED = [
    "collator=standard",
    "optimizer.betas=[0.9,0.99]",
    "model.learning_rates.llm=null",
    'data.root="a b,c"',
    "seed=5",
]


@pytest.mark.parametrize(
    "recorded",
    [
        [],
        ["x", "-m", "collator=packed,standard", "seed=5,6", "num_workers=3", "sweep=made", "hydra/launcher=slurm"],
        ["x", "experiment=smoke", "num_workers=2"],
        ["x", "experiment=gone", "no=1", "[="],
    ],
)
def test_the_command_composes_the_run_however_it_was_started(outputs, recorded):
    folder = add_run(outputs, TYPED, 0.4)
    default = {"head": "dino", "data": "synthetic_parts", "loss": "varifocal"}
    sweeps.record(folder, recorded, {"collator": "standard", "model": "tiny", "tracker": "jsonl", **default})
    overrides = overrides_of(compare_runs(outputs).command)
    assert identity_of(overrides) == folder.name
    neutral = ("num_workers", "sweep", "hydra", "tracker", "run")
    assert not any(override.startswith(neutral) for override in overrides)


def test_a_typed_experiment_stays_one_word(outputs):
    chosen = [f"{group}={name}" for group, name in SMOKE.items()]
    folder = add_run(outputs, [*chosen, "steps=6", "schedule.num_warmup_steps=2"], 0.4)
    sweeps.record(folder, ["x", "experiment=smoke"], {"model": "tiny", **SMOKE})
    assert overrides_of(compare_runs(outputs).command) == ["experiment=smoke", "seed=17"]


def test_parameter_groups_that_the_run_added_and_deleted_are_added_and_deleted(outputs):
    entries = [f"optimizer.groups.query.{key}" for key in ("pattern=query", "submodule=head", "lr=1e-3")]
    folder = add_run(outputs, entries, 0.4)
    cfg = OmegaConf.load(folder / "config.yaml")
    del cfg.optimizer.groups["merger"]
    OmegaConf.save(cfg, folder / "config.yaml")
    overrides = overrides_of(compare_runs(outputs).command)
    assert sum(override.startswith("+optimizer.groups.query.") for override in overrides) == 3
    assert "~optimizer.groups.merger" in overrides
    assert identity_of(overrides) == identity.run_identity(cfg)


def test_keys_that_this_version_no_longer_has_are_named(outputs):
    add_run(outputs, ["loss.weights.forgotten=2"], 0.4)
    (note,) = compare_runs(outputs).command_notes
    assert note.endswith("no longer has: loss.weights.forgotten")
