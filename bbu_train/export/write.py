"""The files of an export."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from bbu_train.errors import InputError
from bbu_train.export import model_card, rounding
from bbu_train.export.trained import BACKBONE, TrainedWeights
from bbu_train.model import published
from bbu_train.runs import exported
from bbu_train.runs import folder as run_folder
from bbu_train.runtime.atomic_folder import open_folder_atomically

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
KEPT = ("git_commit", "choices", "settings")
COUNTS = "num_objects_by_class"
"""What head/environment.json keeps of the run's: what made it, what auto took, and the COUNTS of each split."""


def write(trained: TrainedWeights, form: str, dtype: str, to: Path) -> str:
    """Write the folder `to`, and return what there is to say of it.

    Raises InputError if it cannot be written, as on a full disk. Then there is what was there before.
    """
    weights, costs = rounding.cast(trained.backbone, DTYPES[dtype], published.part_of)
    try:
        with open_folder_atomically(to) as folder:
            (folder / exported.HEAD).mkdir()
            _write_files(trained, form, weights, folder)
    except (OSError, SafetensorError) as error:
        place = next(each for each in to.parents if each.is_dir())
        raise InputError(
            f"The model could not be written to {to}: {error} ({shutil.disk_usage(place).free / 1e9:.1f} GB are free "
            "there without it). Make room or mend the disk, and export again."
        ) from error
    size = sum(path.stat().st_size for path in exported.weight_files(to)) / 1e9
    lines = [f"checkpoint  {trained.saved.folder}", f"weights     {rounding.as_text(dtype, costs)}"]
    return "\n".join([*lines, f"result      {to}, {size:.3g} GB; {exported.HEAD}/{exported.CARD} says how to load it"])


def _write_files(trained: TrainedWeights, form: str, weights: Mapping[str, Tensor], folder: Path) -> None:
    head = folder / exported.HEAD
    cfg = run_folder.load(trained.folder)
    environment = _shortened(run_folder.read_environment(trained.folder))
    (head / exported.RUN).write_text(run_folder.as_yaml(cfg), encoding="utf-8")
    (head / run_folder.ENVIRONMENT).write_text(json.dumps(environment, indent=1, ensure_ascii=False), encoding="utf-8")
    own = dict(trained.head)
    if form == exported.SERVABLE:
        _write_published(trained, weights, folder)
    else:
        own |= {f"{BACKBONE}{name}": weight for name, weight in weights.items()}
    if own:
        contiguous = {name: weight.contiguous() for name, weight in own.items()}
        safetensors.torch.save_file(contiguous, head / exported.WEIGHTS, metadata={"format": "pt"})
    for path in exported.weight_files(folder):
        path.chmod((head / exported.RUN).stat().st_mode)  # safetensors makes files for their owner alone
    card = model_card.render(cfg, environment, trained.saved.step, trained.saved.metrics, form)
    (head / exported.CARD).write_text(card, encoding="utf-8")
    exported.write_record(folder, form, trained.saved.step, trained.saved.metrics)


def _write_published(trained: TrainedWeights, weights: Mapping[str, Tensor], folder: Path) -> None:
    run, network = trained.run, trained.run.cfg.model.network
    tokenizer = run.preprocessing.tokenizer
    end = run.make_builder().tokenizer.end
    published.write_model(folder, trained.config, weights, tokenizer.pad_token_id, end)
    published.write_preprocessing(folder, network.checkpoint, network.weights, tokenizer, run.picture_format)


def _shortened(environment: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: environment[key] for key in KEPT if key in environment}
    splits = environment.get("data", {}).get("splits", {})
    counts = {name: {COUNTS: each[COUNTS]} for name, each in splits.items()}
    return kept | {"data": {"splits": counts}}
