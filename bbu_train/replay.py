"""`python -m bbu_train.replay <folder> ...`: send what MLflow lacks of runs that ended while it did not answer.

A folder is that of a run, or any above: `outputs/lr_groups`, `outputs`. A run that was killed before it could say how
it ended is not among them: `resume=<folder>` goes on with it, and sends what it lacks.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate

from bbu_train.runs import folder as run_folder
from bbu_train.tracker.mlflow import UNSENT


def replay(folders: Sequence[str]) -> int:
    """The exit code: 1 if anything is still missing."""
    waiting = sorted({path.parent for folder in folders for path in Path(folder).rglob(UNSENT)})
    num_failed = 0
    for folder in waiting:
        cfg = run_folder.load(folder)
        tracker = instantiate(cfg.tracker.mlflow, _convert_="all")
        sent = tracker.replay()
        num_failed += not sent
        print(f"{folder}: {'sent' if sent else tracker.stored.failure}", flush=True)
    if not waiting:
        print(f"MLflow lacks nothing of the runs that ended in {', '.join(folders)}.")
    return 1 if num_failed else 0


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    sys.exit(replay(sys.argv[1:]))
