import json
import struct
from pathlib import Path

import pytest

from bbu_train.errors import InputError
from bbu_train.model.weights import require


def write_safetensors(path: Path, num_bytes: int = 8) -> None:
    header = json.dumps({"w": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(num_bytes))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The files of a checkpoint of two shards."""
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for shard in shards.values():
        write_safetensors(tmp_path / shard)
    return tmp_path


def says(checkpoint: Path | str) -> str:
    with pytest.raises(InputError) as refused:
        require(str(checkpoint), "pretrained")
    return str(refused.value)


def test_random_weights_need_nothing():
    require("no/such", "random")


def test_a_whole_folder_is_enough(checkpoint):
    require(str(checkpoint), "pretrained")


def test_one_file_of_weights_and_a_tokenizer_in_two_files_are_enough(tmp_path):
    for name in ("config.json", "vocab.json", "merges.txt"):
        (tmp_path / name).write_text("{}")
    write_safetensors(tmp_path / "model.safetensors")
    require(str(tmp_path), "pretrained")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-2.safetensors"])
def test_a_missing_file_is_named_with_every_remedy(checkpoint, name):
    (checkpoint / name).unlink()
    message = says(checkpoint)
    assert f"lacks {name}" in message
    for remedy in ("model.checkpoint=", "hf download", "model.weights=random"):
        assert remedy in message


def test_an_empty_folder_lacks_everything(tmp_path):
    assert "lacks config.json, tokenizer.json, or vocab.json and merges.txt, *.safetensors or *.bin" in says(tmp_path)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"", None])
def test_a_shard_that_is_cut_off_is_named(checkpoint, content):
    shard = checkpoint / "model-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] if content is None else content)
    assert "model-2.safetensors" in says(checkpoint)


def test_a_folder_that_does_not_exist_is_no_name_on_the_hub(tmp_path):
    assert "no such folder" in says(tmp_path / "absent")


def test_without_a_copy_and_a_network_both_ways_are_named(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = says("Qwen/Qwen2.5-VL-3B-Instruct")
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
