"""A tracker that looks at the clock at each step and, for two steps at the end, at the device."""

import json
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class Stopwatch:
    """Writes stopwatch.json: the time of each logged step, and the device's busy seconds in one step of two."""

    def __init__(self, folder: str, profiled_step: int):
        self.path = Path(folder) / "stopwatch.json"
        self.profiled_step = profiled_step
        self.times: dict[int, float] = {}
        self.profile = profile(activities=[ProfilerActivity.CUDA])
        self.device_seconds = None

    def open(self, config: dict, step: int) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.times[step] = time.perf_counter()
        if step == self.profiled_step:
            torch.cuda.synchronize()
            self.profile.start()
        if step == self.profiled_step + 2:
            torch.cuda.synchronize()
            self.profile.stop()
            kernels = [event for event in self.profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
            # Annotations of ranges lie over the kernels and would count twice.
            busy = sum(event.device_time for event in kernels if not event.name.startswith("Optimizer."))
            self.device_seconds = busy / 2 / 1e6

    def close(self, state: str) -> None:
        self.path.write_text(json.dumps({"times": self.times, "device_seconds": self.device_seconds}))
