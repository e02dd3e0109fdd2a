"""Loading saved weights into a model."""

from collections.abc import Container, Iterable, Mapping

from torch import Tensor, nn

from bbu_train.errors import all_problems


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fill every parameter of `model`.

    A checkpoint has a tied parameter once, under its first name; its other names share the tensor. Raises InputError
    for what `check_weights` finds.
    """
    check_weights(model, weights)
    model.load_state_dict(weights, strict=False)


def check_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise InputError that says which parameters the checkpoint or the model lacks, and which have other shapes."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    problems = _lacking(shapes, weights, "the checkpoint") + _lacking(weights, shapes, "the model")
    problems += [
        f"{name} has the shape {tuple(weights[name].shape)} in the checkpoint and {shape} in the model"
        for name, shape in shapes.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if problems:
        remedy = "Take the model and the head that the checkpoint was saved with, or start a new run."
        raise all_problems("The checkpoint is of another model", problems, remedy)


def _lacking(names: Iterable[str], others: Container[str], owner: str) -> list[str]:
    """Return a problem for each of `names` that is not among `others`, those of `owner`, and one for a whole part."""
    by_part: dict[str, list[str]] = {}
    for name in sorted(names):
        by_part.setdefault(name.partition(".")[0], []).append(name)
    problems = []
    for part, members in by_part.items():
        lacking = [name for name in members if name not in others]
        if len(lacking) == len(members):
            problems.append(f"{part} is not in {owner}: none of its {len(members)} parameters")
        else:
            problems += [f"{name} is not in {owner}" for name in lacking]
    return problems
