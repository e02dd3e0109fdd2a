"""Gradient norms of each weighted loss for each parameter group of a trained model: a guide for choosing loss weights.

    python benchmarks/gradients.py run=<run folder> [pictures=16]

Takes the last checkpoint and the first pictures of validation, without teachers, as one training step (`loss.weights`
and means over the step included). Prints a row for each loss, a row for all losses but `student_lm` together, and a
column for each group of the run's optimizer. Runs on a GPU or a CPU.
"""

import sys

import torch
from hydra.utils import instantiate

from bbu_train.cli import arguments
from bbu_train.evaluate.split import load_split
from bbu_train.optimizer.groups import parameters_by_group
from bbu_train.predict.trained_run import TrainedRun


def main() -> None:
    options = arguments.parse(sys.argv[1:], {"run": None, "pictures": 16})
    run = TrainedRun(options.run, "last", "generated")
    run.set_threads()
    criterion, make_collator, make_optimizer = (
        instantiate(run.cfg[key], _convert_="all") for key in ("loss", "collator", "optimizer")
    )
    _, samples = load_split(run.cfg, "validation")
    builder, predictor = run.make_builder(), run.load_predictor(1)
    conversations = [builder.converse(sample, (), with_answer=True) for sample in samples[: options.pictures]]
    batch = make_collator(run.picture_format)([builder.encode(each) for each in conversations]).to(predictor.device)
    model = predictor.model.train()
    groups = parameters_by_group(make_optimizer(model))
    with predictor.autocast():
        losses = criterion(model(batch), batch)
    print(f"{'':24}" + "".join(f"{name:>12}" for name in groups))
    rows = {name: {name} for name in losses} | {"all but student_lm": set(losses) - {"student_lm"}}
    for label, kept in rows.items():
        model.zero_grad()
        masked = {name: loss if name in kept else 0 * loss.detach() for name, loss in losses.items()}
        criterion.objective(masked, batch.counts).backward(retain_graph=True)
        norms = [
            torch.stack([p.grad.float().norm() for p in group if p.grad is not None] or [torch.zeros(())]).norm()
            for group in groups.values()
        ]
        print(f"{label:24}" + "".join(f"{norm.item():>12.4f}" for norm in norms))


if __name__ == "__main__":
    main()
