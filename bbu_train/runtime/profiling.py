"""Recording a trace of a few steps: what the host and the device did, and when."""

import logging
from pathlib import Path

from torch.profiler import profile, schedule

log = logging.getLogger(__name__)
NUM_STEPS = 3
MAX_STEPS_BEFORE = 8  # steps that are not recorded: kernels are compiled and memory is allocated in them


def start(path: Path, num_steps_left: int) -> profile:
    """Start a profiler. Call its `step()` after each training step, and `stop()` at the end.

    It writes a trace of NUM_STEPS steps to `path`, gzipped, in the format of chrome://tracing. The trace is shorter if
    the run has too few steps left for that and one step of warm-up.
    """
    num_before = min(MAX_STEPS_BEFORE, max(0, num_steps_left - NUM_STEPS - 1))

    def write(profiler: profile) -> None:
        profiler.export_chrome_trace(str(path))
        log.info("the trace is in %s; open it in https://ui.perfetto.dev", path)

    steps = schedule(wait=num_before, warmup=1, active=NUM_STEPS, repeat=1)
    profiler = profile(schedule=steps, on_trace_ready=write)
    profiler.start()
    return profiler
