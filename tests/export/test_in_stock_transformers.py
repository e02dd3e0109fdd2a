"""Exported models in stock transformers, in a process that cannot import bbu_train, beside our own computation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_runs import SMALL, make_run
from omegaconf import OmegaConf

from bbu_train.export.__main__ import main
from bbu_train.model import generation
from bbu_train.predict.trained_run import TrainedRun
from bbu_train.training.setup import build
from bbu_train.types.samples import Sample

STOCK = Path(__file__).with_name("stock.py")
NUM_TOKENS = 8
MADE = {
    "untied_padded_average": [
        *("model.shape.tie_word_embeddings=false", "model.vision_mlp_multiple=64", "average=ema"),
        *("engine.precision=bf16", "conversation=chinese", "model.max_pixels=12544"),
    ],
    "masters": ["engine.precision=bf16", "model.vision_mlp_multiple=64"],
}
"""Runs that are made. Both have matrices in bfloat16; the first one keeps float32 averages of them."""
NUM_PICTURES = {"trained": 20} | dict.fromkeys(MADE, 2)


@pytest.fixture(scope="module")
def folders(uninterrupted, config, resolved_config, tmp_path_factory):
    """The runs, by name."""
    outputs = tmp_path_factory.mktemp("outputs")
    made = {}
    for name, choices in MADE.items():
        words = [*SMALL, *choices, f"outputs={outputs}", f"run={name}"]
        made[name] = make_run(config(*words), resolved_config(*words))
    return {"trained": uninterrupted} | made


@pytest.fixture(scope="module")
def pictures(uninterrupted):
    """Twenty synthetic pictures."""
    data = build(OmegaConf.load(uninterrupted / "config.yaml").data)
    return [sample.student for sample in data.train[:20]]


@pytest.fixture(scope="module")
def stock(folders, pictures, tmp_path_factory):
    """What stock transformers computes with each exported run: on all pictures with the first, else on two."""
    folder = tmp_path_factory.mktemp("exported")
    tasks = []
    for name, run in folders.items():
        assert main([f"run={run}", f"to={folder / name}", "dtype=fp32", "checkpoint=last"]) == 0
        conversation = OmegaConf.load(run / "config.yaml").conversation
        task = {
            "name": name,
            "folder": str(folder / name),
            "system": conversation.system,
            "question": conversation.question,
            "pictures": [str(picture.path) for picture in pictures[: NUM_PICTURES[name]]],
            "max_new_tokens": NUM_TOKENS,
        }
        tasks.append(task)
    (folder / "tasks.json").write_text(json.dumps(tasks))
    subprocess.run([sys.executable, str(STOCK), "tasks.json", "out.pt"], cwd=folder, check=True, capture_output=True)
    return torch.load(folder / "out.pt")


def compute_here(run, pictures):
    """The prompt, the logits in float32 and the generated tokens of each picture, with the weights of a run."""
    trained = TrainedRun(str(run), "last", "generated", torch.device("cpu"))
    trained.cfg.engine.precision = "fp32"
    predictor = trained.load_predictor(NUM_TOKENS)
    model, end = predictor.model, predictor.builder.tokenizer.end
    for index, picture in enumerate(pictures):
        [(_, batch)] = predictor.prompts([Sample(str(index), picture, ())], 1, 0)
        hidden = model.hidden_states(batch, model.encode_images(batch))  # with gradients: queries, keys, values joined
        yield batch.input_ids[0], model.project(hidden).detach(), generation.generate(model, batch, end, NUM_TOKENS)[0]


@pytest.mark.parametrize("name", ["trained", *MADE])
def test_logits_and_greedy_answers_are_ours(folders, pictures, stock, name):
    answers = stock[name]["answers"]
    ours = compute_here(folders[name], pictures[: NUM_PICTURES[name]])
    for (ids, logits, generated), theirs in zip(ours, answers, strict=True):
        assert theirs["ids"].tolist() == ids.tolist()
        torch.testing.assert_close(theirs["logits"], logits, atol=1e-5, rtol=1e-5)
        assert theirs["generated"].tolist() == generated.ids[0].tolist()[: len(theirs["generated"])]


def test_every_weight_is_loaded_and_embeddings_are_tied_as_in_the_run(stock):
    assert {name: each["problems"] for name, each in stock.items()} == dict.fromkeys(stock, [])
    assert {name: each["tied"] for name, each in stock.items()} == {
        "trained": True,
        "untied_padded_average": False,
        "masters": True,
    }
    assert stock["trained"]["auto"] == ["Qwen2_5_VLForConditionalGeneration", "torch.float32"]
