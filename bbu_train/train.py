"""The training loop, from top to bottom: prepare, build, restore, then one step after the other."""

import gc
import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from bbu_train.errors import Interrupted, Preempted
from bbu_train.optimizer.groups import parameters_by_group
from bbu_train.reporting import final_report, first_samples
from bbu_train.runs import folder as run_folder
from bbu_train.runs import identity
from bbu_train.runs.length import ENDED_EARLY
from bbu_train.runtime import distributed, logs, preemption, profiling, restart
from bbu_train.runtime.wording import count_of, rounded
from bbu_train.tracker.trackers import Trackers
from bbu_train.training import (
    device_settings,
    first_screen,
    fit,
    initial_weights,
    progress,
    step_metrics,
    untrained_head,
)
from bbu_train.training.outline import build_outline
from bbu_train.training.progress import Progress, Saver
from bbu_train.training.progress_display import Activity, ProgressDisplay
from bbu_train.training.recovery import Recovery
from bbu_train.training.setup import RunInputs, build, compile_cache, prepare
from bbu_train.training.step import step_totals
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture

log = logging.getLogger(__name__)
STATES = {Preempted: "preempted", KeyboardInterrupt: "interrupted"}
"""How a run ended, by the exception that ended it; any other one means "failed"."""


def train(cfg: DictConfig) -> None:
    """Train one run from its beginning, or from its last checkpoint, to `cfg.steps` or to an early stop. Every rank
    calls this.

    Raises Preempted if a signal asked any rank to end: all ranks end after the same step, and that step is saved.
    """
    began = time.monotonic()
    device = distributed.start()
    try:
        with ExitStack() as interrupts:
            _train(cfg, device, began, interrupts)
    finally:
        logs.forget_kept()
        restart.stop()
        distributed.finish()  # also after an error, or the next run of a sweep could not start its process group


def _train(  # noqa: PLR0912, PLR0915 (the whole story in one place)
    cfg: DictConfig, device: torch.device, began: float, interrupts: ExitStack
) -> None:
    logs.start(distributed.is_main())
    is_named = cfg.run is not None
    cfg.run = distributed.broadcast_from_main(cfg.run or identity.new_run_name(cfg))
    restart.watch([] if is_named else [f"run={cfg.run}"])
    folder = Path(cfg.folder)
    checkpoints = build(cfg.checkpoint)
    saved = checkpoints.latest()
    at = Progress(saved.step, saved.step) if saved else Progress(0, 0)
    interrupts.enter_context(preemption.signals_raise(lambda name: preempted_by(name, at.step, cfg)))
    raise_if_asked_to_end(at.step, cfg)

    # ---- Everything that needs no model: data, prompts, and the plan of every step ----
    inputs = prepare(cfg)
    chosen = device_settings.choose(cfg, inputs, device, run_folder.read_environment(folder), at.step < cfg.steps)
    applied, planned = chosen.applied, chosen.planned
    for note in initial_weights.check(applied, build_outline(applied).model) if saved is None and cfg.init else ():
        log.warning("init: %s", note)
    raise_if_asked_to_end(at.step, cfg)

    # ---- The model, and what trains it ----
    compiled = compile_cache(applied, device)
    compiled.load()
    torch.manual_seed(cfg.seed)
    model = build(applied.model.network)(device=device, head=build(applied.head))
    if saved is None and cfg.init:
        initial_weights.load(applied, model, should_verify=distributed.is_main())
    criterion = build(applied.loss)
    optimizer = build(applied.optimizer)(model)
    model.check_teacher_cache()  # after the optimizer, which freezes groups
    for warning in untrained_head.warnings(model, criterion):
        log.warning("%s", warning)
    average = build(cfg.average)(model, optimizer)
    optimizer.allocate()  # before the first forward pass, or a step could run out of memory halfway through an update
    schedule, stopping = build(cfg.schedule), build(cfg.stopping)
    engine = build(applied.engine)(model, criterion, optimizer, parameters_by_group(optimizer), device)
    peak = step_metrics.peak_flops(device, engine.precision)
    raise_if_asked_to_end(at.step, cfg)
    if saved is not None:
        at = progress.restore(saved, model, optimizer, average)
        stopping.load_state_dict(at.stopping)
    if planned is not None:
        trial = fit.MemoryTrial(engine, criterion, model, inputs, None if cfg.eval_every is None else average)
        chosen.settings.update(fit.settings_of(cfg, *fit.try_out(planned, trial)))
    raise_if_asked_to_end(at.step, cfg)  # before the folder exists: a run that has not begun leaves none

    # ---- The run's folder: from here on a signal sets a flag, and the run ends where it can be saved ----
    activity = Activity("start")
    interrupts.enter_context(preemption.signals_set_flag(activity.notice if distributed.is_main() else lambda: ""))
    recovery = Recovery(inputs, engine, criterion, optimizer, applied.num_workers, folder)
    if distributed.is_main():
        learnt = recovery.learnt.summary()
        shown = first_screen.sections(cfg, at.step, inputs, chosen, model, optimizer, stopping, peak, learnt)
        first_screen.open_folder(cfg, at.step, inputs, chosen, shown)
    first_step = at.step
    trackers = Trackers(build(cfg.tracker) if distributed.is_main() else {})
    trackers.open(OmegaConf.to_container(cfg, resolve=True), at.step)
    trackers.publish([folder / run_folder.ENVIRONMENT])

    is_periodic = cfg.save_every is not None and cfg.save_every < cfg.steps - at.step
    grace_seconds = cfg.cluster.grace_seconds if "SLURM_JOB_ID" in os.environ else None
    saver = Saver(checkpoints, optimizer, average, is_periodic, grace_seconds)
    display = ProgressDisplay(
        *(cfg.steps, at.step, cfg.log_lines_seconds, began, activity, distributed.is_main()),
        has_bar=sys.stderr.isatty(),
    )

    def save() -> None:
        with display.spending("saving"):
            trackers.sync()
            saver.save(at)

    def should_end() -> bool:
        return preemption.requested() or saver.has_failed()

    def end_if_asked(is_asked: bool | None = None) -> None:
        """If any rank must end, raise what prevented a checkpoint, or save and raise Preempted.

        `is_asked` is the answer, if all ranks have it already; None asks them.
        """
        if distributed.any_rank(should_end()) if is_asked is None else is_asked:
            saver.raise_failure()
            if at.step > at.saved_at:
                save()
            saver.finish()
            raise_if_asked_to_end(at.step, cfg)

    def evaluate_average() -> list[tuple[Picture, Prediction]]:
        """Evaluate the weights that would be saved now, and return what the head finds in the validation pictures."""
        saver.wait_for_copy()
        with display.spending("evaluation"), average.applied():
            before_batch = display.while_evaluating(at.step, end_if_asked)
            at.metrics, predictions = recovery.evaluate(at.step, model, before_batch)
        at.evaluated_at = at.step
        display.evaluated(at.step, at.metrics)
        if distributed.is_main():
            trackers.publish(final_report.write_gallery(folder, at.step, predictions, cfg.gallery, at.metrics))
        return predictions

    def evaluate_on_schedule() -> list[tuple[Picture, Prediction]]:
        """Evaluate, log the metrics, and let the stopping rule see them."""
        predictions = evaluate_average()
        stopping.update(at.metrics)
        at.stopping = stopping.state_dict()
        trackers.log(at.step, at.metrics | ({ENDED_EARLY: 1.0} if stopping.reason else {}))
        if stopping.reason and distributed.is_main():
            log.info("step %s of %s: the run ends, because %s", f"{at.step:,}", f"{cfg.steps:,}", stopping.reason)
        return predictions

    # ---- The loop ----
    state, predictions, profiler = "failed", None, None
    try:
        if at.step == 0 and cfg.steps > 0 and distributed.is_main():
            sources, num_parts = (inputs.train, inputs.validation), engine.num_micro_batches
            trackers.publish(first_samples.write(folder, *sources, inputs.collator, inputs.plan, num_parts))
        gc.collect()
        gc.freeze()  # keeps the collector from scanning the model and the data again in the middle of a step
        if cfg.profile and at.step < cfg.steps and distributed.is_main():
            profiler = profiling.start(folder / "trace.json.gz", cfg.steps - at.step)
        batches = recovery.batches_from(at.step)  # the workers encode the first steps while the run evaluates
        if due(cfg.eval_every, at.step, cfg.steps) and at.evaluated_at != at.step:
            predictions = evaluate_on_schedule()
            if at.step > 0:
                save()  # or a kill before the next save would repeat this evaluation and log its row twice

        activity.name = "training"
        while at.step < cfg.steps and not stopping.reason:
            step_began = time.perf_counter()
            sample_ids, micro_batches = next(batches)
            data_seconds = time.perf_counter() - step_began
            totals = step_totals(micro_batches, should_end())  # before any forward pass: losses are divided by them
            end_if_asked(totals.should_end)
            result = recovery.train_step(at.step, micro_batches, totals.counts, schedule(at.step), sample_ids)
            at.step += 1
            average.update(at.step)

            row = None
            if due(cfg.log_every, at.step, cfg.steps):
                row = step_metrics.training_row(criterion, optimizer, result, totals, device)
                seconds, step_flops = time.perf_counter() - step_began, model.training_flops(totals.sizes)
                row |= step_metrics.time_metrics(seconds, data_seconds, totals, step_flops, peak)
                row |= step_metrics.prefixed("time", model.teacher_cache.pop_hit_rate())
                trackers.log(at.step, row)
            display.step_done(at.step, inputs.plan.epoch_at(at.step), totals.sizes.tokens, row)
            compiled.step_done()
            if profiler:
                profiler.step()
            if due(cfg.eval_every, at.step, cfg.steps):
                predictions = evaluate_on_schedule()
            if due(cfg.save_every, at.step, at.step if stopping.reason else cfg.steps):
                save()

        with display.spending("saving"):
            saver.finish()
        # A run that resumed after its last step evaluates again, because predictions are not saved.
        if predictions is None and cfg.eval_every is not None:
            predictions = evaluate_average()
        activity.name = "report"
        display.close()
        if distributed.is_main():
            length = f"{count_of(at.step, 'step')}, {rounded(inputs.plan.epoch_at(at.step))} epochs"
            was_finished = at.step == first_step > 0
            notes = {
                "length": length,
                "done": f"before: nothing was trained this time. {first_screen.LONGER}" if was_finished else None,
                "stopped": stopping.reason,
                "memory": recovery.learnt.summary(),
                "time": display.time_spent(),
            }
            _report(cfg, inputs, at, predictions or [], criterion.weights, trackers, notes)
        state = "done"
    except BaseException as error:
        restart.wait_if_called()  # another rank ran out of memory, and left this one in an exchange
        state = STATES.get(type(error), "failed")
        log.debug("stopped at step %d", at.step, exc_info=True)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(at.step, at.saved_at, str(folder), cfg.about.resume_overrides) from None
        raise
    finally:
        if profiler:
            profiler.stop()
        gc.unfreeze()  # or the next run of a sweep could not reuse this one's memory
        display.close()
        saver.close()
        trackers.close(state)
        if state == "preempted":  # once one rank has left with an error, torchrun kills those that are still closing
            distributed.barrier()
        engine.close()


def raise_if_asked_to_end(step: int, cfg: DictConfig) -> None:
    """Raise Preempted on all ranks if a signal asked any of them to end. All ranks must call this together."""
    if signal_name := next(filter(None, distributed.gather(preemption.signal_name())), None):
        raise preempted_by(signal_name, step, cfg)


def preempted_by(signal_name: str, step: int, cfg: DictConfig) -> Preempted:
    return Preempted(step, signal_name, str(cfg.folder), cfg.about.resume_overrides)


def _report(
    cfg: DictConfig,
    inputs: RunInputs,
    at: Progress,
    predictions: list[tuple[Picture, Prediction]],
    weights: dict[str, float],
    trackers: Trackers,
    notes: Mapping[str, str | None],
) -> None:
    """Draw the losses, the rates and some validation pictures, and print the table of the run."""
    folder = Path(cfg.folder)
    trackers.publish(final_report.write_plots(folder, predictions, at.metrics, weights))
    pictures = [picture for picture, _ in predictions]
    print(final_report.summarize(folder, inputs.data.pool, pictures, cfg.seed, notes, trackers.mlflow_command))


def due(every: int | None, step: int, num_steps: int) -> bool:
    """Return whether an action that recurs every `every` steps is due after `step`.

    It is always due after the last step, and never if `every` is None.
    """
    return every is not None and (step % every == 0 or step == num_steps)
