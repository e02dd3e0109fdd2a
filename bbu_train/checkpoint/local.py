"""Checkpoints in a folder: committed by a rename, verified by checksum; the last few and the best are kept.

The process may be killed at any moment. A checkpoint is written under a hidden name, flushed to disk and only then
renamed to `step-00000100`. A folder with such a name was therefore complete once; if it is not now, it is damaged, and
damage is reported, never skipped. Hidden names are `.writing-*` (incomplete), `.ready-*` (complete, about to replace a
checkpoint of the same step) and `.deleting-*`.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from bbu_train.checkpoint.committed import FILES, MANIFEST, STATE, WEIGHTS, Checkpoint, list_committed, sha256
from bbu_train.checkpoint.savable import check_state, check_weights
from bbu_train.errors import InputError, all_problems, listed
from bbu_train.ops.numbers import is_count
from bbu_train.runtime.atomic_write import flush, make_folder


class LocalCheckpoints:
    """The checkpoints of one run, in `folder`. Any number of processes may read, and one may save.

    `best_metric` is a name in the saved metrics, and `best_mode` says whether its best value is the "max" or the "min".
    """

    def __init__(self, folder: Path | str, keep_last: int, best_metric: str, best_mode: str) -> None:
        problems = []
        if not is_count(keep_last, 1):
            problems.append(f"checkpoint.keep_last={keep_last}: expected a whole number of at least 1, the newest")
        if best_mode not in ("max", "min"):
            problems.append(f"checkpoint.best_mode={best_mode}: expected max or min")
        if problems:
            raise all_problems("The checkpoints", problems, "Set these keys in conf/checkpoint or as overrides.")
        self.folder = Path(folder)
        self.keep_last = keep_last
        self.best_metric = best_metric
        self.best_mode = best_mode

    def save(self, step: int, weights: dict[str, Tensor], state: dict[str, Any], metrics: dict[str, float]) -> Path:
        """Commit a checkpoint, then delete those that are neither among the last `keep_last` nor the best.

        `state` may nest dicts, lists, tensors, numbers, strings and None. Checkpoints of later steps are deleted: they
        were written before the run went back to an older checkpoint, and would otherwise count as the newest. Raises
        InputError if a file cannot be written, such as on a full disk, and after the commit if the manifest of an older
        checkpoint is damaged, because the best is then unknown.
        """
        check_weights(weights)
        check_state(state, "state")
        try:
            return self._save(step, weights, state, metrics)
        except (OSError, SafetensorError) as error:
            raise self._write_error(step, error) from error

    def _save(self, step: int, weights: dict[str, Tensor], state: dict[str, Any], metrics: dict[str, float]) -> Path:
        make_folder(self.folder)
        self._clean_up_after_a_kill()
        writing, final = (self.folder / f"{prefix}step-{step:08d}" for prefix in (".writing-", ""))
        writing.mkdir()
        # safetensors takes contiguous tensors only, and slices and transposed matrices are not.
        contiguous = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
        safetensors.torch.save_file(contiguous, writing / WEIGHTS)
        _save_state(state, writing / STATE)
        (writing / WEIGHTS).chmod((writing / STATE).stat().st_mode)  # safetensors makes files for their owner alone
        files = {name: _fingerprint(writing / name) for name in FILES}
        metrics = {name: float(value) for name, value in metrics.items()}
        (writing / MANIFEST).write_text(json.dumps({"step": step, "metrics": metrics, "files": files}, indent=1))
        for name in (*FILES, MANIFEST, "."):
            flush(writing / name)
        self._commit(writing, final)
        self._prune(step)
        return final

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint, damaged or not, or None if there is none."""
        return max(list_committed(self.folder), key=lambda checkpoint: checkpoint.step, default=None)

    def best(self) -> Checkpoint | None:
        """Return the best checkpoint by `best_metric`, the newest of equally good ones, or None if none qualifies.

        Checkpoints that lack the metric (saved between two evaluations) or whose metric is NaN are ignored.
        """
        sign = 1 if self.best_mode == "max" else -1
        candidates = [
            (sign * value, checkpoint.step, checkpoint)
            for checkpoint in list_committed(self.folder)
            if not math.isnan(value := checkpoint.metrics.get(self.best_metric, math.nan))
        ]
        return max(candidates, default=(0, 0, None))[2]

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints there are."""
        return sorted(checkpoint.step for checkpoint in list_committed(self.folder))

    def at(self, step: int) -> Checkpoint:
        """Return the checkpoint of this step. If there is none, raise InputError with the steps that were saved."""
        committed = {checkpoint.step: checkpoint for checkpoint in list_committed(self.folder)}
        if step not in committed:
            steps = listed(self.steps()) or "none"
            raise InputError(f"{self.folder} has no checkpoint of step {step}. Steps saved there: {steps}.")
        return committed[step]

    def _write_error(self, step: int, error: Exception) -> InputError:
        """Delete what was written of a checkpoint, and describe why it is not complete."""
        for unfinished in self.folder.glob(".writing-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        place = next(folder for folder in (self.folder, *self.folder.parents) if folder.is_dir())
        newest = self.latest()
        return InputError(
            f"The checkpoint of step {step} could not be written to {self.folder}: {error} "
            f"({shutil.disk_usage(place).free / 1e9:.1f} GB are free there without it). "
            + (f"The newest checkpoint is that of step {newest.step}. " if newest else "There is no older checkpoint. ")
            + "Make room or mend the disk, and resume the run."
        )

    def _commit(self, writing: Path, final: Path) -> None:
        """Rename the folder `writing` to `final`.

        A folder cannot be renamed onto one that has files. So a checkpoint that replaces another one is called
        `.ready-*` until the old one has been renamed.
        """
        if not final.exists():
            writing.rename(final)
            flush(self.folder)
            return
        ready = writing.rename(self.folder / f".ready-{final.name}")
        flush(self.folder)
        replaced = _hide(final)
        ready.rename(final)
        flush(self.folder)
        shutil.rmtree(replaced)

    def _prune(self, newest: int) -> None:
        """Delete the checkpoints after step `newest`, and the older ones except the last few and the best."""
        for checkpoint in list_committed(self.folder):
            if checkpoint.step > newest:
                shutil.rmtree(_hide(checkpoint.folder))
        best = self.best()
        for checkpoint in list_committed(self.folder)[: -self.keep_last]:
            if checkpoint != best:
                shutil.rmtree(_hide(checkpoint.folder))

    def _clean_up_after_a_kill(self) -> None:
        """Finish the second rename of `_commit` where a kill prevented it, and delete incomplete folders."""
        for ready in self.folder.glob(".ready-*"):
            final = self.folder / ready.name.removeprefix(".ready-")
            if not final.exists():
                ready.rename(final)
        for prefix in (".ready-*", ".writing-*", ".deleting-*"):
            for leftover in self.folder.glob(prefix):
                shutil.rmtree(leftover)


def _hide(folder: Path) -> Path:
    """Rename a checkpoint before it is deleted, so that no half-deleted folder has a checkpoint's name."""
    return folder.rename(folder.with_name(f".deleting-{folder.name}"))


def _save_state(state: dict[str, Any], path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:
        if type(error) is RuntimeError:  # torch reports a failed write so; errors of a GPU are of derived classes
            raise OSError(f"torch.save: {error}") from error
        raise


def _fingerprint(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
