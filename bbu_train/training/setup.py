"""Everything that a run can build and check before its model: data, prompts, batches and the plan of every step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from hydra.utils import instantiate
from omegaconf import DictConfig

from bbu_train.collator.layout import Collator
from bbu_train.conversation.builder import ConversationBuilder
from bbu_train.data.splits import Splits
from bbu_train.errors import InputError, all_problems
from bbu_train.training import loader, planning
from bbu_train.training.loader import SampleSource
from bbu_train.training.planning import StepPlan
from bbu_train.types.samples import PlannedStep, Sample

build = partial(instantiate, _convert_="all")
"""Build a component from its config. Components take plain Python values, never a DictConfig."""


@dataclass(frozen=True)
class RunInputs:
    """What a run needs before its model is built.

    `plan` has every training step, `evaluation_steps` the batches of one evaluation, in order. `max_caption_tokens` is
    the length of the longest training caption: the model cannot learn to write a longer one.
    """

    data: Splits
    builder: ConversationBuilder
    collator: Collator
    train: SampleSource
    validation: SampleSource
    plan: StepPlan
    evaluation_steps: list[PlannedStep]
    max_caption_tokens: int


def prepare(cfg: DictConfig, data: Splits | None = None) -> RunInputs:
    """Build and check all that needs no model, so that a fault in data or config is found before weights load.

    `data` is what `cfg.data` loads, for a caller that has loaded it already. Raises InputError.
    """
    data = data or build(cfg.data)
    check_num_objects((*data.train, *data.validation), cfg.head.get("num_queries"))
    preprocessing = build(cfg.model.preprocessing)
    builder = build(cfg.conversation)(preprocessing.tokenizer, preprocessing.picture_format)
    collator = build(cfg.collator)(preprocessing.picture_format)
    check_max_tokens(collator.max_tokens, preprocessing.max_positions)
    train, validation = loader.sources(data, build(cfg.augmentation), builder, preprocessing.cost, collator)
    return RunInputs(
        data=data,
        builder=builder,
        collator=collator,
        train=train,
        validation=validation,
        plan=StepPlan(build(cfg.sampler), train, cfg.steps),
        evaluation_steps=planning.in_order(validation, cfg.eval_batch_size),
        max_caption_tokens=builder.max_caption_tokens(data.train),
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
