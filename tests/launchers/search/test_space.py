"""The space of a search, from Hydra's sweep syntax."""

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import NopPruner

from bbu_train.cli import overrides
from bbu_train.errors import InputError
from bbu_train.runs.config_keys import parse
from launchers.search.command import create_study, read_search_command
from launchers.search.space import to_distribution

CONF = Path(__file__).resolve().parents[3] / "conf"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(1,5)", FloatDistribution(1, 5)),
        ("tag(log,interval(1e-7,1e-4))", FloatDistribution(1e-7, 1e-4, log=True)),
        ("int(interval(1,5))", IntDistribution(1, 5)),
        ("tag(log,int(interval(8,512)))", IntDistribution(8, 512, log=True)),
        ("range(1,5)", IntDistribution(1, 4)),
        ("range(0,10,4)", IntDistribution(0, 8, step=4)),
        ("range(5,1,-2)", IntDistribution(3, 5, step=2)),
        ("range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("range(0.1,0.6,0.1)", FloatDistribution(0.1, 0.5, step=0.1)),
        ("a,b", CategoricalDistribution(["a", "b"])),
        ("1,2.5,null", CategoricalDistribution(["1", "2.5", "null"])),
        ("[1,2],'a, b'", CategoricalDistribution(["[1,2]", "'a, b'"])),
    ],
)
def test_hydras_sweep_syntax_becomes_optunas_distributions(text, expected):
    assert to_distribution(*parse([f"key={text}"])) == expected


def test_a_glob_of_a_config_group_means_all_its_choices():
    (override,) = parse(["head=glob(*)"], overrides.config_loader(CONF, None))
    heads = sorted(path.stem for path in (CONF / "head").glob("*.yaml"))
    assert to_distribution(override) == CategoricalDistribution(heads)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("interval(5,1)", "low.*5.*high.*1"),
        ("tag(log,interval(0,1))", "low > 0. must hold for .log=True"),
        ("tag(lin,interval(0,1))", "a search knows no tag lin. There is log"),
        ("tag(log,choice(1,2))", "listed values have no scale"),
        ("tag(log,range(1,2,0.1))", "range of fractions has even steps"),
        ("range(5,1)", "this range is empty"),
        ("shuffle(1,2,3)", "Leave out shuffle"),
        ("1,2,1", "1 is there twice"),
    ],
)
def test_a_space_that_cannot_be_drawn_from_is_refused_with_its_override(text, message):
    with pytest.raises(InputError, match=f"^key=.*{message}"):
        to_distribution(*parse([f"key={text}"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search=tpe", "seed=1,2"], "A search starts its trials by a launcher: add -m hydra/launcher=local"),
        (["-m", "search=tpe", "seed=1,2"], "A search starts its trials by a launcher"),
        (["-m", "hydra/launcher=local", "search=random,tpe", "seed=1,2"], "search does not change a run's identity"),
        (["-m", "hydra/launcher=local", "search.num_trials=3", "seed=1,2"], "search.num_trials is not a key"),
        (
            ["-m", "hydra/launcher=local", "search=tpe", "engine.precision=bf16,int(1)", "profile=interval(0,1)"],
            "profile",
        ),
    ],
)
def test_a_command_that_mixes_up_search_and_sweep_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        overrides.check(arguments, CONF)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.num_trials=0", "search.num_trials=0: num_trials is a whole number, 1 or more"),
        ("search.mode=up", "search.mode=up: mode is max or min"),
        ("search.poll_seconds=0", "poll_seconds is a number above 0"),
        ("eval_every=null", "search.metric=eval/ap50 is measured in evaluations, but eval_every=null turns them off"),
    ],
)
def test_invalid_settings_of_a_search_are_refused(override, message):
    with pytest.raises(InputError, match=message):
        read_search_command(["-m", "hydra/launcher=local", "search=tpe", "seed=1,2", override], CONF)


def test_a_search_with_nothing_to_vary_is_refused():
    command = read_search_command(["-m", "hydra/launcher=local", "search=tpe", "seed=1"], CONF)
    with pytest.raises(InputError, match="A search needs keys to vary"):
        create_study(command)


def test_an_experiment_can_define_a_space_and_a_search(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/own.yaml").write_text(
        "# @package _global_\ndefaults: [{override /search: tpe}]\nsteps: 3\nsearch: {metric: loss/total}\n"
        "hydra: {sweeper: {params: {loss.weights.giou: 'interval(1,5)'}}}\n"
    )
    arguments = ["-m", "--config-dir", str(tmp_path), "hydra/launcher=local", "experiment=own"]
    overrides.check(arguments, CONF)
    command = read_search_command(arguments, CONF)
    assert command.space == {"loss.weights.giou": FloatDistribution(1, 5)}
    assert command.settings.mode == "min"
    cell = command.cell({"loss.weights.giou": 2.5})
    assert (cell.cfg.steps, cell.cfg.loss.weights.giou, cell.cfg.get("search")) == (3, 2.5, None)
    assert not any(group.startswith("search") for group in cell.choices)


def test_a_pruner_that_needs_the_number_of_steps_gets_that_of_the_epochs():
    words = ["-m", "hydra/launcher=local", "search=tpe", "search/pruner=hyperband", "seed=1,2", "epochs=2"]
    command = read_search_command(words, CONF)
    assert isinstance(create_study(command).optuna_study.pruner, NopPruner)
    command.config.steps = 300
    assert create_study(command).optuna_study.pruner._max_resource == 300
