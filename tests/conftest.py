"""What many tests share: small pictures, samples, and the tiny model built as a run builds it.

Shapes are checked while the tests run: jaxtyping's annotations, by beartype.
"""

import gc
import importlib
import importlib.util
import os
import pkgutil
from copy import deepcopy
from functools import cache, partial
from pathlib import Path

# Threads that spin while they wait take the cores from the other processes that these tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import omegaconf.base
import pytest
from filelock import FileLock
from heap import freeze_heap
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from jaxtyping import install_import_hook
from omegaconf import OmegaConf

import bbu_train


def annotates_shapes(name: str) -> bool:
    """Whether a module names the shapes of tensors: it imports jaxtyping.

    Kernels are not checked: Triton compiles their source itself and must find it as it is written.
    """
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return not name.endswith("_kernel") and "from jaxtyping import" in Path(spec.origin).read_text(encoding="utf-8")


MODULES = [module.name for module in pkgutil.walk_packages(bbu_train.__path__, "bbu_train.") if not module.ispkg]
install_import_hook([name for name in MODULES if annotates_shapes(name)], "typechecker.check")

LARGE_PACKAGES = (
    "beartype",
    "matplotlib.figure",
    "scipy.optimize",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
)

SLOWEST_FIRST = (
    "test_train.py",
    "test_resume.py",
    "test_preemption.py",
    "test_start.py",
    "test_local.py",
    "test_overfit.py",
)
"""The slowest files, slowest first. Started last, they would leave one of the two processes idle."""

DRAWN = ("uninterrupted", "others")
"""Whole runs whose plots are drawn: with all losses and boxes, and without a head."""

# OmegaConf parses the text of a reference such as ${seed} at each access: a quarter of the time of composing a sweep.
omegaconf.base.parse = cache(omegaconf.base.parse)

CONF = Path(__file__).parents[1] / "conf"
build = partial(instantiate, _convert_="all")


def pytest_configure(config):
    """Import the large packages where tests run, not in the process that only starts pytest-xdist's workers.

    jaxtyping's hook has .pyc names of its own, also for what a hooked module imports. So all large packages are
    imported before, or every process would compile them again.
    """
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        gc.disable()  # until all is imported: almost nothing of it is garbage
        for name in LARGE_PACKAGES:
            importlib.import_module(name)


def pytest_collection_modifyitems(items):
    ranks = {name: rank for rank, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def pytest_collection_finish():
    gc.enable()
    freeze_heap()


CHEAP = {"head": "detr", "data": "synthetic", "loss": "joint"}
"""What tests take for the default choices: of two heads the one with fewer operations."""


def configured(*overrides: str):
    """The config that the command line would compose with the choices of CHEAP.

    Values are set on a copy of the config of the groups, because composing one takes longer than a training step of the
    tiny model.
    """
    values = [text for text in overrides if sets_a_value(text)]
    given = [text for text in overrides if text not in values]
    named = {text.partition("=")[0] for text in given}
    cheap = [] if "experiment" in named else [f"{group}={name}" for group, name in CHEAP.items() if group not in named]
    cfg = deepcopy(_composed(*cheap, *given))
    for override in OverridesParser.create().parse_overrides(values):
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    return cfg


def resolved(cfg):
    """Return the config with the values that "auto" takes on a CPU with one core."""
    from bbu_train.training import auto, fit
    from bbu_train.training.machine import cpu

    machine = cpu(1, 1)
    layout = fit.settings_of(cfg, *fit.first_layout(cfg, None))
    return auto.apply(cfg, auto.settings(cfg, machine, {}) | layout)


def sets_a_value(override: str) -> bool:
    """Whether an override chooses no config group, and neither adds nor deletes a key."""
    group = override.partition("=")[0].partition("@")[0]
    return override[0] not in "+~" and not (CONF / group).is_dir()


@cache
def _composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["sweep=test", "run=test", *overrides])


@pytest.fixture(scope="session", autouse=True)
def _umask():
    """That of a group of people, who may write each other's files: test_readable_by_others.py looks for it."""
    os.umask(0o002)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """As in whole_runs.py. Two processes run tests on two cores, where more threads only wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def config():
    """A function from overrides to a composed config."""
    return configured


@pytest.fixture(scope="session")
def resolved_config():
    """A function from overrides to a composed config in which nothing is "auto"."""
    return lambda *overrides: resolved(configured(*overrides))


@pytest.fixture(scope="session")
def preprocessing():
    return build(configured().model.preprocessing)


@pytest.fixture(scope="session")
def builder(preprocessing):
    return build(configured().conversation)(
        tokenizer=preprocessing.tokenizer, picture_format=preprocessing.picture_format
    )


@pytest.fixture(scope="session")
def make_picture(tmp_path_factory):
    """A function that writes a picture of noise and gives it as a Picture with the given (box_xyxy, description)s."""
    import numpy as np
    from PIL import Image

    from bbu_train.types.samples import Object, Picture

    folder = tmp_path_factory.mktemp("pictures")

    def make(name: str, width: int, height: int, *objects: tuple[tuple[float, ...], str]) -> Picture:
        path = folder / f"{width}x{height}/{name}.png"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            noise = np.random.default_rng(sum(name.encode())).integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
        return Picture(path, width, height, tuple(Object(tuple(map(float, box)), text) for box, text in objects))

    return make


@pytest.fixture(scope="session")
def samples(make_picture):
    """Four samples of different lengths: two, one, no and one teachers; the third student is annotated as empty."""
    from bbu_train.types.samples import Sample

    rack = make_picture("rack", 112, 84, ((10, 10, 60, 40), "bbu/huawei/running"), ((70, 50, 100, 80), "screw/wrong"))
    door = make_picture("door", 84, 112, ((5, 60, 80, 100), "wind baffle/missing"))
    wall = make_picture(
        "wall",
        140,
        56,
        ((0, 0, 30, 50), "label/readable"),
        ((40, 5, 90, 50), "bbu/zte/alarm"),
        ((100, 10, 140, 56), "slot/empty"),
    )
    bare = make_picture("bare", 56, 56)
    return (
        Sample("a", wall, (rack, door)),
        Sample("b", rack, (door,)),
        Sample("c", bare, ()),
        Sample("d", door, (bare,)),
    )


@pytest.fixture(scope="session")
def encoded(builder, samples):
    return [builder.encode(builder.converse(sample, sample.teachers, with_answer=True)) for sample in samples]


@pytest.fixture(scope="session")
def collate(preprocessing):
    """A function from a collator's name and Encoded samples to a Batch."""
    return lambda name, some: build(configured(f"collator={name}").collator)(
        picture_format=preprocessing.picture_format
    )(some)


@pytest.fixture(scope="session")
def make_model():
    """A function from overrides to the tiny model with small heads, always with the same weights."""

    import torch

    def make(*overrides: str):
        sizes = "head.num_queries=12", "head.d_model=32", "head.num_heads=2", "head.max_caption_tokens=24"
        small = () if "head=none" in overrides else sizes
        cfg = resolved(configured(*small, *overrides))
        torch.manual_seed(0)
        return build(cfg.model.network)(device=torch.device("cpu"), head=build(cfg.head))

    return make


@pytest.fixture(scope="session")
def make_criterion():
    return lambda *overrides: build(configured(*overrides).loss)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder of all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def outputs(shared_folder):
    """Where the whole runs of all tests lie, under smoke/, in whichever process they are made."""
    folder = shared_folder / "outputs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def empty_store(shared_folder):
    """The path of an SQLite store of MLflow without runs. Copy it: that saves the two seconds that making one takes."""
    from bbu_train.tracker.mlflow_store import open_client, silence_mlflow

    silence_mlflow()
    path = shared_folder / "empty/mlflow.db"
    with FileLock(shared_folder / "empty.lock"):
        if not path.exists():
            open_client(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def run(outputs):
    """A function from a name and overrides to the folder of a run in this process.

    The same run is made once, by the first process of pytest-xdist that asks for it. Its plots at the end are left out
    unless its name is one of DRAWN: they take as long as two steps.
    """
    from whole_runs import draw_nothing, run_here

    @cache
    def run_once(name, *overrides):
        with FileLock(outputs / f"{name}.lock"):
            done = outputs / f"{name}.done"
            if not done.exists() or done.read_text() != repr(overrides):
                with pytest.MonkeyPatch.context() as patch:
                    if name not in DRAWN:
                        patch.setattr("bbu_train.reporting.final_report.write_plots", draw_nothing)
                    run_here(outputs, name, *overrides)
                done.write_text(repr(overrides))
        return outputs / "smoke" / name

    return run_once


@pytest.fixture(scope="session")
def uninterrupted(run):
    """The folder of a whole run that others are compared with."""
    return run("uninterrupted")
