"""A trained run: its config, one of its checkpoints, its data, and its model, which loads only when asked for."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from bbu_train.checkpoint.load import load_weights
from bbu_train.conversation.builder import ConversationBuilder
from bbu_train.data.splits import Splits
from bbu_train.errors import InputError, listed
from bbu_train.model import weights
from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.predict.routes import Predictor
from bbu_train.runs import folder as run_folder
from bbu_train.runs.data_fingerprint import OUTPUTS, warn_if_changed
from bbu_train.runs.identity import is_data_root
from bbu_train.runs.settings import AUTO, PRECISION
from bbu_train.runtime.nested import leaves
from bbu_train.training import auto, untrained_head
from bbu_train.training.machine import this_machine
from bbu_train.training.setup import build
from bbu_train.types.samples import PictureFormat

log = logging.getLogger(__name__)
ROUTES = {"both": ("head", "generated"), "head": ("head",), "generated": ("generated",)}


class Weights(Protocol):
    """A checkpoint of a run, or what takes its place. `weights` raises InputError for a damaged file."""

    @property
    def folder(self) -> Path: ...
    @property
    def step(self) -> int: ...
    @property
    def metrics(self) -> dict[str, float]: ...
    def weights(self) -> dict[str, Tensor]: ...


class TrainedRun:
    """The run in `folder` with the checkpoint to use.

    `checkpoint` is "best", "last" or a step; `route` is a key of ROUTES; without a `device` it is a GPU, if there is
    one. Raises InputError if the run has no such checkpoint, or no head although the route needs one.
    """

    def __init__(
        self,
        folder: str,
        checkpoint: str | int,
        route: str,
        num_teachers: int,
        device: torch.device | None = None,
    ):
        self.folder = folder
        cfg = self._read_config()
        # These settings only make training fast on its machine; predictions stay the same up to rounding.
        cfg.model.attention, cfg.model.compile, cfg.model.teacher_cache_gib = AUTO, False, 0
        cfg.engine.precision = auto.recorded(run_folder.read_environment(cfg.folder), PRECISION) or cfg.engine.precision
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.cfg = cfg = auto.apply(cfg, auto.settings(cfg, this_machine(self.device), {}))
        cfg.data.teachers.num_validation_teachers = num_teachers
        self.routes = ROUTES[route]
        if "head" in self.routes and "num_queries" not in cfg.head:
            raise InputError(f"The run in {folder} has no head (head=none). Take route=generated.")
        self.saved = self._find_checkpoint(checkpoint)
        self._require_first_weights()
        with run_folder.built_by_this_code(cfg.folder):
            self.preprocessing = build(cfg.model.preprocessing)

    def _read_config(self) -> DictConfig:
        return run_folder.load(self.folder)

    def _require_first_weights(self) -> None:
        """Raise InputError if the weights that the run began from are gone: config and tokenizer lie beside them."""
        model = self.cfg.model
        if problem := weights.what_is_missing(model.checkpoint, model.weights):
            raise InputError(
                f"The run in {self.folder} began from the weights of {model.checkpoint}, which are missing "
                f"({problem}). Its config and tokenizer are read from there: put them back."
            )

    def take_data_from(self, root: str | None) -> None:
        """Read the run's data under another root, if one is given. Raises InputError if the run draws its data."""
        if root is None:
            return
        values = dict(leaves(OmegaConf.to_container(self.cfg, resolve=False)))
        keys = [key for key, raw in values.items() if is_data_root(key) and not str(raw).startswith(OUTPUTS)]
        if not keys:
            raise InputError(f"data.root={root}: the run in {self.folder} draws its pictures itself. Leave it out.")
        for key in keys:
            OmegaConf.update(self.cfg, key, root)

    def _find_checkpoint(self, checkpoint: str | int) -> Weights:
        checkpoints = build(self.cfg.checkpoint)
        if isinstance(checkpoint, int):
            return checkpoints.at(checkpoint)
        saved = checkpoints.latest() if checkpoint == "last" else checkpoints.best()
        if saved is None and checkpoint == "best" and checkpoints.latest() is not None:
            raise InputError(
                f"No checkpoint in {checkpoints.folder} has {checkpoints.best_metric}, so none is the best. Take "
                f"checkpoint=last, or one of these steps: {listed(checkpoints.steps())}."
            )
        if saved is None:
            every = "only with save_every=<steps>" if (given := self.cfg.save_every) is None else f"every {given} steps"
            raise InputError(
                f"There is no checkpoint in {checkpoints.folder}: the run saves {every}. Go on with it: python -m "
                f"bbu_train resume={self.folder}"
            )
        return saved

    @property
    def picture_format(self) -> PictureFormat:
        return self.preprocessing.picture_format

    @property
    def threshold(self) -> float:
        """The score threshold at which the head's boxes had the best F1 in validation.

        It is 0.5 if that was not measured, or is 0 at every threshold.
        """
        return self.saved.metrics["eval/f1_threshold"] if self.saved.metrics.get("eval/f1", 0) > 0 else 0.5

    def make_builder(self) -> ConversationBuilder:
        with run_folder.built_by_this_code(self.cfg.folder):
            return build(self.cfg.conversation)(self.preprocessing.tokenizer, self.picture_format)

    def load_data(self, should_show_truth: bool) -> Splits | None:
        """Return the run's data, or None if neither teachers nor true boxes are needed. Warns if the data has changed.

        If the data cannot be read, it raises InputError if teachers are needed. If only true boxes are, it warns and
        returns None.
        """
        needs_pool = self.cfg.data.teachers.num_validation_teachers > 0
        if not (needs_pool or should_show_truth):
            return None
        try:
            with run_folder.built_by_this_code(self.cfg.folder):
                data = build(self.cfg.data)
        except InstantiationException as error:
            if needs_pool or not isinstance(error.__cause__, InputError | OSError):
                raise
            log.warning("True boxes are not shown, because the run's data cannot be read: %s", error.__cause__)
            return None
        warn_if_changed(self.cfg, Path(self.cfg.folder))
        return data

    def set_threads(self) -> None:
        """Let torch compute with as many CPU threads as the run says."""
        torch.set_num_threads(self.cfg.threads)

    def load_predictor(self, max_new_tokens: int) -> Predictor:
        """Load the model with the checkpoint's weights, on the run's `device`.

        Raises InputError if a route needs the head and the run did not train it.
        """
        cfg = self.cfg
        saved = self.saved.weights()  # before the model is built, so that a damaged file is reported at once
        device = self.device
        with run_folder.built_by_this_code(self.cfg.folder):
            model = build(cfg.model.network)(device=device, head=build(cfg.head))
            if "head" in self.routes:
                build(cfg.optimizer)(model)  # freezes what training froze
                untrained_head.refuse_untrained(model.head, build(cfg.loss), self.folder)
        self._fill(model, saved)
        autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=cfg.engine.precision != "fp32")
        return Predictor(model.eval(), self.make_builder(), device, autocast, self.routes, max_new_tokens)

    def _fill(self, model: GroundingModel, saved: Mapping[str, Tensor]) -> None:
        load_weights(model, saved)
