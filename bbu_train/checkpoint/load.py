"""Loading saved weights into a model."""

from torch import Tensor, nn

from bbu_train.errors import all_problems


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill every parameter of `model`.

    A checkpoint has a tied parameter once, under its first name; its other names share the tensor. Raises InputError
    with every name that the checkpoint or the model lacks.
    """
    expected = {name for name, _ in model.named_parameters()}
    problems = [f"{name} is not in the checkpoint" for name in expected - weights.keys()]
    problems += [f"{name} is not in the model" for name in weights.keys() - expected]
    if problems:
        remedy = "Resume with the model and head of that run, or start a new run."
        raise all_problems("The checkpoint is of another model", sorted(problems), remedy)
    model.load_state_dict(weights, strict=False)
