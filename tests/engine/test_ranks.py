"""The engine with two ranks."""

import os
import socket

import pytest
import torch
from forked import run_ranks
from torch import nn

from bbu_train.engine.ddp import DdpEngine
from bbu_train.errors import InputError
from bbu_train.runtime import distributed


class Scale(nn.Module):
    """A model with two weights, 1 and 0. It multiplies the batch, a number, by the first and adds the second.

    If `fails`, the backward pass ends after the gradient of the second weight.
    """

    def __init__(self):
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.fails = False

    def forward(self, batch):
        product = self.weight * batch
        if self.fails:
            product.register_hook(self.fail)
        return product + self.offset

    def fail(self, gradient):
        assert self.offset.grad is not None
        raise torch.OutOfMemoryError("CUDA out of memory.")


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
        groups={"all": [model.weight], "offset": [model.offset]},
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
    model.fails = True
    with engine.accumulate(last=True), pytest.raises(torch.OutOfMemoryError):
        engine.backward(engine(torch.tensor(5.0)))
    model.fails = False
    engine.discard()
    with engine.accumulate(last=True):
        engine.backward(engine(torch.tensor(float(rank + 1))))
    results["again"] = engine.step(["a.jsonl:1"])["all"]
    results["weight again"] = model.weight.item()
    engine.close()
    distributed.finish()
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def results_of_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_ranks(run_rank, port, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all_and_moves_no_weight(results_of_ranks):
    for results in results_of_ranks:
        assert results["good"] == 3.0, "the ranks' gradients must be added, not averaged"
        assert results["weight after good"] == results["weight after bad"] == -2.0
        assert "a.jsonl:1, a.jsonl:2" in results["bad"]


def test_a_backward_pass_that_failed_on_all_ranks_is_discarded_and_leaves_nothing(results_of_ranks):
    for results in results_of_ranks:
        assert results["again"] == 3.0
        assert results["weight again"] == -5.0
