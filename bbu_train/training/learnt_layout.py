"""What a run has learnt about its device's memory, kept in its folder for when it is resumed."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bbu_train.errors import InputError
from bbu_train.runtime import distributed
from bbu_train.runtime.atomic_write import atomic_write

FILE = "learnt_layout.json"


@dataclass(frozen=True)
class Adjustment:
    """A number that was changed at `step` because `asked`, which the config or auto gave, did not fit."""

    asked: int
    taken: int
    step: int


@dataclass(frozen=True)
class Device:
    """The device that a run trains on: its kind ("cpu" or "cuda"), its name, and the bytes that it has."""

    kind: str
    name: str
    total_bytes: int

    @classmethod
    def of(cls, device: torch.device) -> "Device":
        if device.type != "cuda":
            return cls(device.type, "CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        properties = torch.cuda.get_device_properties(device)
        return cls(device.type, properties.name, properties.total_memory)

    def __str__(self) -> str:
        return f"{self.name} with {self.total_bytes / 2**30:.1f} GiB"


@dataclass(frozen=True)
class LearntLayout:
    """Micro-batches of all ranks together, and samples in a batch of an evaluation; None: nothing was learnt."""

    num_parts: Adjustment | None = None
    eval_batch_size: Adjustment | None = None

    @classmethod
    def read(cls, folder: Path, device: Device) -> "LearntLayout":
        """Return what was learnt in this folder on a device of this kind with at least as much memory; else nothing.

        Raises InputError if the file is damaged.
        """
        try:
            stored = json.loads((folder / FILE).read_text())
            kind, num_bytes = stored["device"]["kind"], stored["device"]["total_bytes"]
            learnt = cls(*(stored[name] and Adjustment(**stored[name]) for name in ("num_parts", "eval_batch_size")))
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder / FILE} is damaged ({error!r}): delete it, and the run learns it again."
            ) from error
        return learnt if (device.kind == kind and device.total_bytes <= num_bytes) else cls()

    def write(self, folder: Path, device: Device) -> None:
        atomic_write(folder / FILE, json.dumps({"device": asdict(device), **asdict(self)}, indent=1) + "\n")

    def num_micro_batches(self, num_asked: int) -> int:
        """Return the micro-batches of each rank, where the config or auto asks for `num_asked`."""
        return max(num_asked, math.ceil(self.num_parts.taken / distributed.world_size()) if self.num_parts else 0)

    def summary(self) -> str | None:
        """Say in a line what was learnt, or return None."""
        texts = []
        if (parts := self.num_parts) is not None:
            texts.append(f"from step {parts.step + 1} on, {parts.taken} micro-batches a step instead of {parts.asked}")
        if (size := self.eval_batch_size) is not None:
            texts.append(f"from step {size.step} on, evaluation batches of {size.taken} instead of {size.asked}")
        return f"the device ran out of memory; {'; '.join(texts)}" if texts else None
