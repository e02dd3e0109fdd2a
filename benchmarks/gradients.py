"""Which losses a part of a trained model hears: the norms of their weighted gradients, to choose weights by.

    python benchmarks/gradients.py run=<run folder> [pictures=16]

With the last checkpoint and the first pictures of validation, without teachers, as one step of training would have them
(weights of `loss.weights` and means over the step). Prints a row for each loss, and one for all but `student_lm`
together, and a column for each group of the run's optimizer. Runs on a GPU or a CPU.
"""

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bbu_train.evaluate.split import load
from bbu_train.optimizer.groups import parameters_by_group
from bbu_train.predict.run import TrainedRun


def main() -> None:
    own = OmegaConf.merge({"run": None, "pictures": 16}, OmegaConf.from_cli())
    run = TrainedRun(own.run, "last", "generated", num_teachers=0)
    build = {key: instantiate(run.cfg[key], _convert_="all") for key in ("loss", "collator", "optimizer")}
    _, samples = load(run.cfg, "validation")
    builder, predictor = run.builder(), run.predictor(1, 1)
    encoded = [builder.encode(builder.converse(each, (), with_answer=True)) for each in samples[: own.pictures]]
    batch = build["collator"](run.picture_format)(encoded).to(predictor.device)
    model = predictor.model.train()
    groups = parameters_by_group(build["optimizer"](model))
    with predictor.autocast():
        losses = build["loss"](model(batch), batch)
    print(f"{'':24}" + "".join(f"{name:>12}" for name in groups))
    rows = {name: {name} for name in losses} | {"all but student_lm": set(losses) - {"student_lm"}}
    for name, kept in rows.items():
        model.zero_grad()
        some = {key: loss if key in kept else 0 * loss.detach() for key, loss in losses.items()}
        build["loss"].objective(some, batch.counts).backward(retain_graph=True)
        norms = [
            torch.stack([p.grad.float().norm() for p in group if p.grad is not None] or [torch.zeros(())]).norm()
            for group in groups.values()
        ]
        print(f"{name:24}" + "".join(f"{norm.item():>12.4f}" for norm in norms))


if __name__ == "__main__":
    main()
