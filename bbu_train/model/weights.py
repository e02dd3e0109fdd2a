"""Whether the weights that a config names are there, said before torch is imported."""

import json
import re
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from bbu_train.errors import InputError

ANSWER_SECONDS = 3.0  # a hub that is reachable answers in well under one
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


def require(checkpoint: str, weights: str) -> None:
    """Raise InputError unless `checkpoint`, a local folder or a name on the hub, can be loaded or downloaded.

    `weights=random` needs nothing. A copy in the hub's cache needs no network.
    """
    if weights == "random":
        return
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        found = _missing_of_folder(folder)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint) and not checkpoint.startswith("."):
        found = _missing_of_hub(checkpoint)
    else:
        found = "there is no such folder, and it is no name on the hub, which would be <owner>/<name>"
    if found:
        raise InputError(
            f"The weights of {checkpoint} are missing ({found}): give the folder of a downloaded copy with "
            "model.checkpoint=/path/to/folder, or fetch them where there is a network with "
            f"`hf download {_name(checkpoint)}`, or take the shape alone with model.weights=random."
        )


def _name(checkpoint: str) -> str:
    return checkpoint if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", checkpoint) else "Qwen/Qwen2.5-VL-3B-Instruct"


def _missing_of_folder(folder: Path) -> str:
    """What a folder lacks of a checkpoint, or nothing."""
    lacks = []
    if not (folder / "config.json").is_file():
        lacks.append("config.json")
    if not ((folder / "tokenizer.json").is_file() or all((folder / f).is_file() for f in ("vocab.json", "merges.txt"))):
        lacks.append("tokenizer.json, or vocab.json and merges.txt")
    files = _weight_files(folder)
    absent = [path.name for path in files if not path.is_file()]
    cut_off = [path.name for path in files if path.is_file() and not _is_whole(path)]
    lacks += absent if files else ["*.safetensors or *.bin"]
    says = [f"{folder} lacks {', '.join(lacks)}"] if lacks else []
    if cut_off:
        says.append(f"{', '.join(cut_off)} in {folder} is cut off or a git-lfs pointer")
    return "; ".join(says)


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: all shards that the index names, or the one file."""
    for name in INDEXES:
        if (folder / name).is_file():
            shards = json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / shard for shard in sorted(set(shards))]
    return [folder / name for name in SINGLE_FILES if (folder / name).is_file()][:1]


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says; of other files only that they are no stubs."""
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return size > 1024
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        if length + 8 > size:
            return False
        header = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


def _missing_of_hub(name: str) -> str:
    """Why a repository can neither be read from the hub's cache nor be downloaded, or nothing."""
    import huggingface_hub
    from huggingface_hub import constants

    cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
    in_cache = _missing_of_folder(Path(cached).parent) if isinstance(cached, str) else "nothing in the hub's cache"
    if not in_cache:
        return ""
    if constants.HF_HUB_OFFLINE:
        return f"{in_cache}, and HF_HUB_OFFLINE forbids to ask the hub"
    url = huggingface_hub.hf_hub_url(name, "config.json")
    refusal = _within(ANSWER_SECONDS, lambda: huggingface_hub.get_hf_file_metadata(url, timeout=ANSWER_SECONDS))
    return f"{in_cache}, and {constants.ENDPOINT} {refusal}" if refusal else ""


def _within(seconds: float, ask: Callable[[], object]) -> str:
    """Why `ask` failed, or nothing. A thread, because looking up a name has no limit of its own."""
    answer = [f"did not answer within {seconds:g} s"]

    def work() -> None:
        try:
            ask()
            answer[0] = ""
        except Exception as error:  # whatever the network does, the user needs the sentence above it
            answer[0] = f"says {type(error).__name__}"

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0]
