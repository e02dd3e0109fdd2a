"""Training, from top to bottom: check everything, build one thing after the other, then the loop."""

import logging
import logging.handlers
import resource
import sys
import time
from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from bbu_train import distributed, loader, report, run_folder, runs
from bbu_train.errors import InputError, all_problems
from bbu_train.evaluate import evaluate
from bbu_train.optimizer.groups import learning_rates, parameters_by_group, set_learning_rates
from bbu_train.types import Counts, Draw

log = logging.getLogger(__name__)
build = partial(instantiate, _convert_="all")


def train(cfg: DictConfig) -> None:
    """One run, from its first or its last saved step to `cfg.steps`. Every rank calls this."""
    torch.set_num_threads(cfg.threads)
    device = distributed.start()
    early_log = _start_log()
    cfg.run = distributed.from_main(cfg.run or runs.new_name(cfg))
    folder = Path(cfg.folder)

    # What can be known of the data and the plan is known before the model loads.
    data = build(cfg.data)
    _check_num_objects(data, cfg.head.get("num_queries"))
    preprocessing = build(cfg.model.preprocessing)
    builder = build(cfg.conversation)(tokenizer=preprocessing.tokenizer, picture_format=preprocessing.picture_format)
    collator = build(cfg.collator)(picture_format=preprocessing.picture_format)
    _check_max_tokens(collator.max_tokens, preprocessing.max_positions)
    pool = data.pool
    source = loader.Source(
        data.train,
        lambda sample, epoch: data.teachers.draw(sample, epoch, pool),
        builder,
        collator.max_tokens,
        collator.too_long,
    )
    validation = loader.Source(
        data.validation,
        lambda sample, epoch: data.teachers.draw_validation(sample, pool),
        builder,
        collator.max_tokens,
        collator.too_long,
    )
    plan = loader.plan(build(cfg.sampler), source, cfg.steps)
    visited = [Draw(0, i) for i in validation.admissible(0)]
    evaluation_plan = [(tuple(visited[i : i + cfg.eval_samples]),) for i in range(0, len(visited), cfg.eval_samples)]

    # No caption is longer than the longest that can be learned.
    descriptions = {item.description for sample in data.train for item in sample.student.objects}
    max_caption_tokens = 1 + max((len(builder.text.ids(description)) for description in descriptions), default=0)

    # The model and what trains it.
    torch.manual_seed(cfg.seed)
    model = build(cfg.model.network)(device=device, head=build(cfg.head))
    criterion = build(cfg.loss)
    optimizer = build(cfg.optimizer)(model)
    schedule = build(cfg.schedule)
    engine = build(cfg.engine)(
        model=model, criterion=criterion, optimizer=optimizer, groups=parameters_by_group(optimizer), device=device
    )

    # Where it all goes, and where it went before.
    if distributed.is_main():
        if not (folder / run_folder.CONFIG).exists():
            run_folder.create(folder, cfg)
        early_log.setTarget(_file_log(folder))
    checkpoints = build(cfg.checkpoint)
    saved, step = checkpoints.latest(), 0
    if saved is not None:
        step = saved.step
        _load(model, saved.weights())
        optimizer.load_state_dict(saved.state()["optimizer"])
        log.info("going on from step %d of %s", step, folder)
    trackers = build(cfg.tracker) if distributed.is_main() else {}
    for tracker in trackers.values():
        tracker.open(OmegaConf.to_container(cfg, resolve=True), step)

    def track(metrics: dict[str, float]) -> None:
        for tracker in trackers.values():
            tracker.log(step, metrics)

    def evaluated():
        batches = loader.batches(
            validation, collator, evaluation_plan[distributed.rank() :: distributed.world_size()], 1, 0, 1, 0
        )
        return evaluate(model, criterion, builder.text, data.validation, batches, engine, max_caption_tokens)

    def due(every: int) -> bool:
        return step % every == 0 or step == cfg.steps

    state, metrics, predictions = "failed", {}, None
    progress = tqdm(total=cfg.steps, initial=step, unit="step", disable=None if distributed.is_main() else True)
    try:
        if step == 0:
            metrics, _ = evaluated()
            track(metrics)
        batches = loader.batches(
            source,
            collator,
            plan[step:],
            engine.num_micro_batches,
            distributed.rank(),
            distributed.world_size(),
            cfg.num_workers,
        )
        while step < cfg.steps:
            began = time.perf_counter()
            micro_batches = [batch.to(device) for batch in next(batches)]
            waited = time.perf_counter() - began
            counts = _summed_counts(micro_batches)
            set_learning_rates(optimizer, schedule(step))
            logged: dict[str, torch.Tensor] = {}
            for i, batch in enumerate(micro_batches):
                with engine.accumulate(last=i == len(micro_batches) - 1):
                    losses = engine(batch)  # sums, never means
                    engine.backward(criterion.objective(losses, counts))
                logged = {name: logged.get(name, 0) + loss.detach() for name, loss in losses.items()}
            norms = engine.step([source.samples[draw.index].id for row in plan[step] for draw in row])
            step += 1

            if due(cfg.log_every):
                sums = dict(zip(logged, distributed.sum_over_ranks(torch.stack(list(logged.values()))), strict=True))
                row = _report(criterion, sums, counts) | {f"lr/{k}": v for k, v in learning_rates(optimizer).items()}
                row |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
                track(row | _resources(time.perf_counter() - began, waited, micro_batches, device))
                progress.set_postfix({k.removeprefix("loss/"): f"{v:.3f}" for k, v in row.items() if "loss/" in k})
            progress.update()
            if due(cfg.eval_every):
                metrics, predictions = evaluated()
                track(metrics)
            if due(cfg.save_every):
                if distributed.is_main():
                    weights = dict(model.named_parameters())
                    checkpoints.save(step, weights, {"optimizer": optimizer.state_dict()}, metrics)
                distributed.barrier()

        if predictions is None:  # a run that had ended already
            metrics, predictions = evaluated()
        if distributed.is_main():
            pictures = [data.validation[draw.index].student for draw in visited]
            for path in report.draw(folder, pictures, predictions, metrics.get("eval/f1_threshold", 0.5)):
                for tracker in trackers.values():
                    tracker.artifact(path)
            command = trackers["mlflow"].command if "mlflow" in trackers else None
            progress.close()
            print(report.table(folder, data.pool, pictures, cfg.seed, command))
        state = "done"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        progress.close()
        for tracker in trackers.values():
            tracker.close(state)
        distributed.finish()


def _summed_counts(micro_batches) -> Counts:
    """What the sums of the whole step are divided by, known on every rank before the first forward pass."""
    total = sum((batch.counts for batch in micro_batches), Counts(0, 0, 0, 0))
    return Counts(*distributed.sum_numbers([total.teacher_tokens, total.student_tokens, total.objects, total.samples]))


def _report(criterion, sums, counts: Counts) -> dict[str, float]:
    means = criterion.means(sums, counts) | {"total": criterion.objective(sums, counts)}
    # One transfer to the host for all of them.
    values = torch.stack([torch.as_tensor(value) for value in means.values()]).tolist()
    return dict(zip((f"loss/{name}" for name in means), values, strict=True))


def _resources(seconds: float, waited: float, micro_batches, device: torch.device) -> dict[str, float]:
    num_tokens = sum(int((batch.sample_of_token >= 0).sum()) for batch in micro_batches)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        # The operating system counts KiB, macOS bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "time/step_seconds": seconds,
        "time/data_seconds": waited,
        "time/tokens_per_second": num_tokens / seconds,
        "memory/peak_gib": peak / 2**30,
    }


def _load(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """A checkpoint holds each parameter once, under the first of its names."""
    expected = {name for name, _ in model.named_parameters()}
    problems = [f"{name} is missing" for name in expected - weights.keys()]
    problems += [f"{name} is not in this model" for name in weights.keys() - expected]
    if problems:
        raise all_problems("The checkpoint is of another model", sorted(problems), "Resume with the run's own config.")
    model.load_state_dict(weights, strict=False)


def _check_num_objects(data, num_queries: int | None) -> None:
    """A head cannot answer for more objects than it has queries."""
    samples = (*data.train, *data.validation) if num_queries else ()
    problems = [
        f"{sample.id}: {len(sample.student.objects)} objects"
        for sample in samples
        if len(sample.student.objects or ()) > num_queries
    ]
    if problems:
        raise all_problems(
            f"Pictures with more objects than head.num_queries={num_queries}", problems, "Raise head.num_queries."
        )


def _check_max_tokens(max_tokens: int, max_positions: int) -> None:
    if not 0 < max_tokens <= max_positions:
        raise InputError(f"collator.max_tokens={max_tokens}: the model has positions for 1 to {max_positions} tokens.")


def _start_log() -> logging.handlers.MemoryHandler:
    """Messages go to the terminal and, once the run has a folder, with all that came before to its train.log."""
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    early = logging.handlers.MemoryHandler(capacity=10_000)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[terminal, early], force=True)
    return early


def _file_log(folder: Path) -> logging.FileHandler:
    handler = logging.FileHandler(folder / "train.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler
