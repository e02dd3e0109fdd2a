"""Communication between the processes of a run. In a single process every function returns at once.

Callers need no special case for a single process.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bbu_train.errors import InputError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
RESTARTS = "BBU_RESTARTS"  # how often the processes of this run have replaced themselves (`restart`)
_prefixes: list[str] = []  # of this process's joins: torchrun's store still has the keys of earlier ones


def start() -> torch.device:
    """Join the other processes, if torchrun (or a launcher that sets the same variables) started several.

    Returns this process's device: the GPU of its LOCAL_RANK, or the first GPU without torchrun, or the CPU where there
    is no GPU. Tensors on GPUs are sent by NCCL; tensors on the CPU and Python objects by gloo, which does not make the
    host wait for the device. Raises InputError if the variables are incomplete or there are fewer GPUs than processes.
    """
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        # cuDNN's attention builds a plan for every new shape, 14 ms on the host each, and every step has new shapes.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return torch.device("cuda" if on_gpus else "cpu")
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise InputError(
            f"RANK or WORLD_SIZE is set, so this is one of several processes, but the environment lacks "
            f"{', '.join(missing)}. Start with torchrun, which sets all of them, or unset RANK and WORLD_SIZE to run a "
            "single process."
        )
    device = _device_of_rank(int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device("cpu")
    store, rank, world_size = next(dist.rendezvous("env://"))
    attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}.{num_restarts()}"
    _prefixes.append(f"attempt {attempt} join {len(_prefixes)}")
    store = dist.PrefixStore(_prefixes[-1], store)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    return device


def _device_of_rank(local_rank: int) -> torch.device:
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise InputError(
            f"Process {local_rank} (from 0) of this machine has no GPU of its own: {num_gpus} are visible. Give "
            "torchrun at most that many with --nproc-per-node, or make more visible with CUDA_VISIBLE_DEVICES."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)  # NCCL uses the current device, which would otherwise be the first on every rank
    return device


def finish() -> None:
    """Leave the other processes. `start` may be called again later."""
    if dist.is_initialized():
        dist.destroy_process_group()


def num_restarts() -> int:
    return int(os.environ.get(RESTARTS, "0"))


def store_outlives_ranks() -> bool:
    """Whether the store belongs to torchrun. Otherwise rank 0 holds it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def connect_to_store() -> dist.Store:
    """Return a connection of its own to the ranks' store, for a thread: a store serves one call after the other."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.PrefixStore(
        f"watch {_prefixes[-1]}", dist.TCPStore(address, port, is_master=False, wait_for_workers=False)
    )


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def broadcast_from_main(value: Any) -> Any:
    """Return rank 0's value on every rank. It may be anything that can be pickled; other ranks' values are ignored."""
    if not dist.is_initialized():
        return value
    values = [value if is_main() else None]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: Any) -> list[Any]:
    """Return every rank's value, ordered by rank, on every rank. They may be anything that can be pickled."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum over ranks as a new tensor without gradient. Every rank passes the same shape and dtype."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def sum_integers(values: Sequence[int]) -> list[int]:
    """Return the elementwise sum over ranks, exactly and without involving the GPU."""
    return sum_over_ranks(torch.tensor(values, dtype=torch.int64)).tolist()


def any_rank(condition: bool) -> bool:
    """Whether the condition is true on any rank. Every rank gets the same answer, without involving the GPU."""
    return sum_integers([condition])[0] > 0


def min_over_ranks(number: int) -> int:
    """Return the least of every rank's numbers, on every rank and without involving the GPU."""
    return min(each for (each,) in gather_integers([number]))


def gather_integers(values: Sequence[int]) -> list[list[int]]:
    """Return every rank's integers, ordered by rank, without involving the GPU. Every rank passes equally many."""
    own = torch.tensor(values, dtype=torch.int64)
    if not dist.is_initialized():
        return [own.tolist()]
    by_rank = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(by_rank, own)
    return [integers.tolist() for integers in by_rank]
