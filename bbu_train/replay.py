"""`python -m bbu_train.replay <folder> ...`: send to MLflow what it missed of runs that ended while it was down.

A folder is a run's, or one above: `outputs/lr_groups`, `outputs`. A run that was killed is not included, because it
could not record how it ended: `resume=<folder>` resumes it and sends what is missing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

from bbu_train.runs import folder as run_folder
from bbu_train.tracker.mlflow import UNSENT


def replay(folders: Sequence[str]) -> int:
    """Send what is missing of every run below these folders. Return the exit code: 1 if something is still missing."""
    run_folders = sorted({path.parent for folder in folders for path in Path(folder).rglob(UNSENT)})
    num_failed = 0
    for folder in run_folders:
        cfg = run_folder.load(folder)
        tracker = instantiate(cfg.tracker.mlflow, _convert_="all")
        is_sent = tracker.replay(OmegaConf.to_container(cfg, resolve=True))
        num_failed += not is_sent
        print(f"{folder}: {'sent' if is_sent else tracker.uploader.failure}", flush=True)
    if not run_folders:
        print(f"MLflow lacks nothing of the runs that ended in {', '.join(folders)}.")
    return 1 if num_failed else 0


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    sys.exit(replay(sys.argv[1:]))
