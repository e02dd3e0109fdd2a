"""Every file of conf/ says what it is, and what it names exists and takes its values."""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bbu_train.cli import overrides
from bbu_train.data import files
from bbu_train.runs import identity

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
WITHOUT_PACKAGE = {"experiment", "cluster", "hydra", "search"}
THIRD_PARTY = ("optuna.samplers.", "optuna.pruners.")
FILES = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))
CHOICES = [name for name in FILES if "/" in name and name.split("/")[0] not in WITHOUT_PACKAGE]


def targets(config: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping with a `_target_`, however deep."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield config
        for value in config.values():
            yield from targets(value)


def composed(name: str) -> Mapping[str, Any]:
    """The part of the config that a choice makes, with all that it builds on, composed without the other groups."""
    choice = name.removesuffix(".yaml")
    with initialize_config_dir(str(CONF), version_base=overrides.VERSION_BASE):
        return OmegaConf.to_container(compose(choice)[choice.split("/")[0]], resolve=False)


@pytest.mark.parametrize("name", FILES)
def test_every_file_opens_with_what_it_is(name):
    lines = (CONF / name).read_text(encoding="utf-8").splitlines()
    first = next(line for line in lines if not line.startswith("# @package"))
    assert first.startswith("# ")


def test_every_group_has_a_component_package():
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - WITHOUT_PACKAGE
    assert groups
    assert {group for group in groups if not (ROOT / "bbu_train" / group / "__init__.py").is_file()} == set()


@pytest.mark.parametrize("name", CHOICES)
def test_every_target_lies_in_its_package_and_takes_its_values_without_a_default_of_its_own(name):
    group = name.split("/")[0]
    for node in targets(composed(name)):
        assert node["_target_"].startswith(f"bbu_train.{group}.")
        module, _, attribute = node["_target_"].rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
        keys = [key for key in node if not (key.startswith("_") and key.endswith("_"))]
        assert [key for key in keys if key not in parameters] == []
        assert [key for key in keys if parameters[key].default is not inspect.Parameter.empty] == []


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("data/")])
def test_every_data_set_says_which_files_it_reads(name):
    names = [node["_target_"].split(".")[-2] for node in targets(composed(name)) if node["_target_"].endswith(".load")]
    assert names
    assert [name for name in names if not hasattr(files, name)] == []


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("search/")])
def test_every_target_of_a_search_is_of_the_short_list_and_takes_its_values(name):
    *group, choice = name.removesuffix(".yaml").split("/")
    chosen = (
        [f"{'/'.join(group)}={choice}"] if group == ["search"] else ["search=random", f"search/{group[-1]}={choice}"]
    )
    with initialize_config_dir(str(CONF), version_base=overrides.VERSION_BASE):
        cfg = compose("config", ["hydra/launcher=local", *chosen]).search
    nodes = [*targets(OmegaConf.to_container(cfg, resolve=False))]
    assert len(nodes) == 2
    assert all(node["_target_"].startswith(THIRD_PARTY) for node in nodes)
    instantiate(cfg.sampler)(seed=1)  # what a component takes, its constructor knows best
    instantiate(cfg.pruner)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("experiment/")])
def test_every_experiment_composes_and_sets_only_keys_that_exist(name):
    overrides.check([f"experiment={Path(name).stem}"], CONF)


def test_the_keys_that_config_yaml_says_do_not_decide_the_result_are_the_neutral_ones():
    lines = (CONF / "config.yaml").read_text(encoding="utf-8").split("hydra:\n")[0]
    deciding, neutral = lines.split("# ---- what decides the result ----")[1].split("# ---- what does not ----")
    assert {key for key in OmegaConf.create(deciding) if identity.is_neutral(key)} == set()
    assert {key for key in OmegaConf.create(neutral) if not identity.is_neutral(key)} == set()
