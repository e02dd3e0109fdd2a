"""An exported model in place of the run that it was exported from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from bbu_train.checkpoint.load import load_weights
from bbu_train.errors import InputError
from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.predict.trained_run import TrainedRun
from bbu_train.runs import exported
from bbu_train.runs import folder as run_folder


def open_run(folder: Path, checkpoint: str | int, route: str, device: torch.device | None = None) -> TrainedRun:
    """Return the run in `folder`, or what was exported into it. See `TrainedRun` for the arguments and errors."""
    kind = ExportedRun if exported.is_exported(folder) else TrainedRun
    return kind(str(folder), checkpoint, route, device)


@dataclass(frozen=True)
class ExportedCheckpoint:
    """The weights of an exported folder, in place of a `Checkpoint` of the run."""

    folder: Path
    record: exported.ExportRecord

    @property
    def step(self) -> int:
        return self.record.step

    @property
    def metrics(self) -> dict[str, float]:
        return self.record.metrics

    def weights(self) -> dict[str, Tensor]:
        """Map the weights in head/ into memory, after checking all files of weights against their checksums."""
        exported.verify(self.folder, self.record)
        name = f"{exported.HEAD}/{exported.WEIGHTS}"
        return safetensors.torch.load_file(self.folder / name) if name in self.record.files else {}


class ExportedRun(TrainedRun):
    """A run of which only an exported folder is left. Its data is read from where the run read it."""

    def _read_config(self) -> DictConfig:
        folder = Path(self.folder)
        self.record = exported.read_record(folder)
        cfg = run_folder.load(folder / exported.HEAD, exported.RUN)
        cfg.tracker = {}  # the folder is not the run's, whose trackers know nothing of it
        if self.record.form == exported.SERVABLE:
            cfg.model.checkpoint, cfg.model.weights = str(folder.resolve()), "pretrained"
        return cfg

    def _find_checkpoint(self, checkpoint: str | int) -> ExportedCheckpoint:
        if checkpoint not in ("best", self.record.step):
            raise InputError(
                f"checkpoint={checkpoint}: {self.folder} was exported from step {self.record.step}, and holds no other "
                "weights. Leave checkpoint out."
            )
        return ExportedCheckpoint(Path(self.folder), self.record)

    def _fill(self, model: GroundingModel, saved: Mapping[str, Tensor]) -> None:
        """Fill the parts whose weights are in head/. The published weights are in the model already."""
        is_published = self.record.form == exported.SERVABLE
        head = nn.ModuleDict({} if model.head is None else {"head": model.head})
        load_weights(head if is_published else model, saved)
