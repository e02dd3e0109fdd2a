"""The processor time of reading pictures, encoding samples and collating batches, compared with a lower bound.

Not a program of its own: `python benchmarks/host.py parts=data` runs it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import timing
import torch
import workload
from hydra import compose, initialize_config_dir
from PIL import Image

from bbu_train import train
from bbu_train.collator.packed import PackedCollator
from bbu_train.conversation.builder import ConversationBuilder
from bbu_train.conversation.patches import read_patches, resized_size
from bbu_train.conversation.text import PlainTextTokenizer
from bbu_train.data.cabinets.cabinet import draw
from bbu_train.model.tiny_tokenizer import tiny_tokenizer
from bbu_train.training import loader, planning
from bbu_train.types.batch import Encoded
from bbu_train.types.samples import Picture, PlannedStep, Sample

CONF = Path(__file__).parents[1] / "conf"
SIZES = ((640, 480), (1280, 960))
NUM_PICTURES, NUM_STEPS = 16, 8
MODEL = ("model=qwen25vl3b", "model.weights=random", "sweep=host", "run=data", f"steps={NUM_STEPS}")
Rows = list[dict[str, object]]


def draw_pictures(folder: Path, width: int, height: int) -> list[Picture]:
    """Draw synthetic images of cabinets with 6 to 18 objects, saved as cameras do: JPEG of quality 90."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for i in range(NUM_PICTURES):
        scene = {"width": width, "height": height, "min_objects": 6, "max_objects": 18, "language": "english"}
        image, objects = draw((0, "host", i), **scene)
        path = folder / f"{width}-{i}.jpg"
        image.save(path, quality=90)
        pictures.append(Picture(path, width, height, tuple(objects)))
    return pictures


def prepare(folder: Path) -> tuple[loader.SampleSource, Iterator[PlannedStep], ConversationBuilder, PackedCollator]:
    """Return the samples and steps of the standard workload, and the builder and collator of a run."""
    torch.set_num_threads(1)
    tokenizer = PlainTextTokenizer(tiny_tokenizer(151936))
    workload.write(folder, tokenizer, num_samples=64)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[*MODEL, *workload.overrides(folder, tokenizer)])
    preprocessing = train.build(cfg.model.preprocessing)
    builder = train.build(cfg.conversation)(preprocessing.tokenizer, preprocessing.picture_format)
    collator = train.build(cfg.collator)(preprocessing.picture_format)
    data, augmentation = train.build(cfg.data), train.build(cfg.augmentation)
    source, _ = loader.sources(data, augmentation, builder, preprocessing.cost, collator)
    return source, planning.StepPlan(train.build(cfg.sampler), source, cfg.steps).starting_at(0), builder, collator


def measure(folder: Path, num_rounds: int) -> Rows:
    source, steps, builder, collator = prepare(folder / "workload")
    rows = []
    for width, height in SIZES:
        rows += measure_reading(draw_pictures(folder / "pictures", width, height), builder, num_rounds)
    draws_of_steps = [[draw for row in step for draw in row] for step in steps]
    encoded = [[source.encode(draw) for draw in draws] for draws in draws_of_steps]
    seconds = timing.processor_seconds(
        {
            "collator": lambda: [collator(samples) for samples in encoded],
            "joining the same tensors": lambda: [join(samples) for samples in encoded],
            "encoding the sample": lambda: [[source.encode(draw) for draw in draws] for draws in draws_of_steps],
        },
        num_rounds,
    )
    num_samples = sum(map(len, draws_of_steps))
    for peer in ("joining the same tensors", "encoding the sample"):
        rows.append(timing.compare("packed collator, a sample", seconds, "collator", peer, num_samples))
    return rows


def measure_reading(pictures: Sequence[Picture], builder: ConversationBuilder, num_rounds: int) -> Rows:
    size = resized_size(pictures[0], builder.picture_format)
    samples = [Sample(str(picture.path), picture, ()) for picture in pictures]

    def decode_and_resize() -> None:
        for picture in pictures:
            with Image.open(picture.path) as image:
                image.convert("RGB").resize(size, Image.Resampling.BICUBIC)

    peer = "PIL: decode, RGB, bicubic"
    seconds = timing.processor_seconds(
        {
            peer: decode_and_resize,
            "patches": lambda: [read_patches(picture, builder.picture_format) for picture in pictures],
            "encoded": lambda: [builder.encode(builder.converse(sample, (), with_answer=True)) for sample in samples],
        },
        num_rounds,
    )
    name = f"{pictures[0].width} x {pictures[0].height} JPEG"
    return [
        timing.compare(f"{name} to patches", seconds, "patches", peer, len(pictures)),
        timing.compare(f"{name} to encoded sample", seconds, "encoded", peer, len(pictures)),
    ]


def join(samples: Sequence[Encoded]) -> list[torch.Tensor]:
    """Concatenate the tensors that a collator has to concatenate at least."""
    names = ("input_ids", "roles", "image_positions", "patches", "grid_thw", "boxes_cxcywh")
    joined = [torch.cat([getattr(sample, name) for sample in samples]) for name in names]
    return [*joined, torch.cat([sample.position_ids for sample in samples], dim=1)]
