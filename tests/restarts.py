"""Runs of two ranks of which one runs out of memory, for the override FAILS."""

import json
import os
from pathlib import Path

import torch
from whole_runs import leave_out_plots

from bbu_train.engine.ddp import DdpEngine

FAILS = "engine._target_=restarts.FailingEngine"
REPLACED = 77  # the exit code of a process that would have replaced itself


class FailingEngine(DdpEngine):
    """Runs out of memory on rank 1 in the second step of its process, unless a step has two micro-batches on a rank."""

    def backward(self, objective: torch.Tensor) -> None:
        if os.environ["RANK"] == "1" and self.num_micro_batches == self.optimizer.num_updates == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        super().backward(objective)


def end_instead_of_exec(note: str) -> None:
    """End this process where it would become another one, and write down as what: a test starts that one faster."""
    leave_out_plots()

    def end(program: str, command: list[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if name.startswith("BBU_")}
        content = json.dumps({"arguments": command[2:], "environment": environment})
        Path(f"{note}-{os.environ['RANK']}.json").write_text(content)
        os._exit(REPLACED)

    os.execv = end
