"""The same functions in one process and in two (gloo)."""

import os
import socket

import pytest
import torch
from forked import run_ranks

from bbu_train.errors import InputError
from bbu_train.runtime import distributed


def call_all() -> dict:
    """Return what each function returns on this rank. The values it passes differ between ranks."""
    own = distributed.rank()
    weights = torch.full((2,), float(own + 1), requires_grad=True)
    distributed.barrier()
    return {
        "rank": own,
        "world_size": distributed.world_size(),
        "is_main": distributed.is_main(),
        "broadcast_from_main": distributed.broadcast_from_main({"run": f"named by {own}"}),
        "gather": distributed.gather(("rank", own)),
        "sum_over_ranks": distributed.sum_over_ranks(weights),
        "own": weights.detach(),
        "sum_integers": distributed.sum_integers([own + 1, 2**60, 0]),
        "gather_integers": distributed.gather_integers([own, 2**60]),
        "min_over_ranks": distributed.min_over_ranks(8 * 2**30 - own),
    }


def run_rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    device = distributed.start()
    results = call_all() | {"device": device.type}
    distributed.finish()
    results["world_size_after"] = distributed.world_size()
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(run_rank, port, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture
def no_torchrun(monkeypatch):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_without_torchrun_there_is_one_process_and_no_group(no_torchrun):
    device = distributed.start()
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert not torch.distributed.is_initialized()
    distributed.finish()


def test_a_single_process_is_the_main_one_and_gets_its_own_values():
    results = call_all()
    assert (results["rank"], results["world_size"], results["is_main"]) == (0, 1, True)
    assert results["broadcast_from_main"] == {"run": "named by 0"}
    assert results["gather"] == [("rank", 0)]
    assert results["sum_integers"] == [1, 2**60, 0]
    assert results["gather_integers"] == [[0, 2**60]]


def test_a_sum_is_a_new_tensor_without_gradient():
    weights = torch.ones(2, requires_grad=True)
    total = distributed.sum_over_ranks(weights)
    assert not total.requires_grad
    assert total.data_ptr() != weights.data_ptr()


def test_each_of_two_ranks_knows_its_rank(two_ranks):
    assert [(results["rank"], results["world_size"], results["is_main"]) for results in two_ranks] == [
        (0, 2, True),
        (1, 2, False),
    ]
    assert [results["device"] for results in two_ranks] == ["cpu", "cpu"]


def test_every_rank_gets_the_value_of_the_main_one(two_ranks):
    assert [results["broadcast_from_main"] for results in two_ranks] == [{"run": "named by 0"}] * 2


def test_every_rank_gets_all_values_in_order(two_ranks):
    assert [results["gather"] for results in two_ranks] == [[("rank", 0), ("rank", 1)]] * 2
    assert [results["gather_integers"] for results in two_ranks] == [[[0, 2**60], [1, 2**60]]] * 2


def test_every_rank_gets_the_least_number_which_is_not_its_own(two_ranks):
    assert [results["min_over_ranks"] for results in two_ranks] == [8 * 2**30 - 1] * 2


def test_tensors_are_summed_over_ranks_and_not_changed(two_ranks):
    for own, results in enumerate(two_ranks):
        assert results["sum_over_ranks"].tolist() == [3.0, 3.0]
        assert results["own"].tolist() == [own + 1.0] * 2


def test_integers_are_summed_exactly(two_ranks):
    assert [results["sum_integers"] for results in two_ranks] == [[3, 2**61, 0]] * 2


def test_after_finish_there_is_one_process_again(two_ranks):
    assert [results["world_size_after"] for results in two_ranks] == [1, 1]


def test_an_incomplete_environment_is_refused_with_the_missing_variables(no_torchrun, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="lacks LOCAL_RANK, MASTER_ADDR, MASTER_PORT.*torchrun"):
        distributed.start()
