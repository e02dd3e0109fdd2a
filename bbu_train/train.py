"""Training, from top to bottom: check everything, build one thing after the other, then the loop."""

import gc
import logging
import math
import time
from dataclasses import astuple, fields
from functools import partial
from itertools import tee
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from bbu_train.checkpoint.load import load_weights
from bbu_train.errors import Preempted
from bbu_train.ops import flops
from bbu_train.ops.flops import Sizes
from bbu_train.optimizer.groups import learning_rates, parameters_by_group, set_learning_rates
from bbu_train.reporting import final_report, first_samples
from bbu_train.runs import folder as run_folder
from bbu_train.runs import identity
from bbu_train.runtime import distributed, logs, preemption, profiling
from bbu_train.runtime.host_copy import to_host
from bbu_train.training import loader, planning, setup, step_metrics
from bbu_train.training.validation import between, evaluate
from bbu_train.types.batch import Counts

log = logging.getLogger(__name__)
build = partial(instantiate, _convert_="all")


def train(cfg: DictConfig) -> None:
    """One run, from its beginning or its last saved step to `cfg.steps`. Every rank calls this.

    Raises Preempted where a signal asked any rank to end and all of them did, between two steps.
    """
    torch.set_num_threads(cfg.threads)
    device = distributed.start()
    try:
        _train(cfg, device)
    finally:
        distributed.finish()  # whatever happened, or the next run of a sweep could not join them


def _train(cfg: DictConfig, device: torch.device) -> None:  # noqa: PLR0912, PLR0915 (it is the story)
    early_log = logs.start()
    cfg.run = distributed.from_main(cfg.run or identity.new_run_name(cfg))
    folder = Path(cfg.folder)
    checkpoints = build(cfg.checkpoint)
    saved = checkpoints.latest()
    step = saved_at = saved.step if saved else 0
    metrics, evaluated_at = {}, None  # of the last evaluation, and after which step it was

    def save() -> None:
        nonlocal saved_at
        if distributed.is_main():
            state = {"optimizer": optimizer.state_dict(), "trained": average.trained()}
            state |= {"metrics": metrics, "evaluated_at": evaluated_at}
            checkpoints.save(step, average.weights(), state, metrics if evaluated_at == step else {})
        saved_at = step
        distributed.barrier()

    def end_if(asked: bool) -> None:
        """Every rank has the same answer here, after the same step."""
        if asked:
            if step > saved_at:
                save()
            came = next(filter(None, distributed.gather(preemption.signal_name())))
            raise Preempted(step, came, str(folder))

    def end_if_asked() -> None:
        end_if(distributed.any_rank(preemption.requested()))

    end_if_asked()

    # ---- What can be known before the model loads: the data, and whether every step of the run can be planned ----
    data = build(cfg.data)
    setup.num_objects((*data.train, *data.validation), cfg.head.get("num_queries"))
    preprocessing = build(cfg.model.preprocessing)
    builder = build(cfg.conversation)(preprocessing.tokenizer, preprocessing.picture_format)
    collator = build(cfg.collator)(preprocessing.picture_format)
    setup.max_tokens(collator.max_tokens, preprocessing.max_positions)
    source, validation = loader.sources(data, build(cfg.augmentation), builder, preprocessing.cost, collator)
    plan = planning.StepPlan(build(cfg.sampler), source, cfg.steps)
    evaluation_plan = planning.in_order(validation, cfg.eval_batch_size)
    longest_caption = builder.longest_caption(data.train)  # no longer one can be learned
    end_if_asked()

    # ---- The model, and what trains it ----
    torch.manual_seed(cfg.seed)
    model = build(cfg.model.network)(device=device, head=build(cfg.head))
    criterion = build(cfg.loss)
    optimizer = build(cfg.optimizer)(model)
    model.check_teacher_cache()  # the optimizer freezes groups
    average = build(cfg.average)(model, optimizer)
    schedule = build(cfg.schedule)
    engine = build(cfg.engine)(model, criterion, optimizer, parameters_by_group(optimizer), device)
    peak_matmul_rate = distributed.sum_numbers([flops.peak_matmul_rate(device, engine.precision)])[
        0
    ]  # of all devices together

    end_if_asked()  # and leave no folder of a run that has not begun

    # ---- Where the run lies, and how far it got ----
    if distributed.is_main():
        if not (folder / run_folder.CONFIG).exists():
            run_folder.create(folder, cfg)
        logs.to_file(early_log, folder)
    if saved is not None:
        weights, restored = saved.weights(), saved.state()
        load_weights(model, weights | restored["trained"])
        average.load(weights)
        del weights
        optimizer.load_state_dict(restored["optimizer"])
        metrics, evaluated_at = restored["metrics"], restored["evaluated_at"]
    log.info("%s: from step %d to %d", folder, step, cfg.steps)
    trackers = build(cfg.tracker) if distributed.is_main() else {}
    for tracker in trackers.values():
        tracker.open(OmegaConf.to_container(cfg, resolve=True), step)

    def track(metrics: dict[str, float]) -> None:
        for tracker in trackers.values():
            tracker.log(step, metrics)

    def publish(paths: list[Path]) -> None:
        for path in paths:
            for tracker in trackers.values():
                tracker.artifact(path)

    def evaluated():
        nonlocal evaluated_at
        mine = evaluation_plan[distributed.rank() :: distributed.world_size()]
        num_rounds = math.ceil(len(evaluation_plan) / distributed.world_size())
        batches = loader.batches(validation, collator, mine, 1, 0, 1, cfg.num_workers)
        batches = between(batches, num_rounds, end_if_asked)  # it may take longer than there is time to end
        with average.applied():
            metrics, found = evaluate(engine, model, criterion, batches, data.validation, builder.text, longest_caption)
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        evaluated_at = step
        if distributed.is_main():
            publish(final_report.write_gallery(folder, step, found[: cfg.gallery], metrics))
        return metrics, found

    def due(every: int | None) -> bool:
        return every is not None and (step % every == 0 or step == cfg.steps)

    # ---- The loop ----
    state, found = "failed", None
    profiler = None
    progress = tqdm(total=cfg.steps, initial=step, unit="step", disable=None if distributed.is_main() else True)
    try:
        if step == 0 and cfg.steps > 0 and distributed.is_main():
            publish([first_samples.write_page(folder, source, validation, collator, plan, engine.num_micro_batches)])
        gc.collect()
        gc.freeze()  # what is here stays: the collector need not look through it again in the middle of a step
        if cfg.profile and step < cfg.steps and distributed.is_main():
            profiler = profiling.start(folder / "trace.json.gz", cfg.steps - step)
        if due(cfg.eval_every) and evaluated_at != step:  # at the start, or abandoned when the run was asked to end
            metrics, found = evaluated()
            track(metrics)
            if step > 0:
                save()  # or a kill before the next save would have this evaluation made, and its row written, again
        ranks = distributed.rank(), distributed.world_size()
        steps, ahead = tee(plan.starting_at(step))
        batches = loader.batches(source, collator, ahead, engine.num_micro_batches, *ranks, cfg.num_workers)
        while step < cfg.steps:
            began = time.perf_counter()
            planned, micro_batches = next(steps), [batch.to(device) for batch in next(batches)]
            waited = time.perf_counter() - began
            counts, sizes, num_slots, asked_to_end = _summed(micro_batches)  # before any forward
            end_if(asked_to_end)
            set_learning_rates(optimizer, schedule(step))
            sums: dict[str, torch.Tensor] = {}
            for i, batch in enumerate(micro_batches):
                with engine.accumulate(
                    last=i == len(micro_batches) - 1
                ):  # around forward too: DDP arms its reducer there
                    losses = engine(batch)  # sums, never means
                    engine.backward(criterion.objective(losses, counts))
                sums = {name: sums.get(name, 0) + loss.detach() for name, loss in losses.items()}
            arrived = to_host(distributed.sum_over_ranks(torch.stack(list(sums.values()))))  # before the step is
            norms = engine.step(source.names(planned))  # refuses a non-finite update, on every rank alike
            step += 1
            average.update(step)

            if due(cfg.log_every):
                row = step_metrics.losses(criterion, dict(zip(sums, arrived(), strict=True)), counts)
                row |= step_metrics.under("lr", learning_rates(optimizer)) | step_metrics.under("grad_norm", norms)
                seconds = time.perf_counter() - began
                useful = model.training_flops(sizes)
                row |= step_metrics.times(seconds, waited, sizes.tokens, num_slots, useful, peak_matmul_rate)
                row |= step_metrics.memory(device)
                row |= step_metrics.under("time", model.teacher_cache.hits())
                track(row)
                progress.set_postfix_str(step_metrics.short(row), refresh=False)
            progress.update()
            if profiler:
                profiler.step()
            if due(cfg.eval_every):
                metrics, found = evaluated()
                track(metrics)
            if due(cfg.save_every):
                save()

        if found is None and cfg.eval_every is not None:  # the run had ended before
            metrics, found = evaluated()
        if distributed.is_main():
            progress.close()
            found = found or []
            publish(final_report.write_plots(folder, found, metrics.get("eval/f1_threshold", 0.5)))
            mlflow_command = trackers["mlflow"].command if "mlflow" in trackers else None
            print(
                final_report.summarize(folder, data.pool, [picture for picture, _ in found], cfg.seed, mlflow_command)
            )
        state = "done"
    except BaseException as error:
        ends = {Preempted: "preempted", KeyboardInterrupt: "interrupted"}
        state = ends.get(type(error), "failed")
        log.debug("stopped at step %d", step, exc_info=True)
        raise
    finally:
        if profiler:
            profiler.stop()
        gc.unfreeze()  # or the next run of a sweep could not have this one's memory
        progress.close()
        for tracker in trackers.values():
            tracker.close(state)
        if state == "preempted":  # torchrun kills the ranks that are still closing when one has left with an error
            distributed.barrier()
        engine.close()


def _summed(micro_batches) -> tuple[Counts, Sizes, int, bool]:
    """Over all micro-batches and ranks of a step: what its sums are divided by, how much there is to compute, and the
    slots of its rows, padding included; and whether any rank was asked to end, which needs no exchange of its own."""
    parts = [(*astuple(batch.counts), *astuple(batch.sizes), batch.input_ids.numel()) for batch in micro_batches]
    mine = [*(sum(its) for its in zip(*parts, strict=True)), preemption.requested()]
    *numbers, num_slots, num_asked = distributed.sum_numbers(mine)
    num_counts = len(fields(Counts))
    return Counts(*numbers[:num_counts]), Sizes(*numbers[num_counts:]), num_slots, num_asked > 0
