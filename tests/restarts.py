"""`python -m restarts <arguments>`: `python -m bbu_train <arguments>`, in which rank 1 runs out of memory in step 2."""

import json
import os
import runpy
from pathlib import Path

import torch
from whole_runs import leave_out_plots

REPLACED = 77  # the exit code of a process that would have replaced itself


def fail_on_rank_1() -> None:
    """Run out of memory before the second backward pass of this process, unless there are two micro-batches a step."""
    from bbu_train.engine.ddp import DdpEngine

    leave_out_plots()
    backward = DdpEngine.backward

    def fail_or_go_back(engine: DdpEngine, objective: torch.Tensor) -> None:
        if os.environ["RANK"] == "1" and engine.num_micro_batches == engine.optimizer.num_updates == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        backward(engine, objective)

    DdpEngine.backward = fail_or_go_back


def fail_and_end_instead_of_exec(note: str) -> None:
    """End this process where it would become another one, and write down as what: a test starts that one faster."""
    fail_on_rank_1()

    def end(program: str, command: list[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if name.startswith("BBU_")}
        content = json.dumps({"arguments": command[2:], "environment": environment})
        Path(f"{note}-{os.environ['RANK']}.json").write_text(content)
        os._exit(REPLACED)

    os.execv = end


if __name__ == "__main__":
    fail_on_rank_1()
    runpy.run_module("bbu_train", run_name="__main__", alter_sys=True)
