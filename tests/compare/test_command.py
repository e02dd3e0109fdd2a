import shlex

import pytest
import sweeps
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from sweeps import GIOU, RATE, add_run

from bbu_train.compare.comparison import compare
from bbu_train.runs import identity as runs


def best(outputs):
    return compare(outputs, "made", "eval/ap50", "max", "last")


def words(command):
    start, words = shlex.split(command)[:3], shlex.split(command)[3:]
    assert start == ["python", "-m", "bbu_train"]
    return words


def identity(words):
    with initialize_config_dir(str(sweeps.CONF), version_base="1.3"):
        return runs.run_identity(compose("config", words))


def test_a_cell_of_several_seeds_is_a_sweep_over_them(found):
    given = words(found.command)
    assert given[0] == "-m"
    assert set(given[1:]) == {f"{RATE}=1e-05", f"{GIOU}=5", "steps=120", "seed=17,18,19"}


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
    sweeps.record(folder, recorded, {"collator": "standard", "model": "tiny", "tracker": "jsonl"})
    given = words(best(outputs).command)
    assert identity(given) == folder.name
    assert not any(word.startswith(("num_workers", "sweep", "hydra", "tracker", "run")) for word in given)


def test_a_typed_experiment_stays_one_word(outputs):
    folder = add_run(outputs, ["steps=6", "schedule.num_warmup_steps=2"], 0.4)
    sweeps.record(folder, ["x", "experiment=smoke"], {"model": "tiny"})
    assert words(best(outputs).command) == ["experiment=smoke", "seed=17"]


def test_a_group_of_rates_that_was_added_is_added_again(outputs):
    added = [f"optimizer.groups.query.{key}" for key in ("pattern=query", "submodule=head", "lr=1e-3")]
    folder = add_run(outputs, added, 0.4)
    given = words(best(outputs).command)
    assert sum(word.startswith("+optimizer.groups.query.") for word in given) == 3
    assert identity(given) == folder.name


def test_a_group_of_rates_that_was_taken_away_is_taken_away_again(outputs):
    folder = add_run(outputs, ["loss.weights.giou=3"], 0.4)
    cfg = OmegaConf.load(folder / "config.yaml")
    del cfg.optimizer.groups["merger"]
    OmegaConf.save(cfg, folder / "config.yaml")
    given = words(best(outputs).command)
    assert "~optimizer.groups.merger" in given
    assert identity(given) == runs.run_identity(cfg)


def test_keys_that_this_version_no_longer_has_are_said(outputs):
    add_run(outputs, ["loss.weights.forgotten=2"], 0.4)
    assert best(outputs).gone == ["loss.weights.forgotten"]
