"""Compiled graphs in one file, which the runs of an outputs folder share, whatever node they run on.

torch keeps compiled graphs in a folder of the node (TORCHINDUCTOR_CACHE_DIR), which a job on another node does not
have. This file carries them there: torch's own archive of graphs, Triton kernels that were generated for them, and
results of autotuning. It lacks the kernels that Triton compiles from a source file (TRITON_CACHE_DIR) and those of
flash-attention 4.

Who can write the file can run code as its reader. So file and folder must belong to this user, and nobody else may
write them.
"""

import hashlib
import json
import logging
import os
import platform
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bbu_train.runtime import distributed
from bbu_train.runtime.atomic_write import open_atomically

FOLDER = ".compile_cache"
COMPILED_PACKAGES = ("model", "head", "loss", "ops")
NUM_STEPS = 2  # of a run, until nearly everything has been compiled
MAX_UNUSED_DAYS = 30  # a file that no run has read or written for so long is deleted
log = logging.getLogger(__name__)


class CompileCache:
    """The file of the graphs that this code, on this kind of device, compiles for `choices`, such as sizes."""

    def __init__(self, outputs: Path, choices: Mapping[str, Any], device: torch.device) -> None:
        what = {"choices": choices, "code": _hash_of_code(), "platform": _platform(device)}
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
        self.path = outputs / FOLDER / key
        self.loaded: set[str] = set()
        self.num_steps = 0

    def load(self) -> None:
        """Put the graphs of the file into torch's folder on this node, if there is a file that can be trusted.

        All ranks call this before anything is compiled; the first of each node reads. A damaged file is ignored, with a
        warning.
        """
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            self._load()
        distributed.barrier()

    def _load(self) -> None:
        try:
            info = torch.compiler.load_cache_artifacts(_read_own(self.path))
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("Compiled graphs of other runs are not taken: %s", error)
            return
        if info is None:
            log.warning("The compiled graphs in %s are damaged, so they are compiled again.", self.path)
            return
        self.loaded = _keys(info)
        log.debug("%s: %d compiled parts", self.path, len(self.loaded))

    def step_done(self) -> None:
        """Write the file after step NUM_STEPS of this process, if rank 0 compiled something that the file lacks."""
        self.num_steps += 1
        if self.num_steps == NUM_STEPS and distributed.is_main():
            self._save()

    def _save(self) -> None:
        saved = torch.compiler.save_cache_artifacts()
        if saved is None or _keys(saved[1]) <= self.loaded:
            return
        folder = self.path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.is_symlink():
                raise PermissionError(f"{folder} is a link. Delete it.")
            _require_own(folder.stat(), folder)
            with open_atomically(self.path) as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(saved[0])
            _delete_unused(folder)
        except OSError as error:
            log.warning("Compiled graphs are not kept for other runs: %s", error)
        self.loaded = _keys(saved[1])


def _read_own(path: Path) -> bytes:
    """Return the content of a file that only this user can have written. Raise PermissionError for another one.

    Both are checked by their descriptors, because a path may name something else a moment later.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as file:
            for each, named in ((folder, path.parent), (descriptor, path)):
                _require_own(os.fstat(each), named)
            os.utime(descriptor)
            return file.read()
    finally:
        os.close(folder)


def _require_own(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid():
        what = f"belongs to user {status.st_uid}, and this process is user {os.geteuid()}"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        what = f"can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    else:
        return
    raise PermissionError(f"{path} {what}, and its content runs as code. Delete it.")


def _keys(info: Any) -> set[str]:
    """Return the keys of all parts of an archive of torch."""
    return {f"{kind} {key}" for kind, keys in info.artifacts.items() for key in keys}


def _hash_of_code() -> str:
    """Return the hash of all modules whose functions are compiled."""
    package, code = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for name in COMPILED_PACKAGES for path in (package / name).rglob("*.py")):
        code.update(path.read_bytes())
    return code.hexdigest()


def _platform(device: torch.device) -> list[Any]:
    """Return the versions and the device that compiled code is made for."""
    versions = [torch.__version__, torch.version.cuda, version("transformers"), platform.python_version()]
    if device.type == "cuda":
        import triton  # comes only with torch for GPUs

        return [*versions, triton.__version__, torch.cuda.get_device_name(device)]
    return [*versions, platform.machine(), torch.backends.cpu.get_cpu_capability()]


def _delete_unused(folder: Path) -> None:
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another run has just renamed or deleted it
            if time.time() - path.stat().st_mtime > MAX_UNUSED_DAYS * 86400:
                path.unlink()
