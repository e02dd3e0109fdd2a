"""The engine with two ranks."""

import os
import socket

import torch
from forked import run_ranks
from torch import nn

from bbu_train.engine.ddp import DdpEngine
from bbu_train.errors import InputError
from bbu_train.runtime import distributed


class Scale(nn.Module):
    """A model with one weight, which it multiplies by the batch: a number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        return self.weight * batch


def run_rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device = distributed.start()
    model = Scale()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    engine = DdpEngine(
        model=model,
        criterion=lambda outputs, batch: outputs.sum(),
        optimizer=optimizer,
        groups={"all": [model.weight]},
        device=device,
        precision="fp32",
        num_micro_batches=1,
        gradient_checkpointing="none",
        max_grad_norm=None,
    )
    results = {}
    for name, batches in (("good", (1.0, 2.0)), ("bad", (1.0, float("nan")))):
        engine.backward(engine(torch.tensor(batches[rank])))
        try:
            results[name] = engine.step(["a.jsonl:1", "a.jsonl:2"])["all"]
        except InputError as error:
            results[name] = str(error)
        results[f"weight after {name}"] = model.weight.item()
    engine.close()
    distributed.finish()
    torch.save(results, f"{folder}/{rank}.pt")


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all_and_moves_no_weight(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_ranks(run_rank, port, str(tmp_path))
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert results["good"] == 3.0, "the ranks' gradients must be added, not averaged"
        assert results["weight after good"] == results["weight after bad"] == -2.0
        assert "a.jsonl:1, a.jsonl:2" in results["bad"]
