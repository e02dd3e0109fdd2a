"""A tracker that takes the time of each step, and profiles the device for two steps at the end.

Not a program of its own: `python benchmarks/throughput.py` adds it to its runs.
"""

import ctypes
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


class Stopwatch:
    """Writes stopwatch.json into `folder`: time and energy at each logged step, and a profile of the device.

    The profile covers the two steps after `profiled_step` and is per step: seconds by kernel, and idle seconds by the
    kernel that ends them.
    """

    def __init__(self, folder: str, profiled_step: int):
        self.path = Path(folder) / "stopwatch.json"
        self.profiled_step = profiled_step
        self.times: dict[int, float] = {}
        self.joules: dict[int, float] = {}
        self.profile = profile(activities=[ProfilerActivity.CUDA])
        self.kernel_seconds: Counter[str] = Counter()
        self.idle_seconds: Counter[str] = Counter()

    def open(self, config: dict[str, Any], step: int) -> None: ...

    def sync(self) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.times[step] = time.perf_counter()
        self.joules[step] = _joules()
        if step == self.profiled_step:
            torch.cuda.synchronize()
            self.profile.start()
        if step == self.profiled_step + 2:
            torch.cuda.synchronize()
            self.profile.stop()
            self._add_up([event for event in self.profile.events() if event.device_type == DeviceType.CUDA])

    def _add_up(self, events: list[Any]) -> None:
        # Annotated ranges overlap the kernels and would count them twice.
        kernels = [event for event in events if not event.name.startswith("Optimizer.")]
        end = None
        for event in sorted(kernels, key=lambda event: event.time_range.start):
            self.kernel_seconds[event.name] += event.device_time / 2 / 1e6
            if end is not None and event.time_range.start > end:
                self.idle_seconds[event.name] += (event.time_range.start - end) / 2 / 1e6
            end = max(end or 0, event.time_range.end)

    def close(self, state: str) -> None:
        result = {
            "times": self.times,
            "joules": self.joules,
            "device_seconds": self.kernel_seconds.total(),
            "idle_total": self.idle_seconds.total(),
            "kernel_seconds": dict(self.kernel_seconds.most_common(60)),
            "idle_seconds": dict(self.idle_seconds.most_common(60)),
        }
        self.path.write_text(json.dumps(result))


def _joules() -> float:
    """Return the energy that the first GPU has drawn since its driver was loaded."""
    library = ctypes.CDLL("libnvidia-ml.so.1")
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    library.nvmlInit_v2()
    library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle))
    library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
    return millijoules.value / 1000
