"""A check that the weights named in a config exist. It does not import torch, so that an error appears at once."""

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

from bbu_train.errors import InputError

HUB_TIMEOUT_SECONDS = 3.0  # a hub that is reachable answers in well under one second
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
MIN_BIN_BYTES = 1024  # a git-lfs pointer has some 130 bytes


def require(checkpoint: str, weights: str) -> None:
    """Raise InputError unless `checkpoint`, a local folder or a name on the hub, can be loaded or downloaded.

    `weights=random` needs nothing. A copy in the hub's cache needs no network.
    """
    if problem := what_is_missing(checkpoint, weights):
        raise InputError(
            f"The weights of {checkpoint} are missing ({problem}): give the folder of a downloaded copy with "
            "model.checkpoint=/path/to/folder, or fetch them where there is a network with "
            f"`hf download {_name_to_download(checkpoint)}`, or take the shape alone with model.weights=random."
        )


def what_is_missing(checkpoint: str, weights: str) -> str:
    """Say why the weights cannot be loaded, or return an empty string."""
    if weights == "random":
        return ""
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return _problem_of_folder(folder)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint) and not checkpoint.startswith("."):
        return _problem_of_hub(checkpoint)
    return "there is no such folder, and a name on the hub would have the form <owner>/<name>"


def _name_to_download(checkpoint: str) -> str:
    return checkpoint if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", checkpoint) else "Qwen/Qwen2.5-VL-3B-Instruct"


def _problem_of_folder(folder: Path) -> str:
    """Say what a checkpoint's folder lacks, or return an empty string."""
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not ((folder / "tokenizer.json").is_file() or all((folder / f).is_file() for f in ("vocab.json", "merges.txt"))):
        missing.append("tokenizer.json, or vocab.json and merges.txt")
    files = _weight_files(folder)
    absent = [path.name for path in files if not path.is_file()]
    incomplete = [path.name for path in files if path.is_file() and not _is_complete(path)]
    missing += absent if files else ["*.safetensors or *.bin"]
    problems = [f"{folder} lacks {', '.join(missing)}"] if missing else []
    if incomplete:
        problems.append(f"{', '.join(incomplete)} in {folder} is cut off or a git-lfs pointer")
    return "; ".join(problems)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights: all shards that an index names, or the single file."""
    for name in INDEXES:
        if (folder / name).is_file():
            shards = json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / shard for shard in sorted(set(shards))]
    return [folder / name for name in SINGLE_FILES if (folder / name).is_file()][:1]


def _is_complete(path: Path) -> bool:
    """Whether a safetensors file has the length that its header states.

    Other files are only checked for not being a git-lfs pointer. No tensor is read, and `framework="numpy"` avoids
    importing torch.
    """
    if path.suffix != ".safetensors":
        return path.stat().st_size > MIN_BIN_BYTES
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return True
    except SafetensorError:
        return False


def _problem_of_hub(name: str) -> str:
    """Say why a repository is neither in the hub's cache nor can be downloaded, or return an empty string."""
    import huggingface_hub
    from huggingface_hub import constants

    cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
    cache_problem = _problem_of_folder(Path(cached).parent) if isinstance(cached, str) else "nothing in the hub's cache"
    if not cache_problem:
        return ""
    if constants.HF_HUB_OFFLINE:
        return f"{cache_problem}, and HF_HUB_OFFLINE forbids asking the hub"
    url = huggingface_hub.hf_hub_url(name, "config.json")
    hub_problem = _problem_within(
        HUB_TIMEOUT_SECONDS, lambda: huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT_SECONDS)
    )
    return f"{cache_problem}, and {constants.ENDPOINT} {hub_problem}" if hub_problem else ""


def _problem_within(seconds: float, request: Callable[[], object]) -> str:
    """Say why `request` failed or did not return in time, or return an empty string.

    It runs in a thread because the look-up of a host name has no timeout of its own.
    """
    problem = [f"did not answer within {seconds:g} s"]

    def run() -> None:
        try:
            request()
            problem[0] = ""
        except Exception as error:  # any failure of the network goes into the message to the user
            problem[0] = f"says {type(error).__name__}"

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return problem[0]
