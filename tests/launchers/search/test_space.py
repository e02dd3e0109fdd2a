"""The space of a search, from Hydra's words."""

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from bbu_train.cli import overrides
from bbu_train.errors import InputError
from bbu_train.runs.config_keys import parse
from launchers.search import command as search_command
from launchers.search import space

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
def test_words_of_hydra_become_distributions_of_optuna(text, expected):
    assert space.distribution(*parse([f"key={text}"])) == expected


def test_a_glob_of_a_config_group_stands_for_its_choices():
    (override,) = parse(["head=glob(*)"], overrides.config_loader(CONF, None))
    heads = sorted(path.stem for path in (CONF / "head").glob("*.yaml"))
    assert space.distribution(override) == CategoricalDistribution(heads)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("interval(5,1)", "low.*5.*high.*1"),
        ("tag(log,interval(0,1))", "low > 0. must hold for .log=True"),
        ("tag(lin,interval(0,1))", "tag lin says nothing to a search. There is log"),
        ("tag(log,choice(1,2))", "listed values have no scale"),
        ("tag(log,range(1,2,0.1))", "range of fractions has even steps"),
        ("range(5,1)", "this range is empty"),
        ("shuffle(1,2,3)", "Leave out shuffle"),
        ("1,2,1", "1 is there twice"),
    ],
)
def test_a_space_that_cannot_be_drawn_from_is_refused_with_its_words(text, says):
    with pytest.raises(InputError, match=f"^key=.*{says}"):
        space.distribution(*parse([f"key={text}"]))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["search=tpe", "seed=1,2"], "A search starts its trials by a launcher: add -m hydra/launcher=local"),
        (["-m", "search=tpe", "seed=1,2"], "A search starts its trials by a launcher"),
        (["-m", "hydra/launcher=local", "search=random,tpe", "seed=1,2"], "search is no part of what a run is"),
        (["-m", "hydra/launcher=local", "search.num_trials=3", "seed=1,2"], "search.num_trials is no key"),
        (
            ["-m", "hydra/launcher=local", "search=tpe", "engine.precision=bf16,int(1)", "profile=interval(0,1)"],
            "profile",
        ),
    ],
)
def test_a_command_that_is_no_search_is_refused(given, says):
    with pytest.raises(InputError, match=says):
        overrides.check(given, CONF)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("search.num_trials=0", "search.num_trials=0: num_trials is a whole number, 1 or more"),
        ("search.mode=up", "search.mode=up: mode is max or min"),
        ("search.poll_seconds=0", "poll_seconds is a number above 0"),
        ("eval_every=null", "search.metric=eval/ap50 is of evaluations, and with eval_every=null there are none"),
    ],
)
def test_settings_that_make_no_search_are_refused(given, says):
    with pytest.raises(InputError, match=says):
        search_command.read(["-m", "hydra/launcher=local", "search=tpe", "seed=1,2", given], CONF)


def test_a_search_without_anything_to_vary_is_refused():
    command = search_command.read(["-m", "hydra/launcher=local", "search=tpe", "seed=1"], CONF)
    with pytest.raises(InputError, match="A search needs keys to vary"):
        search_command.made_study(command)


def test_an_experiment_may_say_what_is_searched_and_how(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/own.yaml").write_text(
        "# @package _global_\ndefaults: [{override /search: tpe}]\nsteps: 3\nsearch: {metric: loss/total}\n"
        "hydra: {sweeper: {params: {loss.weights.giou: 'interval(1,5)'}}}\n"
    )
    given = ["-m", "--config-dir", str(tmp_path), "hydra/launcher=local", "experiment=own"]
    overrides.check(given, CONF)
    command = search_command.read(given, CONF)
    assert command.space == {"loss.weights.giou": FloatDistribution(1, 5)}
    assert command.settings.mode == "min"
    cell = command.cell({"loss.weights.giou": 2.5})
    assert (cell.cfg.steps, cell.cfg.loss.weights.giou, cell.cfg.get("search")) == (3, 2.5, None)
    assert not any(group.startswith("search") for group in cell.choices)
