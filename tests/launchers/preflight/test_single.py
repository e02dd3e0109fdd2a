"""`--check` of one run: faults that need no weights are found without them."""

import json
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from PIL import Image

from bbu_train.errors import InputError
from launchers.preflight.single import check


def test_faults_of_the_data_come_before_missing_weights(config, tmp_path, monkeypatch):
    monkeypatch.setattr(HydraConfig, "get", lambda: SimpleNamespace(runtime=SimpleNamespace(choices={})))
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    teachers = "data.teachers.teacher_ratio=0", "data.teachers.num_validation_teachers=0"
    weights = "model=qwen25vl3b", f"model.checkpoint={tmp_path}/nowhere"
    for box, expected in (([9, 9, 3, 3], "inverted box"), ([3, 3, 9, 9], "The weights of .*nowhere are missing")):
        line = json.dumps({"images": ["a.png"], "objects": [{"bbox_2d": box, "desc": "screw"}]})
        for split in ("train", "validation"):
            (tmp_path / f"{split}.jsonl").write_text(line + "\n")
        cfg = config(
            "data=jsonl", f"data.root={tmp_path}", f"outputs={tmp_path}/outputs", "run=null", *weights, *teachers
        )
        with pytest.raises((InputError, InstantiationException), match=expected):
            check("H100", cfg, [])
