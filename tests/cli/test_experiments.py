"""An experiment's values for a choice fall with that choice, and only those; every choice composes with it."""

import copy
import logging
from pathlib import Path

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import MISSING, OmegaConf, _utils

from bbu_train.cli import main, overrides
from bbu_train.cli.experiments import ExperimentLoader
from bbu_train.errors import InputError
from bbu_train.runs.settings import LEFT_OUT
from bbu_train.runtime.nested import leaves
from bbu_train.training import config_checks
from launchers import cells

CONF = Path(__file__).parents[2] / "conf"
GROUPS = [
    folder.name for folder in sorted(CONF.iterdir()) if folder.is_dir() and folder.name not in ("experiment", "hydra")
]
EXPERIMENTS = [file.stem for file in sorted((CONF / "experiment").glob("*.yaml"))]


@pytest.fixture(autouse=True, scope="module")
def compose_once():
    """Compose equal words once in this module, and parse files in C: some thousand files would be read."""
    plain, compose, known = _utils.get_yaml_loader(), ExperimentLoader.load_configuration, {}

    class Loader(yaml.CSafeLoader):
        yaml_implicit_resolvers = plain.yaml_implicit_resolvers
        yaml_constructors = plain.yaml_constructors

    def load_configuration(self, config_name, overrides, *arguments, **options):
        key = (str(self.config_search_path), config_name, *overrides, *map(str, arguments), str(options))
        if key not in known:
            known[key] = compose(self, config_name, overrides, *arguments, **options)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_utils, "get_yaml_loader", lambda: Loader)
        patch.setattr(ExperimentLoader, "load_configuration", load_configuration)
        yield


def composed(*words: str, own: Path | None = None):
    loader = overrides.config_loader(CONF, None if own is None else str(own))
    return loader.load_configuration("config", list(words), RunMode.RUN)


def left_out(cfg) -> str:
    return " ".join(OmegaConf.select(cfg, LEFT_OUT).values())


def choices(group: str) -> list[str]:
    return [file.stem for file in sorted((CONF / group).glob("*.yaml"))]


def commands(experiment: str, groups: list[str]) -> list[list[str]]:
    """Return commands that take, between them, every choice of `groups`."""
    options = {group: choices(group) for group in groups}
    return [
        [f"experiment={experiment}", *(f"{group}={names[row % len(names)]}" for group, names in options.items())]
        for row in range(max(map(len, options.values()), default=0))
    ]


def test_bccd_small_composes_with_every_choice_of_every_group():
    for words in commands("bccd_small", GROUPS):
        overrides.check(["-m", "hydra/launcher=local", *words], CONF)  # refuses keys that a choice lacks
        cfg = composed("hydra/launcher=local", *words)
        if (
            MISSING not in OmegaConf.to_container(cfg.model, resolve=False).values()
        ):  # the user gives the shape of model=qwen25vl
            config_checks.check(cfg)


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name != "bccd_small"])
def test_every_experiment_composes_with_every_choice_of_the_groups_whose_values_it_sets(experiment):
    plain = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    for words in commands(experiment, [str(key) for key in plain if key in GROUPS]):
        overrides.check(words, CONF)


def test_only_the_values_of_a_replaced_choice_fall():
    plain, changed = composed("experiment=bccd_small"), composed("experiment=bccd_small", "augmentation=flips")
    flips = composed("augmentation=flips").augmentation
    assert left_out(plain) == ""
    assert left_out(changed) == "augmentation.top_bottom=0.5 (for augmentation=crops)"
    assert changed.augmentation == flips != plain.augmentation
    for key in [key for key in plain if key not in ("augmentation", "about", "hydra")]:
        assert plain._get_node(key) == changed._get_node(key)


def test_a_choice_that_is_the_experiments_own_changes_nothing_and_values_of_the_command_stay():
    own = composed("experiment=bccd_small", "augmentation=crops", "optimizer=muon", "schedule=warmup_cosine")
    assert own.optimizer == composed("experiment=bccd_small").optimizer
    assert (left_out(own), own.schedule.num_warmup_steps) == ("", 200)
    given = composed("experiment=bccd_small", "augmentation=flips", "augmentation.top_bottom=0.25")
    assert given.augmentation.top_bottom == 0.25


@pytest.mark.parametrize(
    ("experiment", "rates"), [("bccd_small", (2e-3, 2e-3, 3e-3)), ("synthetic_small", (2e-3, 2e-3, 3e-3))]
)
def test_rates_for_muon_fall_with_muon(experiment, rates):
    def taken(*words: str) -> list[float]:
        groups = composed(f"experiment={experiment}", *words).optimizer.groups
        return [groups[name].lr for name in ("merger", "vision", "llm", "adapter", "detection")]

    usual = composed("model=small").model.learning_rates
    others = [usual.adapter, usual.detection]
    assert taken() == [*rates, *others]
    assert taken("optimizer=adamw") == [usual.merger, usual.vision, usual.llm, *others]


def test_each_cell_of_a_sweep_has_the_values_of_its_choice(tmp_path):
    words = ["-m", "experiment=synthetic_small", "augmentation=crops,none", "schedule=warmup_cosine,constant"]
    swept = cells.compose([*words, f"outputs={tmp_path}"], CONF)
    assert [cell.cfg.augmentation.get("min_visible") for cell in swept] == [0.7, 0.7, None, None]
    assert [cell.cfg.schedule.num_warmup_steps for cell in swept] == [130, 10, 130, 10]
    assert len({cell.cfg.run for cell in swept}) == 4
    notes = "\n".join(cells.notes(swept))
    assert "augmentation.min_visible=0.7 (for augmentation=crops) (2 runs: augmentation=none schedule=" in notes


def test_an_experiment_of_the_users_own_may_begin_with_another_one(tmp_path):
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(
        "# @package _global_\ndefaults:\n  - bccd_small\n  - _self_\n  - override /augmentation: flips\n"
        "augmentation: {left_right: 0.25}\noptimizer: {weight_decay: 0.3}\nsteps: 7\n"
    )
    mine = composed("experiment=mine", own=tmp_path)
    assert left_out(mine) == "augmentation.top_bottom=0.5 (for augmentation=crops)"
    assert (mine.augmentation.left_right, mine.optimizer.weight_decay, mine.optimizer.groups.llm.lr) == (
        0.25,
        0.3,
        3e-3,
    )
    other = composed("experiment=mine", "augmentation=none", "optimizer=adamw", own=tmp_path)
    assert dict(leaves(other.augmentation)).keys() == {"_target_"}
    assert (other.optimizer.weight_decay, other.steps) == (composed().optimizer.weight_decay, 7)
    assert "augmentation.left_right=0.25" in left_out(other) and "weight_decay=0.3" in left_out(other)


@pytest.mark.parametrize("words", [["optimizer=muon"], ["model=qwen25vl7b"], ["model=tiny", "optimizer=muon"]])
def test_what_an_experiment_is_about_stays_with_every_choice(words):
    cfg = composed("experiment=frozen_vision", *words)
    assert cfg.optimizer.groups.vision.lr == 0
    assert "always" not in cfg
    assert cfg.model.teacher_cache_gib == (8 if words == ["optimizer=muon"] else 0)  # that suits the model


def test_a_choice_that_lacks_what_an_experiment_is_about_is_refused():
    with pytest.raises(InputError, match=r"optimizer.groups.vision.lr=0: optimizer=adamw_uniform has no vision in"):
        overrides.check(["experiment=frozen_vision", "optimizer=adamw_uniform"], CONF)


@pytest.mark.parametrize(
    ("own", "words", "values", "said"),
    [
        ("search: {num_trials: 5}", [], None, "search.num_trials=5 (for a choice of search)"),
        ("search: {num_trials: 5}", ["search=tpe"], 5, ""),
        ("search: {pruner: {n_min_trials: 2}, num_trials: 5}", ["search=tpe"], 5, ""),
        (
            "search: {pruner: {n_min_trials: 2}, num_trials: 5}\ndefaults: [{override /search: random}]",
            ["search/pruner=none"],
            5,
            "search.pruner.n_min_trials=2 (for search/pruner=median)",
        ),
        (
            "launchers: {num_parallel: 2}\ndefaults: [{override /hydra/launcher: local}]",
            ["hydra/launcher=slurm"],
            None,
            "launchers.num_parallel=2 (for hydra/launcher=local)",
        ),
    ],
)
def test_values_of_groups_without_a_usual_choice_fall_where_there_is_none(tmp_path, own, words, values, said):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{own}\n")
    cfg = composed("experiment=mine", *words, own=tmp_path)
    assert (OmegaConf.select(cfg, "search.num_trials"), left_out(cfg)) == (values, said)


@pytest.mark.parametrize("options", [["--cfg", "job"], ["--info", "config"]])
def test_what_is_shown_is_what_the_run_gets(options, monkeypatch, capsys):
    words = ["experiment=frozen_vision", "model=qwen25vl7b", "steps=5", "optimizer=muon"]
    monkeypatch.setattr("sys.argv", ["bbu_train", *options, *words])
    monkeypatch.setattr(logging.root, "handlers", [])  # --info sets up a log of its own
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # restored at the end: later tests record its choices
    level = logging.root.level
    assert main.run_command(None, CONF, None, None) == 0
    logging.root.setLevel(level)
    shown = capsys.readouterr().out
    assert "  num_warmup_steps: 0\n" in shown and "model.teacher_cache_gib=8 (for model=qwen25vl3b)" in shown
    assert "always" not in shown and shown.count("lr: 0\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment=[smoke,overfit]"], "a run has one choice of experiment"),
        (["experiment=smoke", "experiment=overfit"], "experiment is chosen 2 times"),
        (["hydra.searchpath=[file:///x]", "experiment=mine"], "--config-dir FOLDER"),
        (["-m", "--cfg", "job", "experiment=smoke,overfit"], "leave out -m"),
    ],
)
def test_commands_that_would_lose_an_experiment_in_silence_are_refused(words, said):
    with pytest.raises(InputError, match=said):
        overrides.check(words, CONF)
