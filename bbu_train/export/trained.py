"""The weights of a run's checkpoint, checked against the model that its config describes."""

from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import nn

from bbu_train.checkpoint.load import check_weights
from bbu_train.errors import InputError
from bbu_train.model.padding import cut_vision_mlp
from bbu_train.model.published import empty_model
from bbu_train.model.shape import configuration
from bbu_train.predict.trained_run import TrainedRun
from bbu_train.runs import exported
from bbu_train.runs import folder as run_folder
from bbu_train.training.setup import build

BACKBONE = "backbone."
"""What the names of the stock model's weights begin with in a checkpoint."""


class TrainedWeights:
    """The weights that validation scored at a checkpoint: the moving average, if the run keeps one.

    A bfloat16 weight is exported as it is, without the low bits of its float32 master: those are the optimizer's, and
    neither validation nor prediction uses them. An average is float32, also that of a bfloat16 weight.

    backbone  weights by their stock names, without padding
    head      weights as the checkpoint names them, "head.*"; empty without a head

    Raises InputError if the checkpoint is missing or damaged, or does not fit the run's config.
    """

    def __init__(self, folder: Path, checkpoint: str | int) -> None:
        self.folder = folder
        self.run = TrainedRun(str(folder), checkpoint, "generated", torch.device("cpu"))
        self.saved = self.run.saved
        weights = self.saved.weights()
        network = OmegaConf.to_container(self.run.cfg.model.network, resolve=True)
        assert isinstance(network, dict)
        self.config = configuration(*(network[key] for key in ("checkpoint", "weights", "shape")))
        own = {name.removeprefix(BACKBONE): each for name, each in weights.items() if name.startswith(BACKBONE)}
        self.backbone = cut_vision_mlp(own, self.config.vision_config.intermediate_size)
        self.head = {name: each for name, each in weights.items() if not name.startswith(BACKBONE)}
        self._check()

    def _check(self) -> None:
        with run_folder.built_by_this_code(self.folder), torch.device("meta"):
            head = build(self.run.cfg.head)(self.config.text_config.hidden_size)
        parts = {"backbone": empty_model(self.config)} | ({} if head is None else {"head": head})
        check_weights(
            nn.ModuleDict(parts), {f"{BACKBONE}{name}": each for name, each in self.backbone.items()} | self.head
        )

    def check_form(self, form: str) -> None:
        """Raise InputError unless the form is the one that this model can have."""
        scale = self.run.cfg.model.image_position_scale
        if scale and form == exported.SERVABLE:
            raise InputError(
                f"The run in {self.folder} has model.image_position_scale={scale}: it adds to its image tokens what no "
                f"stock model does, so its servable form would answer wrongly. form={exported.OWN} exports it for "
                "bbu_train.load."
            )
        if not scale and form == exported.OWN:
            raise InputError(
                f"form={exported.OWN} is for a model that stock transformers cannot compute, and that of the run in "
                f"{self.folder} they can. Leave form out: bbu_train.load takes the servable form too."
            )
