"""The folder head/ of an exported model: what bbu_train needs of its run, beside the published files.

No torch is needed here. Beside the files named below, run.yaml and environment.json are those of the run, shortened.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bbu_train.errors import InputError

HEAD = "head"
RECORD, RUN, WEIGHTS, CARD = "export.json", "run.yaml", "model.safetensors", "README.md"
SERVABLE, OWN = FORMS = "servable", "bbu_train"
"""What loads the folder: stock transformers and its servers, or `bbu_train.load` alone."""


@dataclass(frozen=True)
class ExportRecord:
    """What head/export.json holds.

    form     one of FORMS
    step     of the checkpoint
    metrics  of its evaluation, by the names of metrics.jsonl
    files    SHA-256 of each file of weights and of each index, by its path in the exported folder
    """

    form: str
    step: int
    metrics: dict[str, float]
    files: dict[str, str]


def is_exported(folder: Path) -> bool:
    """Whether a model was exported into `folder`. Raises InputError for a published model without its head/."""
    if (folder / HEAD / RECORD).is_file():
        return True
    if (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds a published model without {HEAD}/{RECORD}, which bbu_train needs. Copy the folder {HEAD} "
            "from where the model was exported, or export its run again."
        )
    return False


def write_record(folder: Path, form: str, step: int, metrics: Mapping[str, float]) -> None:
    """Write the record of a folder that is complete otherwise."""
    files = {str(path.relative_to(folder)): sha256(path) for path in weight_files(folder)}
    record = ExportRecord(form, step, dict(metrics), files)
    (folder / HEAD / RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> ExportRecord:
    """Read the record of an exported folder. Raises InputError if it is damaged, or if a file of weights is missing."""
    path = folder / HEAD / RECORD
    try:
        record = ExportRecord(**json.loads(path.read_text(encoding="utf-8")))
        is_whole = record.form in FORMS and isinstance(record.step, int)
        is_whole = is_whole and isinstance(record.metrics, dict) and isinstance(record.files, dict)
    except (ValueError, TypeError):
        is_whole = False
    if not is_whole:
        raise InputError(f"{path} is damaged. Export the run again.")
    _refuse(folder, [f"{name} is missing" for name in record.files if not (folder / name).is_file()])
    return record


def verify(folder: Path, record: ExportRecord) -> None:
    """Raise InputError if a file of weights is not the one that was exported, as after a mix of two exports."""
    _refuse(
        folder,
        [
            f"{name} is not the file that was exported with {HEAD}"
            for name, digest in record.files.items()
            if sha256(folder / name) != digest
        ],
    )


def weight_files(folder: Path) -> Sequence[Path]:
    """Return the files of weights, and the indexes that name their shards."""
    return sorted(path for pattern in ("*.safetensors", "*.safetensors.index.json") for path in folder.rglob(pattern))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse(folder: Path, problems: Sequence[str]) -> None:
    if problems:
        raise InputError(
            f"The model exported into {folder} is not whole: {'; '.join(problems)}. Restore it, or export again."
        )
