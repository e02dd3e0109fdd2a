"""Everything that a run can build and check before its model: data, prompts, batches and the plan of every step."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from bbu_train.collator.layout import Collator
from bbu_train.conversation.builder import ConversationBuilder
from bbu_train.data.splits import Splits
from bbu_train.data.summary import paths_with_first, summarize
from bbu_train.data.suspicions import find_suspicions
from bbu_train.errors import InputError, all_problems
from bbu_train.ops.numbers import is_count
from bbu_train.runs.length import STEPS, check_epochs, decided_by_epochs
from bbu_train.runtime import distributed
from bbu_train.runtime.compile_cache import CompileCache
from bbu_train.training import auto, loader, planning, untrained_head
from bbu_train.training.loader import SampleSource
from bbu_train.training.planning import StepPlan
from bbu_train.types.samples import PlannedStep, Sample

log = logging.getLogger(__name__)
build = partial(instantiate, _convert_="all")
"""Build a component from its config. Components take plain Python values, never a DictConfig."""

MINIMUMS = {
    "steps": 0,
    "log_every": 1,
    "log_lines_seconds": 1,
    "eval_every": 1,
    "save_every": 1,
    "eval_batch_size": 1,
    "gallery": 0,
    "head.num_queries": 1,
    "head.max_caption_tokens": 1,
}
"""The smallest value of each key that counts something and that no component checks itself."""
OPTIONAL = ("eval_every", "save_every")


@dataclass(frozen=True)
class RunData:
    """The samples of a run, and what they are in numbers: `DataSummary` as a dict, and its lines on the first screen.

    Both are empty on ranks other than 0.
    """

    splits: Splits
    summary: Mapping[str, Any]
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class RunInputs:
    """What a run needs before its model is built.

    `plan` has every training step, `evaluation_steps` the batches of one evaluation, in order. See `RunData` for
    `data_summary` and `data_lines`.
    """

    data: Splits
    data_summary: Mapping[str, Any]
    data_lines: Sequence[str]
    builder: ConversationBuilder
    collator: Collator
    train: SampleSource
    validation: SampleSource
    plan: StepPlan
    evaluation_steps: list[PlannedStep]


def load_data(data_cfg: DictConfig) -> RunData:
    """Read the data set of a config, and log what is suspicious in it.

    Raises InputError, or Hydra's InstantiationException from it.
    """
    splits = build(data_cfg)
    if not distributed.is_main():
        return RunData(splits, {})
    first_path = paths_with_first(splits)
    splits.teachers.check_pool(splits.train, splits.validation, len({first_path[each.path] for each in splits.pool}))
    summary = summarize(splits, first_path)
    root = data_cfg.get("root") or data_cfg.get("source", {}).get("root", "data")
    for warning in find_suspicions(splits, first_path):
        log.warning("%s: %s", root, warning)
    return RunData(splits, summary.as_dict(), [f"in {root}", *summary.lines()])


def prepare(cfg: DictConfig, loaded: RunData | None = None) -> RunInputs:
    """Build and check all that needs no model, so that a fault in data or config is found before weights load.

    If `cfg.epochs` decides the length of the run, `cfg.steps` is set to its number of steps: it follows from the data
    and the sampler, so all ranks, and a run that goes on, find the same number.

    `loaded` is what `load_data` returns for `cfg.data`, for a caller that has it already. Raises InputError, or
    Hydra's InstantiationException from it.
    """
    check_counts(cfg)
    auto.check(cfg)
    check_head_is_trained(cfg)
    loaded = loaded or load_data(cfg.data)
    data = loaded.splits
    check_num_objects((*data.train, *data.validation), cfg.head.get("num_queries"))
    preprocessing = build(cfg.model.preprocessing)
    builder = build(cfg.conversation)(preprocessing.tokenizer, preprocessing.picture_format)
    warn_of_long_descriptions(builder, data.train, cfg.head.get("max_caption_tokens"))
    collator = build(cfg.collator)(preprocessing.picture_format)
    check_max_tokens(collator.max_tokens, preprocessing.max_positions)
    train, validation = loader.sources(data, build(cfg.augmentation), builder, preprocessing.cost, collator)
    plan = StepPlan(build(cfg.sampler), train, planned_length(cfg))
    cfg.steps = plan.num_steps
    return RunInputs(
        data=data,
        data_summary=loaded.summary,
        data_lines=loaded.lines,
        builder=builder,
        collator=collator,
        train=train,
        validation=validation,
        plan=plan,
        evaluation_steps=planning.in_order(validation, cfg.eval_batch_size),
    )


def compile_cache(cfg: DictConfig, device: torch.device) -> CompileCache:
    """Return the file of compiled graphs that this config shares with others, whose other keys may differ."""
    parts = {"network": cfg.model.network, "head": cfg.head}
    choices = {name: OmegaConf.to_container(part, resolve=True) for name, part in parts.items()}
    choices |= {"checkpointing": cfg.engine.gradient_checkpointing, "is_alone": distributed.world_size() == 1}
    return CompileCache(Path(cfg.outputs), choices, device)


def planned_length(cfg: DictConfig) -> int | Fraction:
    """Return the length of a run for its StepPlan. 0.1 epochs are exactly a tenth."""
    return Fraction(str(cfg.epochs)) if decided_by_epochs(cfg) else cfg.steps


def check_counts(cfg: DictConfig) -> None:
    """Raise InputError that lists every key of `MINIMUMS` whose value is not a whole number, or is too small.

    Only OPTIONAL keys may be null, which means "never", and those of a head that there is not; and `steps`, where
    `epochs` decides.
    """
    if decided_by_epochs(cfg):
        check_epochs(cfg.epochs)
    missing = object()
    problems = [
        f"{key}={value}: expected a whole number of at least {minimum}"
        for key, minimum in MINIMUMS.items()
        if (value := OmegaConf.select(cfg, key, default=missing)) is not missing
        and not (value is None and key in OPTIONAL)
        and not (key == STEPS and decided_by_epochs(cfg))
        and not is_count(value, minimum)
    ]
    if problems:
        raise all_problems("The config", problems, "Correct the values listed.")


def check_head_is_trained(cfg: DictConfig) -> None:
    """Raise InputError if there is a head and the loss has no term that trains it."""
    if "num_queries" in cfg.head and build(cfg.loss).weights.keys().isdisjoint(untrained_head.BOX_LOSSES):
        raise InputError(
            f"The model has a head, and {cfg.loss._target_} has no loss that trains it, so the head would stay random. "
            "Take head=none or loss=joint."
        )


def warn_of_long_descriptions(
    builder: ConversationBuilder, samples: Sequence[Sample], max_caption_tokens: int | None
) -> None:
    """Log how many objects have a description that the head cannot write to its end (None: there is no head)."""
    if max_caption_tokens is None:
        return
    objects = [(sample.id, each.description) for sample in samples for each in sample.student.objects or ()]
    num_tokens = {text: builder.num_caption_tokens(text) for text in {text for _, text in objects}}
    long = [(sample_id, num_tokens[text]) for sample_id, text in objects if num_tokens[text] > max_caption_tokens]
    if long:
        log.warning(
            "%d of %d training objects have a description of more than head.max_caption_tokens=%d tokens, the first of "
            "them in %s, the longest with %d. The head learns and predicts the beginning alone. Raise "
            "head.max_caption_tokens, or shorten them.",
            *(len(long), len(objects), max_caption_tokens, long[0][0], max(count for _, count in long)),
        )


def check_num_objects(samples: Sequence[Sample], num_queries: int | None) -> None:
    """Raise InputError if a picture has more objects than the head has queries (None: there is no head)."""
    if num_queries is None:
        return
    counts = [(sample.id, len(sample.student.objects or ())) for sample in samples]
    problems = [f"{name}: {count} objects" for name, count in counts if count > num_queries]
    if problems:
        what = f"Pictures with more objects than head.num_queries={num_queries}"
        raise all_problems(what, problems, "Raise head.num_queries.")


def check_max_tokens(max_tokens: int, max_positions: int) -> None:
    """Raise InputError if a sample may be longer than the model's `max_positions`."""
    if not 0 < max_tokens <= max_positions:
        raise InputError(f"collator.max_tokens={max_tokens}: the model has positions for 1 to {max_positions} tokens.")
