"""The machine that a run computes on: this one, that of a job, or one with a GPU that is named."""

import math
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from omegaconf import DictConfig, OmegaConf

from bbu_train.errors import InputError
from bbu_train.model import attention
from bbu_train.runs.settings import DEVICE, is_slurm
from bbu_train.runtime import hardware

CONTEXT_BYTES = 2**30
"""What CUDA and the libraries take of a GPU beside torch's tensors: a bound."""
CARDS = {
    **{"B200": 178.4, "H200": 139.8, "H100": 79.2, "A100": 79.2, "A100-40": 39.4, "L40S": 44.4, "A6000": 47.4},
    **{"RTXPRO6000": 94.9, "RTX6000ADA": 47.4, "RTX5090": 31.4},
    **{"RTX4090": 23.5, "RTX3090": 23.6, "A10": 22.1, "L4": 22.0},
}
"""GiB of memory that GPUs report by `torch.cuda.mem_get_info`, or about as much."""


@dataclass(frozen=True)
class Machine:
    """What decides the settings: the device, and the share of this rank in the machine.

    kind              "cpu" or "gpu"
    name              of the device, in messages
    total_bytes       memory of the GPU; 0 for a CPU
    available_bytes   what this process may still allocate: without others' memory, within torch's limit
    computes_bf16     whether products of bfloat16 are fast
    compiles          whether torch.compile makes GPU kernels here
    attention         the fastest attention that is installed and runs there in bfloat16
    num_cores         processor cores of this rank
    num_free_cores    those that nobody else uses now
    is_here           whether it is this machine, so that what is installed is known
    """

    kind: str
    name: str
    total_bytes: int
    available_bytes: int
    computes_bf16: bool
    compiles: bool
    attention: str
    num_cores: int
    num_free_cores: int
    is_here: bool = False


def cpu(num_cores: int, num_free_cores: int) -> Machine:
    return Machine("cpu", "the CPU", 0, 0, False, False, "sdpa", num_cores, num_free_cores, is_here=True)


def this_machine(device: torch.device) -> Machine:
    """Return what this rank computes on."""
    cores = hardware.num_cores_of_rank(), hardware.num_free_cores()
    if device.type != "cuda":
        return cpu(*cores)
    properties = torch.cuda.get_device_properties(device)
    return Machine(
        kind="gpu",
        name=properties.name,
        total_bytes=properties.total_memory,
        available_bytes=_available_bytes(device),
        computes_bf16=properties.major >= 8,
        compiles=find_spec("triton") is not None,
        attention=attention.fastest_installed((properties.major, properties.minor)),
        num_cores=cores[0],
        num_free_cores=cores[1],
        is_here=True,
    )


def named_machine(card: str) -> Machine:
    """Return a machine with the GPU that `card` names: one of CARDS, or its memory in GiB. Raises InputError.

    What is installed there is not known: flash-attention 2 is assumed.
    """
    known = {name.lower(): gib for name, gib in CARDS.items()}
    try:
        gib = known[card.lower()] if card.lower() in known else float(card)
    except ValueError:
        gib = math.nan
    if not CONTEXT_BYTES / 2**30 < gib < math.inf:
        names = ", ".join(CARDS)
        raise InputError(f"--check={card}: expected one of {names}, or a GPU's GiB, such as --check=24.")
    total, cores = int(gib * 2**30), hardware.num_cores()
    return Machine("gpu", card, total, total - CONTEXT_BYTES, True, True, "flash_attention_2", cores, cores)


def _available_bytes(device: torch.device) -> int:
    """Return what torch can still allocate, with what it has allocated already."""
    free, total = torch.cuda.mem_get_info(device)
    limit = torch.cuda.get_per_process_memory_fraction(torch.cuda.current_device()) * total
    return int(min(free + torch.cuda.memory_reserved(device), limit))


def target_machine(cfg: DictConfig) -> Machine:
    """Return what a run of a sweep will compute on, by `about.device`, its launcher and `cluster`.

    The GPU of a SLURM job is taken to compute bfloat16. Its memory is not known.
    """
    num_cores = cfg.cluster.cpus_per_task
    if OmegaConf.select(cfg, DEVICE) != "gpu":
        return cpu(num_cores, num_cores)
    if not is_slurm(cfg) and torch.cuda.is_available():
        return this_machine(torch.device("cuda"))
    return Machine("gpu", "the GPU of the job", 0, 0, True, True, "sdpa", num_cores, num_cores)
