"""One process or many, told apart here and nowhere else. Every function also works, at once, in a single process."""

import os
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bbu_train.errors import InputError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_joins = count()


def start() -> torch.device:
    """Join the other processes, where torchrun (or a launcher that sets the same variables) started several.

    Gives this process's device: the GPU of its LOCAL_RANK where there are GPUs, the only or first GPU without torchrun,
    else the CPU. On GPUs, tensors there go by NCCL, and tensors on the CPU and Python objects by gloo, which does not
    make the host wait for the device.
    """
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        # cuDNN's attention makes a plan for every new shape, 14 ms of the host each, and every step has new shapes.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return torch.device("cuda" if on_gpus else "cpu")
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise InputError(
            f"The environment says that this is one of several processes, but lacks {', '.join(missing)}. Start with "
            "torchrun, which sets all of them, or unset RANK and WORLD_SIZE to run a single process."
        )
    device = _device_of_rank(int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device("cpu")
    store, rank, world_size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"join {next(_joins)}", store)  # torchrun's keeps what was said when they joined before
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    return device


def _device_of_rank(local_rank: int) -> torch.device:
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise InputError(
            f"Process {local_rank} (from 0) of this machine finds no GPU of its own: {num_gpus} can be seen. Give "
            "torchrun an --nproc-per-node of at most that, or make more visible with CUDA_VISIBLE_DEVICES."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)  # NCCL uses the current device, which is the first on every rank otherwise
    return device


def finish() -> None:
    """Leave the other processes; a later `start` may join them anew."""
    if dist.is_initialized():
        dist.destroy_process_group()


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
    """Rank 0's value on every rank; anything that can be pickled. The others' own value is ignored."""
    if not dist.is_initialized():
        return value
    box = [value if is_main() else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks, on every rank; anything that can be pickled."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """A new tensor, without gradient: the sum over the ranks, each of which gives one of the same shape and dtype."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def sum_integers(values: Sequence[int]) -> list[int]:
    """Whole numbers summed over the ranks, position by position, exactly, and without a word to the device."""
    return sum_over_ranks(torch.tensor(values, dtype=torch.int64)).tolist()


def any_rank(its: bool) -> bool:
    """Whether it is so on one rank or more; every rank gets the same answer, at once and without the device."""
    return sum_integers([its])[0] > 0


def gather_integers(values: Sequence[int]) -> list[list[int]]:
    """Every rank's whole numbers, as many on each, in the order of ranks; exactly, and without a word to the device."""
    mine = torch.tensor(values, dtype=torch.int64)
    if not dist.is_initialized():
        return [mine.tolist()]
    everyones = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyones, mine)
    return [its.tolist() for its in everyones]
