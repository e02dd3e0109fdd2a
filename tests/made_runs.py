"""Runs that were not trained: a config, and a checkpoint of changed random weights. They take half a second."""

from pathlib import Path

import torch

from bbu_train.checkpoint.local import LocalCheckpoints
from bbu_train.runs import folder as run_folder
from bbu_train.training.setup import build

SMALL = ["head.num_queries=12", "head.d_model=32", "head.num_heads=2", "head.num_caption_layers=1"]
SMALL += ["head.max_caption_tokens=4"]
METRICS = {"eval/ap50": 0.25, "eval/f1": 0.5, "eval/f1_threshold": 0.125}


def make_run(cfg, resolved) -> Path:
    """Write the run of a config, with a checkpoint of step 1; `resolved` is its config in which nothing is "auto".

    The weights are random ones after a step's change, so that a bfloat16 weight differs from its master, and both from
    an average.
    """
    torch.manual_seed(1)
    model = build(resolved.model.network)(device=torch.device("cpu"), head=build(resolved.head))
    optimizer = build(resolved.optimizer)(model)
    average = build(resolved.average)(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().sign() * torch.rand_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    optimizer.step()
    average.update(1)
    run_folder.create(cfg.folder, cfg, {})
    state = {"optimizer": optimizer.state_dict(), "trained": average.unaveraged_weights()}
    checkpoints = LocalCheckpoints(Path(cfg.folder) / "checkpoints", 2, "eval/ap50", "max")
    checkpoints.save(1, average.weights(), state, METRICS)
    return Path(cfg.folder)
