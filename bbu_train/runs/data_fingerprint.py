"""The fingerprint of the data that a run reads: a part of its identity, computed without torch and without decoding.

It covers, in the order of the samples: which samples a split has; the bytes of every annotation; and of every picture
its name relative to the root, its size in bytes and its first 4 KiB, and the last 1 KiB of BMP and TIFF, whose size
does not change with their pixels. It does not depend on where the root lies, on times, or on the order in which a file
system lists names.

An edit goes unnoticed only if it keeps the name and size of a picture and lies behind those bytes; or, where the cache
knows the file, if it keeps the size and both times of the file. (A program can set the time of the content's change,
but not that of the inode's change.)

The record of the data (`data_record`) is cached in <outputs>/data/fingerprints/, so that the next time files are only
asked for their size and times; and it is kept in the run's folder, so that a change can be described.
"""

import hashlib
import importlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bbu_train.errors import InputError, all_problems
from bbu_train.runs import data_changes, data_record
from bbu_train.runs.identity import DATA
from bbu_train.runtime.atomic_write import make_folder, open_atomically
from bbu_train.types.files import DataFiles

log = logging.getLogger(__name__)

RECORD = "data.jsonl.gz"
FILES = "bbu_train.data.files"
LOAD = re.compile(r"bbu_train\.data\.(?:\w+\.)*(\w+)\.load")
OUTPUTS = "${outputs}/"  # where data sets that are drawn lie


def fingerprint(cfg: DictConfig, known: dict[Path, str] | None = None) -> str | None:
    """Return 16 hexadecimal digits, or None if the data follows from the config, as synthetic images do.

    `known` holds what this command has computed before, so that the cells of a sweep read their data once. Raises
    InputError if the root or the file of a split cannot be read. Whatever else is missing is for the reader to report,
    which lists all faults; then nothing is cached.
    """
    if not (sources := _data_files(cfg)):
        return None
    cached, known = _cache_path(cfg, sources), {} if known is None else known
    if cached not in known:
        known[cached] = data_record.unchanged_digest(cached, sources) or _compute(cached, sources)
    return known[cached]


def _compute(cached: Path, sources: Sequence[DataFiles]) -> str:
    with tempfile.TemporaryFile() as file:
        digest, is_complete = data_record.write(data_record.rows_of(sources, cached), file)
        if is_complete:
            file.seek(0)
            with suppress(OSError):  # a cache only saves time
                make_folder(cached.parent)
                with open_atomically(cached) as target:
                    shutil.copyfileobj(file, target)
    return digest


def keep_record(cfg: DictConfig, folder: Path) -> None:
    """Write the record of the present data into the folder of a run.

    Raises InputError if the data is not what `cfg` notes: then it changed while the run read it.
    """
    if not (sources := _data_files(cfg)):
        return
    cached = _cache_path(cfg, sources)
    with open_atomically(folder / RECORD) as target:
        digest = data_record.unchanged_digest(cached, sources)
        if digest is None:
            digest, _ = data_record.write(data_record.rows_of(sources, cached), target)
        else:
            with cached.open("rb") as source:
                shutil.copyfileobj(source, target)
        if digest != OmegaConf.select(cfg, DATA):
            raise InputError("The data has changed since this command was given. Give it again.")


def refuse_changed(cfg: DictConfig, folder: Path, known: dict[Path, str] | None = None) -> None:
    """Raise InputError if the data is not what the config of a run notes, with what changed.

    `folder` is the run's: if the run has begun, it holds the record of its data.
    """
    if not _has_changed(cfg, folder, known):
        return
    if not folder.exists():
        raise InputError(f"The data of {folder.name} has changed since its sweep was started. Give its command again.")
    what = f"The data of the run in {folder} is not what it was when the run began"
    raise all_problems(what, _changes(cfg, folder), "Restore the data, or start a new run with the data as it is now.")


def warn_if_changed(cfg: DictConfig, folder: Path) -> None:
    """Log one warning, with what changed, if the data is not what the config of the run in `folder` notes.

    Such data can be scored, but the scores do not compare with those that the run itself has logged.
    """
    if (changes := describe_changes(cfg, folder)) is not None:
        log.warning("The data is not what the run in %s was trained and scored on: %s", folder, changes)


def describe_changes(cfg: DictConfig, folder: Path) -> str | None:
    """Return on one line how the data differs from what the run in `folder` notes, or None if it does not."""
    try:
        return "; ".join(_changes(cfg, folder)) if _has_changed(cfg, folder, None) else None
    except InputError as error:
        return f"it cannot be read: {error}"


def _has_changed(cfg: DictConfig, folder: Path, known: dict[Path, str] | None) -> bool:
    """Whether the data is not what the config of the run notes. A run that notes nothing gets a warning."""
    present, noted = fingerprint(cfg, known), OmegaConf.select(cfg, DATA)
    if present != noted and noted is None:
        log.warning("The run in %s is older than fingerprints of data: its data is taken to be the same.", folder)
    return present != noted and noted is not None


def _changes(cfg: DictConfig, folder: Path) -> list[str]:
    try:
        before = list(data_record.read_rows(folder / RECORD))
        return data_changes.describe(before, data_record.rows_of(_data_files(cfg), None))
    except data_record.DAMAGED:
        return [f"{folder / RECORD} is missing or damaged, so it is unknown what changed"]


def _data_files(cfg: DictConfig) -> list[DataFiles]:
    """Return what each data set in `cfg.data` reads, as the function of its name in FILES says."""
    sources = []
    for key, node in _data_sets("data", cfg.get("data")):
        files, found = importlib.import_module(FILES), LOAD.fullmatch(str(node._target_))
        if found is None or not hasattr(files, found[1]):
            raise InputError(
                f"{key}._target_={node._target_}: expected bbu_train.data.<name>.load, and a function <name> in "
                f"{FILES} that says which files it reads."
            )
        values = OmegaConf.to_container(node, resolve=True)
        assert isinstance(values, dict)
        source = getattr(files, found[1])(**{str(name): value for name, value in values.items() if name != "_target_"})
        if source is None:
            _refuse_root(key, node)
        else:
            sources.append(source)
    return sources


def _refuse_root(key: str, node: DictConfig) -> None:
    """Raise InputError if a data set that is drawn, not read, was given a root: it would write into that folder."""
    root = str(OmegaConf.to_container(node, resolve=False).get("root", OUTPUTS))
    if not root.startswith(OUTPUTS):
        group = "data" if key == "data" else f"data@{key}"
        raise InputError(
            f"{key}.root={root}: {node._target_} draws its own pictures, always in outputs, and reads "
            f"none of yours. Give {group}=jsonl or {group}=voc to read yours; to draw elsewhere give outputs=."
        )


def _data_sets(key: str, node: Any) -> Iterator[tuple[str, DictConfig]]:
    """Yield every data set in a config, however deep, with its key."""
    if not isinstance(node, DictConfig):
        return
    if str(node.get("_target_")).endswith(".load") or (key == "data" and "_target_" in node):
        yield key, node
    for name in node:
        yield from _data_sets(f"{key}.{name}", node.get(name))


def _cache_path(cfg: DictConfig, sources: Sequence[DataFiles]) -> Path:
    location = json.dumps([[str(path.absolute()) for path in source.watched] for source in sources])
    name = hashlib.sha256(location.encode()).hexdigest()[:16]
    return Path(cfg.outputs).expanduser() / "data/fingerprints" / f"{name}.jsonl.gz"
