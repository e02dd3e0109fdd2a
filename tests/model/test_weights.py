import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from bbu_train.errors import InputError
from bbu_train.model.weights import require


def write_safetensors(path: Path, num_bytes: int = 8) -> None:
    """Write one tensor of zeros. The file is sparse, so that it may be larger than the disk."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + num_bytes)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with the files of a checkpoint of two shards."""
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for shard in shards.values():
        write_safetensors(tmp_path / shard)
    return tmp_path


def refusal(checkpoint: Path | str) -> str:
    """Return the message with which the checkpoint is refused."""
    with pytest.raises(InputError) as error:
        require(str(checkpoint), "pretrained")
    return str(error.value)


def test_random_weights_need_nothing():
    require("no/such", "random")


def test_a_complete_folder_is_enough(checkpoint):
    require(str(checkpoint), "pretrained")


def test_a_single_file_of_weights_and_a_tokenizer_in_two_files_are_enough(tmp_path):
    for name in ("config.json", "vocab.json", "merges.txt"):
        (tmp_path / name).write_text("{}")
    write_safetensors(tmp_path / "model.safetensors")
    require(str(tmp_path), "pretrained")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-2.safetensors"])
def test_the_error_names_a_missing_file_and_every_remedy(checkpoint, name):
    (checkpoint / name).unlink()
    message = refusal(checkpoint)
    assert f"lacks {name}" in message
    for remedy in ("model.checkpoint=", "hf download", "model.weights=random"):
        assert remedy in message


def test_an_empty_folder_lacks_everything(tmp_path):
    assert "lacks config.json, tokenizer.json, or vocab.json and merges.txt, *.safetensors or *.bin" in refusal(
        tmp_path
    )


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4967215360\n"
DAMAGES = {
    "an empty file": lambda content: b"",
    "a git-lfs pointer": lambda content: POINTER,
    "cut in the length of its header": lambda content: content[:4],
    "cut in its header": lambda content: content[:20],
    "cut in its data": lambda content: content[:-1],
    "longer than its header says": lambda content: content + b"x",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_incomplete_shard_is_named(checkpoint, damage):
    shard = checkpoint / "model-2.safetensors"
    shard.write_bytes(DAMAGES[damage](shard.read_bytes()))
    assert f"model-2.safetensors in {checkpoint} is cut off or a git-lfs pointer" in refusal(checkpoint)


def test_a_git_lfs_pointer_in_place_of_a_bin_file_is_named(checkpoint):
    (checkpoint / "model.safetensors.index.json").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(POINTER)
    assert "pytorch_model.bin" in refusal(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(bytes(2048))
    require(str(checkpoint), "pretrained")


def test_the_check_reads_no_tensor_and_imports_no_torch(checkpoint):
    write_safetensors(checkpoint / "model-2.safetensors", 2**40)  # 1 TiB would take minutes to read
    program = (
        "import sys; from bbu_train.model.weights import require\n"
        f"require({str(checkpoint)!r}, 'pretrained'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_path_that_does_not_exist_is_not_taken_for_a_name_on_the_hub(tmp_path):
    assert "no such folder" in refusal(tmp_path / "absent")


def test_without_a_copy_and_without_a_network_the_error_names_both(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal("Qwen/Qwen2.5-VL-3B-Instruct")
    assert "hub's cache" in message
    assert "hf download Qwen/Qwen2.5-VL-3B-Instruct" in message
    assert "\n" not in message


def test_a_copy_in_the_hubs_cache_needs_no_network(monkeypatch, tmp_path, checkpoint):
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.is_file():
            path.rename(repository / "snapshots" / ("0" * 40) / path.name)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    require("owner/name", "pretrained")
