"""The same functions in one process and in two (gloo)."""

import os
import socket

import pytest
import torch
import torch.multiprocessing

from bbu_train.errors import InputError
from bbu_train.runtime import distributed


def answers() -> dict:
    """What each function says on this rank; each rank has its own rank as a number to give."""
    own = distributed.rank()
    weights = torch.full((2,), float(own + 1), requires_grad=True)
    distributed.barrier()
    return {
        "rank": own,
        "world_size": distributed.world_size(),
        "is_main": distributed.is_main(),
        "broadcast_from_main": distributed.broadcast_from_main({"run": f"named by {own}"}),
        "gather": distributed.gather(("rank", own)),
        "sum": distributed.sum_over_ranks(weights),
        "own": weights.detach(),
        "numbers": distributed.sum_integers([own + 1, 2**60, 0]),
        "everyones": distributed.gather_integers([own, 2**60]),
    }


def answer_as(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    device = distributed.start()
    said = answers() | {"device": device.type}
    distributed.finish()
    said["world_size_after"] = distributed.world_size()
    torch.save(said, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(answer_as, args=(port, str(folder)), nprocs=2)
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


def test_a_single_process_is_the_main_one_and_answers_itself():
    said = answers()
    assert (said["rank"], said["world_size"], said["is_main"]) == (0, 1, True)
    assert said["broadcast_from_main"] == {"run": "named by 0"}
    assert said["gather"] == [("rank", 0)]
    assert said["numbers"] == [1, 2**60, 0]
    assert said["everyones"] == [[0, 2**60]]


def test_a_sum_is_a_new_tensor_without_gradient():
    weights = torch.ones(2, requires_grad=True)
    total = distributed.sum_over_ranks(weights)
    assert not total.requires_grad
    assert total.data_ptr() != weights.data_ptr()


def test_each_of_two_ranks_knows_itself(two_ranks):
    assert [(said["rank"], said["world_size"], said["is_main"]) for said in two_ranks] == [(0, 2, True), (1, 2, False)]
    assert [said["device"] for said in two_ranks] == ["cpu", "cpu"]


def test_every_rank_hears_what_the_main_one_says(two_ranks):
    assert [said["broadcast_from_main"] for said in two_ranks] == [{"run": "named by 0"}] * 2


def test_every_rank_gets_everyones_value_in_order(two_ranks):
    assert [said["gather"] for said in two_ranks] == [[("rank", 0), ("rank", 1)]] * 2
    assert [said["everyones"] for said in two_ranks] == [[[0, 2**60], [1, 2**60]]] * 2


def test_tensors_are_summed_over_ranks_and_left_as_they_were(two_ranks):
    for own, said in enumerate(two_ranks):
        assert said["sum"].tolist() == [3.0, 3.0]
        assert said["own"].tolist() == [own + 1.0] * 2


def test_whole_numbers_are_summed_exactly(two_ranks):
    assert [said["numbers"] for said in two_ranks] == [[3, 2**61, 0]] * 2


def test_after_finish_the_process_is_alone_again(two_ranks):
    assert [said["world_size_after"] for said in two_ranks] == [1, 1]


def test_half_an_environment_is_refused_with_what_it_lacks(no_torchrun, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="lacks LOCAL_RANK, MASTER_ADDR, MASTER_PORT.*torchrun"):
        distributed.start()
