"""Checkpoints in a folder: committed by one rename, verified by checksum, the last few and the best kept.

A kill may come at any moment. A checkpoint is written under a hidden name, flushed to the disk, and only then renamed
to `step-00000100`; so whatever bears such a name was once complete, and what is wrong with it now is damage, which is
reported and never skipped. Hidden names are `.writing-*` (not complete), `.ready-*` (complete, and about to take the
place of an older one of the same step) and `.deleting-*`.
"""

import hashlib
import json
import math
import re
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bbu_train.errors import InputError
from bbu_train.runtime.atomic_write import flush

MANIFEST = "manifest.json"
FILES = WEIGHTS, STATE = "model.safetensors", "state.pt"


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint. Nothing is read before it is asked for; damage raises InputError when it is read."""

    folder: Path
    step: int

    @property
    def metrics(self) -> dict[str, float]:
        return self._manifest()["metrics"]

    def weights(self) -> dict[str, Tensor]:
        """The tensors on the CPU, after their file's size and checksum were compared with the manifest's."""
        return safetensors.torch.load_file(self._verified(WEIGHTS), device="cpu")

    def state(self) -> dict[str, Any]:
        """The nest that was saved, tensors on the CPU, after its file was compared with the manifest."""
        return torch.load(self._verified(STATE), map_location="cpu", weights_only=True)

    def _manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        try:
            manifest = json.loads(path.read_text())
            complete = manifest["step"] == self.step and isinstance(manifest["metrics"], dict)
            complete = complete and all(manifest["files"][name].keys() == {"bytes", "sha256"} for name in FILES)
        except FileNotFoundError:
            raise self._damaged(path, "it is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            complete = False
        if not complete:
            raise self._damaged(path, "it is not the manifest that was written")
        return manifest

    def _verified(self, name: str) -> Path:
        path = self.folder / name
        expected = self._manifest()["files"][name]
        if not path.is_file():
            raise self._damaged(path, "it is missing")
        if (size := path.stat().st_size) != expected["bytes"]:
            raise self._damaged(path, f"it has {size} bytes, and {expected['bytes']} were written")
        if _sha256(path) != expected["sha256"]:
            raise self._damaged(path, "its contents are not what was written (another SHA-256)")
        return path

    def _damaged(self, path: Path, what: str) -> InputError:
        older = [saved for saved in _committed(self.folder.parent) if saved.step < self.step]
        remedy = (
            f"The next older checkpoint is {older[-1].folder}: to use that one, delete the folder {self.folder}"
            if older
            else f"There is no older checkpoint: restore the file from a copy, or delete the folder {self.folder} "
            "and begin anew"
        )
        return InputError(f"The checkpoint of step {self.step} is damaged: {path}: {what}. {remedy}.")


class LocalCheckpoints:
    """The checkpoints of one run, in `folder`. Any number of processes may read; only one may save.

    `best_metric` is a name in the saved metrics, and `best_mode` ("max" or "min") says which of its values is best.
    """

    def __init__(self, folder: Path | str, keep_last: int, best_metric: str, best_mode: str):
        if keep_last < 1:
            raise InputError(f"checkpoint.keep_last is {keep_last}: at least the newest (1) has to be kept.")
        if best_mode not in ("max", "min"):
            raise InputError(f'checkpoint.best_mode is "{best_mode}": expected "max" or "min".')
        self.folder = Path(folder)
        self.keep_last = keep_last
        self.best_metric = best_metric
        self.best_mode = best_mode

    def save(self, step: int, weights: dict[str, Tensor], state: dict[str, Any], metrics: dict[str, float]) -> Path:
        """Commit a checkpoint, then delete those that are neither among the last nor the best.

        `state` is a nest of dicts, lists, tensors, numbers, strings and None. Checkpoints of later steps are deleted:
        they were written before the run went back to an older one, and would else pass for the newest. A damaged
        manifest of an older checkpoint raises InputError, after the commit, since the best is then not known.
        """
        _check_weights(weights)
        _check_state(state, "state")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._finish_what_a_kill_left()
        writing, final = (self.folder / f"{prefix}step-{step:08d}" for prefix in (".writing-", ""))
        writing.mkdir()
        # Rows of a slice, or a transposed matrix, are not contiguous, and safetensors takes only what is.
        contiguous = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
        safetensors.torch.save_file(contiguous, writing / WEIGHTS)
        torch.save(state, writing / STATE)
        files = {name: _fingerprint(writing / name) for name in FILES}
        metrics = {name: float(value) for name, value in metrics.items()}
        (writing / MANIFEST).write_text(json.dumps({"step": step, "metrics": metrics, "files": files}, indent=1))
        for name in (*FILES, MANIFEST, "."):
            flush(writing / name)
        self._commit(writing, final)
        self._prune(step)
        return final

    def latest(self) -> Saved | None:
        """The newest, damaged or not; None where nothing was saved."""
        return max(_committed(self.folder), key=lambda saved: saved.step, default=None)

    def best(self) -> Saved | None:
        """The best by `best_metric`, of equals the newest. Those without the metric, or with NaN, do not count: such
        as one that was saved between two evaluations."""
        sign = 1 if self.best_mode == "max" else -1
        candidates = [
            (sign * value, saved.step, saved)
            for saved in _committed(self.folder)
            if not math.isnan(value := saved.metrics.get(self.best_metric, math.nan))
        ]
        return max(candidates, default=(0, 0, None))[2]

    def at(self, step: int) -> Saved:
        """The checkpoint of this step; InputError, with the steps that there are, if there is none."""
        committed = {saved.step: saved for saved in _committed(self.folder)}
        if step not in committed:
            steps = ", ".join(map(str, committed)) or "none"
            raise InputError(f"{self.folder} has no checkpoint of step {step}. Steps saved there: {steps}.")
        return committed[step]

    def _commit(self, writing: Path, final: Path) -> None:
        """A folder cannot be renamed onto a full one; `.ready-*` stands in while the old one makes way."""
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
        for saved in _committed(self.folder):
            if saved.step > newest:
                shutil.rmtree(_hide(saved.folder))
        best = self.best()
        for saved in _committed(self.folder)[: -self.keep_last]:
            if saved != best:
                shutil.rmtree(_hide(saved.folder))

    def _finish_what_a_kill_left(self) -> None:
        for ready in self.folder.glob(".ready-*"):
            final = self.folder / ready.name.removeprefix(".ready-")
            if not final.exists():
                ready.rename(final)
        for prefix in (".ready-*", ".writing-*", ".deleting-*"):
            for leftover in self.folder.glob(prefix):
                shutil.rmtree(leftover)


def _committed(folder: Path) -> list[Saved]:
    """Oldest first. A `.ready-*` counts where a kill left it alone between the two renames of `_commit`."""
    if not folder.is_dir():
        return []
    found = {}
    for path in folder.iterdir():
        if (match := re.fullmatch(r"(\.ready-)?step-(\d+)", path.name)) and path.is_dir():
            step, is_ready = int(match[2]), match[1] is not None
            if not (is_ready and step in found):
                found[step] = Saved(path, step)
    return [found[step] for step in sorted(found)]


def _hide(folder: Path) -> Path:
    """A checkpoint loses its name before it is emptied, so that half a checkpoint never bears one."""
    return folder.rename(folder.with_name(f".deleting-{folder.name}"))


def _fingerprint(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_weights(weights: dict[str, Tensor]) -> None:
    owners: dict[tuple, str] = {}
    for name, tensor in weights.items():
        if tensor.numel():
            owner = owners.setdefault((tensor.device, tensor.data_ptr()), name)
            assert owner == name, f"{owner} and {name} are one tensor under two names: pass tied parameters once"


def _check_state(value: Any, where: str) -> None:
    """What `torch.load(weights_only=True)` would refuse must fail when it is saved, not when it is needed."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            assert type(key) in (str, int), f"{where} has the key {key!r}: keys are strings or integers"
            _check_state(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for position, item in enumerate(value):
            _check_state(item, f"{where}[{position}]")
    else:
        plain = isinstance(value, Tensor) or type(value) in (int, float, bool, str, type(None))
        assert plain, f"{where} is a {type(value).__name__}: expected dicts, lists, tensors, numbers, strings or None"
