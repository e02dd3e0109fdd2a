"""Everything that a run can build and check before its model: data, prompts, batches and the plan of every step."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from bbu_train.collator.layout import Collator
from bbu_train.conversation.builder import ConversationBuilder
from bbu_train.data.splits import Splits
from bbu_train.data.summary import paths_with_first, summarize
from bbu_train.data.suspicions import find_suspicions
from bbu_train.errors import InputError, all_problems, listed
from bbu_train.runs.length import decided_by_epochs, shorten_warmup
from bbu_train.runs.settings import AUTO
from bbu_train.runtime import distributed
from bbu_train.runtime.compile_cache import CompileCache
from bbu_train.runtime.wording import count_of
from bbu_train.training import config_checks, loader, planning, untrained_head
from bbu_train.training.config_checks import build
from bbu_train.training.loader import SampleSource
from bbu_train.training.planning import StepPlan
from bbu_train.types.samples import PlannedStep, Sample, class_of

log = logging.getLogger(__name__)
CLASS_METRIC = "eval/ap50/"
"""What the metrics of single classes begin with."""
METRIC_KEYS = ("checkpoint.best_metric", "stopping.metric")
"""Keys that name a metric of evaluations; a choice may lack one."""


@dataclass(frozen=True)
class RunData:
    """The samples of a run, with their `DataSummary` as a dict and as the lines of the first screen.

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


def prepare(cfg: DictConfig, loaded: RunData | None = None, num_ranks: int | None = None) -> RunInputs:
    """Build and check all that needs no model, so that a fault in data or config is found before weights load.

    If `cfg.epochs` decides the length of the run, `cfg.steps` is set to its number of steps: it follows from the data
    and the sampler, so all ranks, and a run that goes on, find the same number.

    `loaded` is what `load_data` returns for `cfg.data`, for a caller that has it already. `num_ranks` is that of the
    run, if it is not this one. Raises InputError, or Hydra's InstantiationException from it.
    """
    config_checks.check(cfg)
    check_head_is_trained(cfg)
    loaded = loaded or load_data(cfg.data)
    data = loaded.splits
    check_num_objects((*data.train, *data.validation), cfg.head.get("num_queries"))
    for key in METRIC_KEYS:
        check_class_of_metric(key, str(OmegaConf.select(cfg, key)), data.validation)
    preprocessing = build(cfg.model.preprocessing)
    builder = build(cfg.conversation)(preprocessing.tokenizer, preprocessing.picture_format)
    warn_of_long_descriptions(builder, data.train, cfg.head.get("max_caption_tokens"))
    collator = build(cfg.collator)(preprocessing.picture_format)
    check_max_tokens(collator.max_tokens, preprocessing.max_positions)
    train, validation = loader.sources(data, build(cfg.augmentation), builder, preprocessing.cost, collator)
    plan, evaluation_steps = planning.plan_run(
        build(cfg.sampler), train, planned_length(cfg), validation, cfg.eval_batch_size, preprocessing.max_positions
    )
    cfg.steps = plan.num_steps
    if decided_by_epochs(cfg):
        shorten_warmup(cfg, [text.partition("=")[0] for text in cfg.about.get("overrides") or []])
        config_checks.check(cfg)  # once more, for values that depend on the number of steps
    check_num_micro_batches(plan, cfg.engine.num_micro_batches, num_ranks or distributed.world_size())
    warn_of_small_steps(plan, len(data.train), cfg.sampler.get("num_samples"))
    return RunInputs(
        data=data,
        data_summary=loaded.summary,
        data_lines=loaded.lines,
        builder=builder,
        collator=collator,
        train=train,
        validation=validation,
        plan=plan,
        evaluation_steps=evaluation_steps,
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
            "them in %s, the longest with %d. The head learns and predicts the beginning alone. "
            "head.max_caption_tokens=%d takes them whole, or shorten them.",
            *(len(long), len(objects), max_caption_tokens, long[0][0], *[max(count for _, count in long)] * 2),
        )


def check_num_objects(samples: Sequence[Sample], num_queries: int | None) -> None:
    """Raise InputError if a picture has more objects than the head has queries (None: there is no head)."""
    if num_queries is None:
        return
    counts = [(sample.id, len(sample.student.objects or ())) for sample in samples]
    problems = [f"{name}: {count} objects" for name, count in counts if count > num_queries]
    if problems:
        name, most = max(counts, key=lambda item: item[1])
        what = f"Pictures with more objects than head.num_queries={num_queries}"
        remedy = (
            f"Give head.num_queries={most} or more: the largest number of objects of a picture is {most}, in {name}."
        )
        raise all_problems(what, problems, remedy)


def check_class_of_metric(key: str, metric: str, validation: Sequence[Sample]) -> None:
    """Raise InputError if `metric`, the value of `key`, is that of a class which no validation picture has."""
    classes = {class_of(each.description) for sample in validation for each in sample.student.objects or ()}
    name = metric.removeprefix(CLASS_METRIC)
    if name != metric and name not in classes:
        near = difflib.get_close_matches(name, classes)
        raise InputError(
            f"{key}={metric}: no validation picture has an object of class {name}. There are: "
            f"{listed([*near, *sorted(classes - set(near))])}."
        )


def check_max_tokens(max_tokens: int, max_positions: int) -> None:
    """Raise InputError if a sample may be longer than the model's `max_positions`."""
    if not 0 < max_tokens <= max_positions:
        raise InputError(
            f"collator.max_tokens={max_tokens}: the model has positions for 1 to {max_positions} tokens. Give "
            f"collator.max_tokens={max_positions}."
        )


def check_num_micro_batches(plan: StepPlan, num_micro_batches: int | str, num_ranks: int) -> None:
    """Raise InputError if a rank would have more micro-batches than samples in every step."""
    most = -(-plan.most_samples // num_ranks)
    if num_micro_batches != AUTO and plan.num_steps > 0 and num_micro_batches > most:
        ranks = f" on {num_ranks} processes" if num_ranks > 1 else ""
        raise InputError(
            f"engine.num_micro_batches={num_micro_batches}: no step has more than "
            f"{count_of(plan.most_samples, 'sample')}{ranks}, so some would always be empty. Give at most "
            f"engine.num_micro_batches={most}, or more samples to a step."
        )


def warn_of_small_steps(plan: StepPlan, num_samples: int, given: int | None) -> None:
    """Log that no step has the samples that the sampler asks for, if it asks for a number."""
    if given is not None and 0 < plan.most_samples < given:
        log.warning(
            "sampler.num_samples=%d: no step has more than %s, because the training split has %d. Give "
            "sampler.num_samples=%d, or more data.",
            *(given, count_of(plan.most_samples, "sample"), num_samples, plan.most_samples),
        )
