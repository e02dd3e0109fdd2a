"""Committed checkpoints: what their folders are called, and reading them. Damage is reported, never skipped."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bbu_train.errors import InputError

MANIFEST = "manifest.json"
FILES = WEIGHTS, STATE = "model.safetensors", "state.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint. Its files are read on demand, and a damaged file raises InputError when it is read."""

    folder: Path
    step: int

    @property
    def metrics(self) -> dict[str, float]:
        return self._manifest()["metrics"]

    def weights(self) -> dict[str, Tensor]:
        """Map the weights into memory, after checking the file's size and checksum against the manifest."""
        self._verify(WEIGHTS)
        return self.map_weights()

    def state(self) -> dict[str, Any]:
        """Map the nested state into memory, after checking the file's size and checksum against the manifest."""
        self._verify(STATE)
        return self.map_state()

    def verify(self) -> None:
        """Check both files. One process of a run does: the others may use `map_weights` and `map_state`."""
        for name in FILES:
            self._verify(name)

    def map_weights(self) -> dict[str, Tensor]:
        """Map the weights into memory, unverified. A tensor is read when it is used, and the kernel may drop it."""
        return safetensors.torch.load_file(self.folder / WEIGHTS, device="cpu")

    def map_state(self) -> dict[str, Any]:
        """Map the nested state into memory, unverified, as `map_weights` does."""
        return torch.load(str(self.folder / STATE), map_location="cpu", weights_only=True, mmap=True)

    def _manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        try:
            manifest = json.loads(path.read_text())
            complete = manifest["step"] == self.step and isinstance(manifest["metrics"], dict)
            complete = complete and all(manifest["files"][name].keys() == {"bytes", "sha256"} for name in FILES)
        except FileNotFoundError:
            raise self._damage_error(path, "it is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            complete = False
        if not complete:
            raise self._damage_error(path, "it is not a valid manifest")
        return manifest

    def _verify(self, name: str) -> None:
        path = self.folder / name
        expected = self._manifest()["files"][name]
        if not path.is_file():
            raise self._damage_error(path, "it is missing")
        if (size := path.stat().st_size) != expected["bytes"]:
            raise self._damage_error(path, f"it has {size} bytes, expected {expected['bytes']}")
        if sha256(path) != expected["sha256"]:
            raise self._damage_error(path, "its contents have changed (the SHA-256 differs)")

    def _damage_error(self, path: Path, problem: str) -> InputError:
        older = [checkpoint for checkpoint in list_committed(self.folder.parent) if checkpoint.step < self.step]
        remedy = (
            f"The next older checkpoint is {older[-1].folder}: to use it, delete the folder {self.folder}"
            if older
            else f"There is no older checkpoint: restore the file from a copy, or delete the folder {self.folder} "
            "and start again"
        )
        return InputError(f"The checkpoint of step {self.step} is damaged: {path}: {problem}. {remedy}.")


def list_committed(folder: Path) -> list[Checkpoint]:
    """List the committed checkpoints, oldest first.

    A `.ready-*` folder counts if there is no other of its step: a kill came between the two renames of `_commit`.
    """
    if not folder.is_dir():
        return []
    by_step: dict[int, Checkpoint] = {}
    for path in folder.iterdir():
        if (match := re.fullmatch(r"(\.ready-)?step-(\d+)", path.name)) and path.is_dir():
            step, is_ready = int(match[2]), match[1] is not None
            if not (is_ready and step in by_step):
                by_step[step] = Checkpoint(path, step)
    return [by_step[step] for step in sorted(by_step)]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
