"""Which weights `init` means, and their hash, which is a part of the run's identity."""

import hashlib
import json
import re
from pathlib import Path

from omegaconf import DictConfig

from bbu_train.errors import InputError
from bbu_train.runs import exported
from bbu_train.runs import folder as run_folder

CHECKPOINT = re.compile(r"step-(\d+)")


def locate(init: str) -> Path:
    """Return the folder of the weights: of a checkpoint, or of an exported model.

    `init` is a run's folder, one of its checkpoints, or an exported model. Of a run, it is the best checkpoint by the
    run's own `checkpoint.best_metric`, or the last one if none was evaluated. Raises InputError if there is none.
    """
    given = Path(init).expanduser()
    if CHECKPOINT.fullmatch(given.name) and (given.parent.parent / run_folder.CONFIG).is_file():
        if not given.is_dir():
            raise InputError(f"init={init}: the run has no such checkpoint. init={given.parent.parent} takes its best.")
        return given.resolve()
    folder = run_folder.on_disk(given)
    if not folder.is_dir():
        raise InputError(f"init={init}: there is no such folder. Expected a run, a checkpoint or an exported model.")
    if (folder / exported.HEAD / exported.RECORD).is_file():
        return folder.resolve()
    if (folder / "config.json").is_file():
        raise InputError(
            f"init={init} holds a model in the published layout, and none that bbu_train exported. Give "
            f"model.checkpoint={init} model.weights=pretrained."
        )
    return _checkpoint_of_run(run_folder.load(folder), init)


def _checkpoint_of_run(cfg: DictConfig, init: str) -> Path:
    from hydra.utils import instantiate  # the component imports torch: only a run that begins with `init` waits for it

    checkpoints = instantiate(cfg.checkpoint)
    if (saved := checkpoints.best() or checkpoints.latest()) is None:
        raise InputError(f"init={init}: the run has no complete checkpoint in {checkpoints.folder}.")
    return saved.folder.resolve()


def run_of(weights: Path) -> tuple[Path, str]:
    """Return the folder with the config of the run that made these weights, and the config's file name."""
    if CHECKPOINT.fullmatch(weights.name):
        return weights.parent.parent, run_folder.CONFIG
    return weights / exported.HEAD, exported.RUN


def digest(weights: Path) -> str:
    """Return 16 hexadecimal digits for the weights in a folder that `locate` returned.

    They come from the SHA-256 sums that were noted when the files were written, so nothing large is read. The files are
    compared with these sums when they are loaded.
    """
    if CHECKPOINT.fullmatch(weights.name):
        try:
            files = json.loads((weights / "manifest.json").read_text(encoding="utf-8"))["files"]
            sums = {"model.safetensors": files["model.safetensors"]["sha256"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"init={weights}: its manifest.json is missing or damaged. Give another checkpoint."
            ) from error
    else:
        sums = exported.read_record(weights).files
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]
