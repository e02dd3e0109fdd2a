"""Saved weights into a model."""

from torch import Tensor, nn

from bbu_train.errors import all_problems


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill every parameter. A checkpoint holds each once, under the first of its names; tied aliases follow."""
    expected = {name for name, _ in model.named_parameters()}
    problems = [f"{name} is not in the checkpoint" for name in expected - weights.keys()]
    problems += [f"{name} is not in the model" for name in weights.keys() - expected]
    if problems:
        remedy = "Resume with the run's own model and head, or begin a new run."
        raise all_problems("The checkpoint is of another model", sorted(problems), remedy)
    model.load_state_dict(weights, strict=False)
