"""An evaluation measures what training minimises, and scores only what a run trains."""

from typing import NamedTuple

import pytest
import torch
from hydra.utils import instantiate
from torch._dynamo.utils import counters

from bbu_train.data.splits import Splits
from bbu_train.data.teachers import TeacherDraw
from bbu_train.errors import InputError
from bbu_train.optimizer.groups import parameters_by_group
from bbu_train.training import loader, recovery, setup, step_metrics, untrained_head, validation

SMALL = ("head.num_queries=12", "head.d_model=32", "head.num_heads=2", "head.max_caption_tokens=4")
NO_WEIGHT = [f"loss.weights.{name}=0" for name in ("l1", "giou", "objectness", "caption")]
FROZEN = ["optimizer.groups.detection.lr=0", "optimizer.groups.adapter.lr=0"]


class Assembled(NamedTuple):
    """What train.py builds of a config, for a data set whose validation pictures are those of training."""

    inputs: setup.RunInputs
    engine: object
    model: torch.nn.Module
    criterion: object
    optimizer: object

    def recovering(self, folder):
        return recovery.Recovery(self.inputs, self.engine, self.criterion, self.optimizer, 0, folder)

    def evaluate(self):
        return validation.evaluate(self.inputs, self.engine, self.model, self.criterion, 0, lambda: None)

    @property
    def warnings(self):
        return "\n".join(untrained_head.warnings(self.model, self.criterion))


@pytest.fixture
def assemble(resolved_config, samples):
    def build(*overrides):
        cfg = resolved_config(*(() if "head=none" in overrides else SMALL), *overrides)
        fields = {"teacher_ratio": 0, "num_teachers": 0, "num_validation_teachers": 0}
        splits = Splits(samples, samples, TeacherDraw(**fields, seed=1, validation_seed=1), {})
        inputs = setup.prepare(cfg, setup.RunData(splits, {}))
        torch.manual_seed(0)
        parts = {name: instantiate(cfg[name], _convert_="all") for name in ("loss", "optimizer", "engine", "head")}
        model = instantiate(cfg.model.network, _convert_="all")(device=torch.device("cpu"), head=parts["head"])
        optimizer = parts["optimizer"](model)
        groups = parameters_by_group(optimizer)
        engine = parts["engine"](model, parts["loss"], optimizer, groups, torch.device("cpu"))
        return Assembled(inputs, engine, model, parts["loss"], optimizer)

    return build


def test_an_evaluation_compiles_nothing(assemble):
    """Graphs without gradients would serve nothing else, and take longer than most evaluations."""
    torch.compiler.reset()
    counters.clear()
    metrics, _ = assemble("model.compile=true").evaluate()
    assert metrics["eval/loss/total"] > 0
    assert not counters["frames"]


@pytest.mark.parametrize(
    "choices", [("head=detr",), ("head=dino", "loss=varifocal"), ("head=dino", "loss.dense_weight=3")]
)
def test_every_loss_and_the_total_of_an_evaluation_are_those_of_a_training_step_on_its_samples(assemble, choices):
    run = assemble(*choices)
    steps = run.inputs.evaluation_steps
    [[batch]] = loader.batches(run.inputs.train, run.inputs.collator, steps, 1, 0, 1, 0)
    with torch.no_grad():
        trained = step_metrics.loss_metrics(run.criterion, run.engine(batch), batch.counts)
    evaluated, predictions = run.evaluate()
    losses = {name.removeprefix("eval/"): value for name, value in evaluated.items() if name.startswith("eval/loss/")}
    assert losses == pytest.approx(trained, rel=1e-5)
    assert ("loss/denoising_bbox_l1" in losses and "loss/dense_objectness" in losses) == ("head=dino" in choices)
    assert len(predictions) == 4
    assert all(module.training for module in run.model.modules())


def only_fits(run, monkeypatch, num_samples):
    """Let the criterion run out of memory for batches of more samples."""
    compute = type(run.criterion).__call__

    def compute_if_it_fits(criterion, outputs, batch):
        if len(batch.sample_ids) > num_samples:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute(criterion, outputs, batch)

    monkeypatch.setattr(type(run.criterion), "__call__", compute_if_it_fits)


def test_an_evaluation_that_runs_out_of_memory_takes_fewer_samples_at_a_time_and_gives_the_same(
    assemble, tmp_path, monkeypatch
):
    run = assemble("head=dino")
    expected, pairs = run.evaluate()
    only_fits(run, monkeypatch, num_samples=1)
    recovering = run.recovering(tmp_path)
    metrics, again = recovering.evaluate(0, run.model, lambda: None)
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert [picture for picture, _ in again] == [picture for picture, _ in pairs]
    assert all(module.training for module in run.model.modules())
    assert recovering.learnt.summary() == (
        "the device ran out of memory; from step 0 on, evaluation batches of 1 instead of 4"
    )
    assert run.recovering(tmp_path).learnt == recovering.learnt  # as in a run that goes on


def test_a_sample_that_cannot_be_evaluated_alone_is_named(assemble, tmp_path, monkeypatch):
    run = assemble("head=none", "loss=language", "eval_batch_size=1")
    only_fits(run, monkeypatch, num_samples=0)
    with pytest.raises(InputError, match="The sample a alone needs too much memory to be evaluated: it has .* tokens"):
        run.recovering(tmp_path).evaluate(0, run.model, lambda: None)


@pytest.mark.parametrize("overrides", [NO_WEIGHT, FROZEN, FROZEN[:1], NO_WEIGHT[:2]])
def test_a_head_whose_boxes_stay_random_is_not_scored_and_the_run_says_so(assemble, overrides):
    run = assemble(*overrides)
    metrics, predictions = run.evaluate()
    assert predictions == []
    assert metrics
    assert all(name.startswith("eval/loss/") for name in metrics)
    assert "The head's part that predicts boxes stays random" in run.warnings
    assert "the head is not scored" in run.warnings
    with pytest.raises(
        ValueError, match=r"The head of the run in outputs/a/b was never trained: .*Take route='generated'"
    ):
        untrained_head.refuse_untrained(run.model.head, run.criterion, "outputs/a/b")


def test_the_run_says_which_losses_of_a_frozen_random_head_reach_the_vision_tower(assemble):
    run = assemble(*FROZEN)
    assert run.warnings.count("still train the vision tower") == 3
    steps = run.inputs.evaluation_steps
    [[batch]] = loader.batches(run.inputs.train, run.inputs.collator, steps, 1, 0, 1, 0)
    run.engine(batch)["bbox_l1"].backward()
    weight = run.model.backbone.model.visual.patch_embed.proj.weight
    assert weight.grad.any()  # what the warning states
    assert "still train" not in assemble(*FROZEN, *NO_WEIGHT).warnings


def test_a_head_whose_descriptions_stay_random_is_scored_without_classes(assemble):
    run = assemble("loss.weights.caption=0")
    assert "predicts descriptions stays random, because its losses have weight 0" in run.warnings
    metrics, predictions = run.evaluate()
    assert len(predictions) == 4
    assert "eval/agnostic_ap50" in metrics
    assert all(name.startswith(("eval/loss/", "eval/agnostic_")) for name in metrics)


def test_a_head_whose_scores_stay_random_is_not_scored(assemble):
    run = assemble("loss.weights.objectness=0")
    assert "predicts scores stays random, because its losses have weight 0: the head is not scored" in run.warnings
    assert run.evaluate()[1] == []


def test_a_trained_head_and_no_head_need_no_warning(assemble):
    assert assemble().warnings == ""
    assert assemble("head=none", "loss=language").warnings == ""
