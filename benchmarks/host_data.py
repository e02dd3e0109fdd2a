"""What reading pictures and laying samples out costs one core, beside the least that it could cost."""

from collections.abc import Sequence
from pathlib import Path

import beside
import torch
import workload
from hydra import compose, initialize_config_dir
from PIL import Image

from bbu_train import train
from bbu_train.conversation.patches import read_patches, resized_size
from bbu_train.conversation.text import Text
from bbu_train.data.cabinets.cabinet import draw
from bbu_train.model.tiny_tokenizer import tiny_tokenizer
from bbu_train.training import loader, planning
from bbu_train.types.batch import Encoded
from bbu_train.types.samples import Picture, Sample

CONF = Path(__file__).parents[1] / "conf"
SIZES = ((640, 480), (1280, 960))
NUM_PICTURES, NUM_STEPS = 16, 8
MODEL = ("model=qwen25vl3b", "model.weights=random", "sweep=host", "run=data", f"steps={NUM_STEPS}")


def pictures(folder: Path, width: int, height: int) -> list[Picture]:
    """Made photographs of cabinets, saved as cameras do: JPEGs of quality 90, with 6 to 18 objects."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for i in range(NUM_PICTURES):
        scene = {"width": width, "height": height, "min_objects": 6, "max_objects": 18, "language": "english"}
        image, objects = draw((0, "host", i), **scene)
        path = folder / f"{width}-{i}.jpg"
        image.save(path, quality=90)
        made.append(Picture(path, width, height, tuple(objects)))
    return made


def prepared(folder: Path):
    """The standard workload's steps of samples, and what a run reads them with."""
    torch.set_num_threads(1)
    text = Text(tiny_tokenizer(151936))
    workload.write(folder, text, num_samples=64)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[*MODEL, *workload.overrides(folder, text)])
    preprocessing = train.build(cfg.model.preprocessing)
    builder = train.build(cfg.conversation)(preprocessing.tokenizer, preprocessing.picture_format)
    collator = train.build(cfg.collator)(preprocessing.picture_format)
    data, augmentation = train.build(cfg.data), train.build(cfg.augmentation)
    source, _ = loader.sources(data, augmentation, builder, preprocessing.cost, collator)
    return source, planning.StepPlan(train.build(cfg.sampler), source, cfg.steps).starting_at(0), builder, collator


def measure(folder: Path, num_rounds: int) -> list[dict[str, object]]:
    source, steps, builder, collator = prepared(folder / "workload")
    rows = []
    for width, height in SIZES:
        rows += reading(pictures(folder / "pictures", width, height), builder, num_rounds)
    draws = [[draw for row in step for draw in row] for step in steps]
    encoded = [[source.encode(draw) for draw in its] for its in draws]
    seconds = beside.processor(
        {
            "collator": lambda: [collator(samples) for samples in encoded],
            "the same tensors joined": lambda: [joined(samples) for samples in encoded],
            "encoding": lambda: [[source.encode(draw) for draw in its] for its in draws],
        },
        num_rounds,
    )
    num_samples = sum(map(len, draws))
    for peer in ("the same tensors joined", "encoding"):
        rows.append(beside.row("collator, packed, a sample", seconds, "collator", peer, num_samples))
    return rows


def reading(made: Sequence[Picture], builder, num_rounds: int) -> list[dict[str, object]]:
    size = resized_size(made[0], builder.picture_format)
    samples = [Sample(str(picture.path), picture, ()) for picture in made]

    def decoded_and_resized() -> None:
        for picture in made:
            with Image.open(picture.path) as image:
                image.convert("RGB").resize(size, Image.Resampling.BICUBIC)

    seconds = beside.processor(
        {
            "PIL: decode, resize": decoded_and_resized,
            "patches": lambda: [read_patches(picture, builder.picture_format) for picture in made],
            "encoded": lambda: [builder.encode(builder.converse(sample, (), with_answer=True)) for sample in samples],
        },
        num_rounds,
    )
    name = f"{made[0].width} x {made[0].height} JPEG"
    return [
        beside.row(f"{name} to patches", seconds, "patches", "PIL: decode, resize", len(made)),
        beside.row(f"{name} to encoded sample", seconds, "encoded", "PIL: decode, resize", len(made)),
    ]


def joined(samples: Sequence[Encoded]) -> list[torch.Tensor]:
    names = ("input_ids", "roles", "image_positions", "patches", "grid_thw", "boxes_cxcywh")
    along = [torch.cat([getattr(sample, name) for sample in samples]) for name in names]
    return [*along, torch.cat([sample.position_ids for sample in samples], dim=1)]
