"""Begin a run with the weights of another run, or of an exported model, as `init` says."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from bbu_train.checkpoint.committed import Checkpoint
from bbu_train.errors import InputError, all_problems
from bbu_train.model.backbone import load_checkpoint
from bbu_train.model.padding import cut_vision_mlp, pad_like
from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.runs import exported, initial_weights
from bbu_train.runs import folder as run_folder
from bbu_train.runtime.wording import count_of

BACKBONE = "backbone."
"""What the names of the weights of the language model and of the vision tower begin with; all others are the head's."""
LEARNT_WITH = "model.image_position_scale", "conversation.layout"
"""Keys whose values a model has learnt: with other ones, the weights are of little use."""


@dataclass(frozen=True)
class Match:
    """How the weights of `init` fit a model.

    weights   those that fit, by the names of the model's parameters and with their padding
    problems  what of the language model and the vision tower does not fit
    notes     what of the head does not fit
    """

    weights: dict[str, Tensor]
    problems: list[str]
    notes: list[str]


def check(cfg: DictConfig, model: GroundingModel) -> list[str]:
    """Return notes on what of `init` is not used, or used otherwise than it was trained.

    `model` may lie on the meta device: only shapes are compared. Raises InputError if the language model or the vision
    tower does not fit, or if the weights have changed since the run began. Without `init` there are no notes.
    """
    if OmegaConf.select(cfg, "init") is None:
        return []
    matched = _match(_read(cfg, should_verify=False), model)
    if matched.problems:
        name = "config.yaml of that run names its model and its checkpoint: take the same."
        raise all_problems(f"init={cfg.init} holds the weights of another model", matched.problems, name)
    return [*matched.notes, *_other_values(cfg)]


def load(cfg: DictConfig, model: GroundingModel, should_verify: bool) -> None:
    """Fill the parameters of the model with what fits; `check` has said what does not.

    Raises InputError if a file is damaged. One process of a run verifies, for all.
    """
    model.load_state_dict(_match(_read(cfg, should_verify), model).weights, strict=False)


def _read(cfg: DictConfig, should_verify: bool) -> dict[str, Tensor]:
    """Map the weights by the names of a GroundingModel's parameters."""
    folder = Path(cfg.init)
    if initial_weights.digest(folder) != cfg.about.init:
        raise InputError(f"init={folder} has other weights than when this run was made. Make a new run.")
    if found := initial_weights.CHECKPOINT.fullmatch(folder.name):
        saved = Checkpoint(folder, int(found[1]))
        return saved.weights() if should_verify else saved.map_weights()
    record = exported.read_record(folder)
    if should_verify:
        exported.verify(folder, record)
    name = f"{exported.HEAD}/{exported.WEIGHTS}"
    weights = safetensors.torch.load_file(folder / name) if name in record.files else {}
    if record.form == exported.SERVABLE:
        published = load_checkpoint(str(folder)).named_parameters()
        weights |= {f"{BACKBONE}{name}": parameter.data for name, parameter in published}
    return weights


def _match(weights: Mapping[str, Tensor], model: GroundingModel) -> Match:
    parameters = dict(model.named_parameters())
    stock = {name.removeprefix(BACKBONE): each for name, each in weights.items() if name.startswith(BACKBONE)}
    width = model.backbone.config.vision_config.intermediate_size
    unpadded = cut_vision_mlp(stock, width)
    stock = pad_like(unpadded, {name.removeprefix(BACKBONE): each for name, each in parameters.items()}, width)
    weights = {name: each for name, each in weights.items() if not name.startswith(BACKBONE)}
    weights |= {f"{BACKBONE}{name}": each for name, each in stock.items()}
    fitting = {name: each for name, each in weights.items() if _has_shape(parameters.get(name), each)}
    problems = [text for name, text in _differences(weights, parameters) if name.startswith(BACKBONE)]
    return Match(fitting, problems, [*_notes_on_head(weights, parameters)])


def _has_shape(parameter: Tensor | None, weight: Tensor) -> bool:
    return parameter is not None and parameter.shape == weight.shape


def _differences(weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield the name of each weight that is on one side only, or has two shapes, and a line that says so."""
    for name in sorted(weights.keys() | parameters.keys()):
        if name not in weights:
            yield name, f"init lacks {name} ({_shape(parameters[name])})"
        elif name not in parameters:
            yield name, f"the model lacks {name} ({_shape(weights[name])})"
        elif not _has_shape(parameters[name], weights[name]):
            yield name, f"{name} is {_shape(weights[name])} in init and {_shape(parameters[name])} in the model"


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _notes_on_head(weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield how many weights of the head start at random and how many of `init` are not used, with the first reason."""
    unlike = [(name, text) for name, text in _differences(weights, parameters) if not name.startswith(BACKBONE)]
    new = [text for name, text in unlike if name in parameters]
    num_parameters = sum(not name.startswith(BACKBONE) for name in parameters)
    if new:
        yield f"{len(new)} of {num_parameters} weights of the head start at random: {new[0]}{_more(new)}"
    unused = [text for name, text in unlike if name not in parameters]
    if unused:
        yield f"{count_of(len(unused), 'weight')} of init not used: {unused[0]}{_more(unused)}"


def _more(texts: list[str]) -> str:
    return f"; {len(texts) - 1} more" if len(texts) > 1 else ""


def _other_values(cfg: DictConfig) -> Iterator[str]:
    theirs = run_folder.load(*initial_weights.run_of(Path(cfg.init)))
    for key in LEARNT_WITH:
        old, new = OmegaConf.select(theirs, key), OmegaConf.select(cfg, key)
        if old is not None and old != new:
            yield f"{key}={new}, but the weights of init were trained with {old}"
