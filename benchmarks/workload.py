"""The standard workload, on which every throughput is measured. Not a program of its own.

A step has 8 samples. A sample has a system turn of 60 tokens, then 0, 1 or 2 teacher turns (probability 0.30, 0.35,
0.35) and the student's turn. A turn is one picture of 644 x 476 pixels (391 image tokens), a question of 12 tokens, and
an answer with 28 tokens per object, for 1 + Exponential(mean 11) objects, at most 40.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from bbu_train.conversation import answer
from bbu_train.conversation.order import ReadingOrder
from bbu_train.conversation.text import PlainTextTokenizer
from bbu_train.runtime.seeds import generator
from bbu_train.types.samples import Object

WIDTH, HEIGHT = 644, 476
NUM_SYSTEM_TOKENS, NUM_QUESTION_TOKENS, NUM_OBJECT_TOKENS = 60, 12, 28
COMPACT = answer.LAYOUTS["compact"]
FILLER = "q"  # no merge of the tokenizer covers this letter, so each one is a token

OVERRIDES = (
    "conversation.layout=compact",
    "data=jsonl",
    "data.teachers.teacher_ratio=0.7",
    "data.teachers.num_teachers=[1,2]",
    "data.teachers.num_validation_teachers=0",
    "sampler.num_samples=8",
)


def overrides(folder: Path, tokenizer: PlainTextTokenizer) -> list[str]:
    """Return the overrides with which bbu_train trains on the workload in `folder`."""
    system = FILLER * (
        NUM_SYSTEM_TOKENS - len(tokenizer.encode("system\n")) - 3
    )  # the start token, the end token and a newline
    return [
        *OVERRIDES,
        f"data.root={folder}",
        f"conversation.system={system}",
        f"conversation.question={FILLER * NUM_QUESTION_TOKENS}",
    ]


def num_objects(random: np.random.Generator, num_turns: int) -> np.ndarray:
    """Draw the number of objects of each turn."""
    return np.minimum(40, 1 + random.exponential(11, num_turns).astype(int))


def write(folder: Path, tokenizer: PlainTextTokenizer, num_samples: int) -> None:
    """Write pictures of noise, train.jsonl, and validation.jsonl with one more sample; the same at every call."""
    folder.mkdir(parents=True, exist_ok=True)
    description = _description(tokenizer)
    random = generator("standard workload")
    lines = []
    for i in range(num_samples + 1):
        noise = random.integers(0, 256, (HEIGHT // 14, WIDTH // 14, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((WIDTH, HEIGHT)).save(folder / f"{i}.jpg", quality=90)
        corners = np.sort(random.integers(10, 90, (num_objects(random, 1)[0], 2, 2)), axis=1)
        boxes = corners + [[0, 0], [9, 9]]  # every coordinate has two digits
        objects = [{"bbox_2d": box.flatten().tolist(), "desc": description} for box in boxes]
        lines.append(json.dumps({"images": [f"{i}.jpg"], "objects": objects}))
    (folder / "train.jsonl").write_text("\n".join(lines[:-1]))
    (folder / "validation.jsonl").write_text(lines[-1])


def _description(tokenizer: PlainTextTokenizer) -> str:
    """Return a description with which an object, its comma included, takes NUM_OBJECT_TOKENS tokens of an answer."""
    boxes = [(10.0, 10.0, 90.0, 80.0), (20.0, 30.0, 90.0, 80.0)]
    for length in range(NUM_OBJECT_TOKENS):
        description = f"bbu{FILLER * length}"
        objects = [Object(box, description) for box in boxes]
        one, two = (
            len(tokenizer.encode(answer.render(answered, ReadingOrder(), COMPACT, 1, 1, WIDTH, HEIGHT)))
            for answered in (objects[:1], objects)
        )
        if two - one == NUM_OBJECT_TOKENS:
            return description
    raise AssertionError(f"no description gives an object of {NUM_OBJECT_TOKENS} tokens")
