"""A trace of a few steps: what the host and the device did, and when."""

import logging
from pathlib import Path

from torch.profiler import profile, schedule

log = logging.getLogger(__name__)
NUM_STEPS = 3
MOST_WAITED = 8  # steps before it, in which kernels are compiled and memory is taken


def start(path: Path, num_steps_left: int) -> profile:
    """A profiler whose `step()` is to be called after each step, and `stop()` at the end.

    It writes one trace of NUM_STEPS steps to `path`, in the format of chrome://tracing, gzipped. A run of fewer steps
    than that, and one to warm up, gives a shorter trace.
    """
    waited = min(MOST_WAITED, max(0, num_steps_left - NUM_STEPS - 1))

    def write(profiler: profile) -> None:
        profiler.export_chrome_trace(str(path))
        log.info("the trace is in %s; open it in https://ui.perfetto.dev", path)

    when = schedule(wait=waited, warmup=1, active=NUM_STEPS, repeat=1)
    profiler = profile(schedule=when, on_trace_ready=write)
    profiler.start()
    return profiler
