"""The sections of a run's first screen and of `--check` (`runtime/screen.py` prints them)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from bbu_train.collator.sizes import sizes
from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.optimizer.groups import members_by_group, parameters_by_group
from bbu_train.optimizer.mixed_adamw import MixedAdamW
from bbu_train.runs import folder as run_folder
from bbu_train.runs.length import FULL_WARMUP, WARMUP
from bbu_train.runs.settings import CHECKPOINTING, LEFT_OUT, MICRO_BATCHES
from bbu_train.runtime import distributed, logs, screen
from bbu_train.runtime.columns import aligned
from bbu_train.runtime.screen import Section
from bbu_train.runtime.wording import count_of, duration, rounded
from bbu_train.training import auto
from bbu_train.training.device_settings import DeviceSettings
from bbu_train.training.fit import LayoutPlan
from bbu_train.training.layout import Layout
from bbu_train.training.machine import Machine
from bbu_train.training.memory import GIB
from bbu_train.training.protocols import Stopping
from bbu_train.training.setup import RunInputs
from bbu_train.training.step_metrics import PeakFlops
from bbu_train.types.samples import PlannedStep

log = logging.getLogger(__name__)
LONGER = "A longer run is a new one: give more steps, and not this run's name or folder."
"""What to do with a run that is finished."""
NUM_PLANNED_STEPS = 100  # first steps whose samples and tokens are counted


def sections(
    cfg: DictConfig,
    step: int,
    inputs: RunInputs,
    chosen: DeviceSettings,
    model: GroundingModel,
    optimizer: MixedAdamW,
    stopping: Stopping,
    peak: PeakFlops,
    learnt: str | None,
) -> list[Section]:
    """Return the sections of a run that begins, or is resumed, after `step`.

    `learnt` says what the run took when it ran out of memory, if it did.
    """
    values = {key: chosen.settings[key].value for key in (CHECKPOINTING, MICRO_BATCHES)}
    return [
        run_section(cfg, step, distributed.world_size(), stopping.reason),
        choices_section(cfg),
        Section("data", inputs.data_lines),
        model_section(cfg, model, optimizer),
        *parts_sections(cfg),
        auto.section(chosen.machine, chosen.settings),
        plan_section(cfg, inputs, stopping.rule),
        memory_section(chosen.machine, chosen.planned, Layout(values[CHECKPOINTING], values[MICRO_BATCHES]), learnt),
        time_section(inputs, model, cfg.steps - step, peak.matmul),
        warnings_section(cfg, logs.kept_warnings()),
    ]


def open_folder(cfg: DictConfig, step: int, inputs: RunInputs, chosen: DeviceSettings, shown: list[Section]) -> None:
    """Make the folder of a run that begins, or note there that it is resumed after `step`; log the sections.

    environment.json has the sections in full, train.log what is logged. From now on train.log has all messages. Rank 0
    alone calls this.
    """
    folder = Path(cfg.folder)
    facts = {"settings": {key: asdict(setting) for key, setting in chosen.settings.items()}}
    facts["start"] = screen.as_dict(shown)
    if (folder / run_folder.CONFIG).exists():
        run_folder.add_to_environment(folder, step, facts)
    else:
        run_folder.create(folder, cfg, facts | {"data": inputs.data_summary})
    logs.to_file(folder)
    log.info("\n%s\n", screen.as_text(shown))


def run_section(cfg: DictConfig, step: int, num_ranks: int, ended_early: str | None) -> Section:
    """Return where the run lies, what it does, and the command that resumes it.

    `ended_early` is why it ended before its last step, if it did.
    """
    names = [
        f"the whole name of this {key}: {name}"
        for key in ("sweep", "run")
        if (name := cfg.about.get(key, cfg[key])) != cfg[key]
    ]
    if step == 0:
        what = f"new, to train {count_of(cfg.steps, 'step')}"
    elif ended_early is not None:
        what = f"ended at step {step:,} of {cfg.steps:,} already: {ended_early}"
    elif step < cfg.steps:
        what = f"{run_folder.RESUMED} {step:,} to {cfg.steps:,}"
    else:
        what = f"all {count_of(cfg.steps, 'step')} are done already. {LONGER}"
    processes = "" if num_ranks == 1 else f", in {num_ranks} processes"
    has_ended = step == cfg.steps or ended_early is not None
    resume = run_folder.resume_command(cfg.folder, cfg.about.resume_overrides)
    command = [] if has_ended else [f"to resume it: {resume}"]
    return Section("run", [str(cfg.folder), *names, what + processes, *command])


def choices_section(cfg: DictConfig) -> Section:
    """Return the choice of each config group, if Hydra composed the config, and the values that were given."""
    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    shown = [
        f"{group}={choice}"
        for group, choice in reversed(chosen.items())
        if choice is not None and not str(group).startswith("hydra/") and group != "cluster"
    ]
    given = cfg.about.get("overrides") or []
    return Section("choices", [" ".join(shown), *([f"given: {' '.join(given)}"] if given else [])] if shown else [])


def model_section(cfg: DictConfig, model: GroundingModel, optimizer: MixedAdamW) -> Section:
    """Return the weights and how many of them train, and for each group its parameters and its rate."""
    weights = "random weights" if cfg.model.weights == "random" else f"weights of {cfg.model.checkpoint}"
    weights = f"weights of {init}" if (init := OmegaConf.select(cfg, "init")) else weights
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = [*_group_rows(cfg, model, optimizer)]
    number = f"all {total:,}" if trained == total else f"{trained:,} of {total:,}"
    return Section("model", [f"{weights}; {number} parameters are trained", *aligned(rows)])


def _group_rows(cfg: DictConfig, model: nn.Module, optimizer: MixedAdamW) -> Iterator[tuple[str, str, str]]:
    if "groups" in cfg.optimizer:
        members = members_by_group(model, cfg.optimizer.groups)
    else:
        members = parameters_by_group(optimizer)
    peaks = {group["name"]: group["initial_lr"] for group in optimizer.param_groups}
    for name, parameters in members.items():
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        frozen = sum(p.numel() for p in parameters) - trained
        if trained:
            yield name, f"{trained:,}", f"lr {peaks[name]:g}"
        if frozen:
            yield name, f"{frozen:,}", "frozen"


def parts_sections(cfg: DictConfig) -> list[Section]:
    """Return the head and the loss with their values."""
    head = cfg.head.get("_target_", "none").split(".")
    name = "none" if "num_queries" not in cfg.head else head[-1]
    weights, others = _values(cfg.loss.get("weights", {})), _values(cfg.loss)
    return [
        Section("head", [f"{name}: {_values(cfg.head)}" if name != "none" else "none"]),
        Section("loss", [f"{cfg.loss._target_.split('.')[-1]}: weights {weights}{f'; {others}' if others else ''}"]),
    ]


def _values(part: Mapping[Any, Any]) -> str:
    """Return the numbers of a part of the config, without those that `auto` may decide: another section has them."""
    return " ".join(
        f"{key}={value:g}"
        for key, value in part.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key != "vocabulary_chunk"
    )


def plan_section(cfg: DictConfig, inputs: RunInputs, stopping_rule: str | None) -> Section:
    """Return steps and epochs, what a step holds, how often the run evaluates and saves, and when it ends early."""
    steps = list(islice(inputs.plan.starting_at(0), NUM_PLANNED_STEPS))
    if not steps:
        return Section("plan", ["no steps: the run only evaluates"])
    samples = [sum(map(len, step)) for step in steps]
    tokens = [_num_tokens(inputs, step) for step in steps]
    counted = f" (in the first {NUM_PLANNED_STEPS} steps)" if len(steps) < cfg.steps else ""
    cadence = {"evaluates": cfg.eval_every, "saves": cfg.save_every}
    often = [f"{what} {_cadence(every, cfg.steps)}" for what, every in cadence.items()]
    return Section(
        "plan",
        [
            f"{count_of(cfg.steps, 'step')}: {rounded(inputs.plan.epoch_at(cfg.steps))} epochs of "
            f"{count_of(len(inputs.data.train), 'sample')}; a step has {_range(samples, 'sample')} and "
            f"{_range(tokens, 'token')}{counted}",
            ", ".join([*often, *filter(None, [stopping_rule])]),
        ],
    )


def _cadence(every: int | None, num_steps: int) -> str:
    if every is None:
        return "never"
    return f"every {count_of(every, 'step')}" if every < num_steps else "at the end"


def _num_tokens(inputs: RunInputs, step: PlannedStep) -> int:
    return sum(inputs.train.num_tokens(visit) for row in step for visit in row)


def _range(numbers: Sequence[int], noun: str) -> str:
    least, most = min(numbers), max(numbers)
    if least == most:
        return count_of(least, noun)
    return f"{least:,} to {most:,} (mean {sum(numbers) / len(numbers):,.0f}) {noun}s"


def memory_section(machine: Machine, planned: LayoutPlan | None, taken: Layout, learnt: str | None) -> Section:
    """Return what the layout that is taken needs by prediction. `learnt` says what the run took when it ran out."""
    lines = ["not planned on a CPU" if machine.kind == "cpu" else "not planned: no step is left"]
    if planned is not None:
        peak = next(each.prediction.peak for each in planned.candidates if each.layout == taken)
        there = planned.available_bytes / GIB
        lines = [f"{peak / GIB:.1f} GiB by prediction for the largest micro-batch; {there:.1f} GiB are available"]
    return Section("memory", [*lines, *([f"as this run has learnt: {learnt}"] if learnt else [])])


def time_section(inputs: RunInputs, model: GroundingModel, num_steps: int, peak_flops: float) -> Section:
    """Return the least time that `num_steps` can take, at the measured rate of a large matrix product.

    `peak_flops` is that rate; 0 where it is not known, as on a CPU.
    """
    if not num_steps:
        return Section("time", [])
    if not peak_flops:
        return Section("time", ["unknown before the second step; from then on the log says what is left"])
    least = duration(mean_flops(inputs, model, num_steps=1) / peak_flops * num_steps)
    return Section("time", [f"more than {least}: that is the arithmetic at the rate of a large matrix product"])


def mean_flops(inputs: RunInputs, model: GroundingModel, num_steps: int) -> float:
    """Return the operations of a step of all ranks together: a mean over the first `num_steps`, which are encoded."""
    steps = list(islice(inputs.plan.starting_at(0), num_steps))
    encoded = [inputs.train.encode(visit) for step in steps for row in step for visit in row]
    return model.training_flops(sizes(encoded, inputs.builder.picture_format)) / len(steps)


def warnings_section(cfg: DictConfig, warnings: Sequence[str]) -> Section:
    """Return how many warnings came before, what differs from the files that were chosen, and what a command that
    resumes the run gave anew."""
    counted = f"{count_of(len(warnings), 'warning')}, above" if warnings else "nothing"
    changed = changed_lines(cfg)
    overrides = cfg.about.resume_overrides
    given = [f"given by this command, and not in config.yaml: {' '.join(overrides)}"] if overrides else []
    return Section("unusual", [*([] if changed and not warnings else [counted]), *changed, *given], warnings)


def changed_lines(cfg: DictConfig) -> list[str]:
    """Say which values of the experiment are left out, because they suit a choice that the command replaced, and
    whether the warm-up was shortened. Configs of older runs have no such notes.
    """
    left_out = OmegaConf.select(cfg, LEFT_OUT) or {}
    lines = [f"left out of the experiment: {'; '.join(left_out.values())}"] if left_out else []
    if (full := OmegaConf.select(cfg, FULL_WARMUP)) is not None:
        lines.append(
            f"{WARMUP}={full} does not fit into {count_of(cfg.steps, 'step')}, so it is {cfg.schedule.num_warmup_steps}"
        )
    return lines
