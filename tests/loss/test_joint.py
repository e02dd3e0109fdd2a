"""All losses together: what each one trains, and what remains if something to learn from is missing."""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from bbu_train.loss.joint import JointLoss
from bbu_train.optimizer.groups import parameters_by_group
from bbu_train.training import step_metrics
from bbu_train.types.batch import Batch, Counts
from bbu_train.types.outputs import Losses, Outputs

WEIGHTS = {
    "teacher_lm": "teacher",
    "student_lm": "student",
    "bbox_l1": "l1",
    "bbox_giou": "giou",
    "objectness": "objectness",
    "caption": "caption",
}
LANGUAGE = ("teacher_lm", "student_lm")
BACKBONE = {"llm", "vision", "merger"}
EVERYTHING = BACKBONE | {"adapter", "detection"}


class Step(NamedTuple):
    """A forward pass whose graph several tests use."""

    model: nn.Module
    batch: Batch
    outputs: Outputs
    losses: Losses

    def objective(self, criterion: JointLoss) -> Tensor:
        return criterion.objective(self.losses, self.batch.counts)

    def gradients(self, total: Tensor) -> dict[str, Tensor | None]:
        """The gradient of each parameter, None for those that are not on the graph."""
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        return dict(zip(names, gradients, strict=True))


def run_step(model, criterion, batch) -> Step:
    outputs = model(batch)
    return Step(model, batch, outputs, criterion(outputs, batch))


@pytest.fixture(scope="module")
def step(make_model, make_criterion, collate, encoded):
    return run_step(make_model(), make_criterion(), collate("packed", encoded))


@pytest.fixture(scope="module")
def criterion_with(config):
    """A function from weights by component, and `aux_weight`, to a criterion.

    It changes one composed config, because composing one for each test takes longer than all the rest.
    """

    def make(weights, aux_weight):
        loss = config().loss
        loss.weights.update({WEIGHTS[component]: weight for component, weight in weights.items()})
        loss.aux_weight = aux_weight
        return instantiate(loss, _convert_="all")

    return make


@pytest.fixture(scope="module")
def gradients_of(step, criterion_with):
    """A function from a component to the gradients of the objective in which only it has a weight."""

    @cache
    def make(component):
        weights = {name: float(name == component) for name in WEIGHTS}
        criterion = criterion_with(weights, aux_weight=1.0 if component in LANGUAGE else 0.0)
        return step.gradients(step.objective(criterion))

    return make


@pytest.fixture(scope="module")
def trained_groups(step, gradients_of, config):
    """A function from a component to the optimizer's groups that get a gradient other than 0 from it."""
    groups = parameters_by_group(instantiate(config().optimizer, _convert_="all")(step.model))
    group_of = {id(parameter): group for group, parameters in groups.items() for parameter in parameters}

    def make(component):
        gradients = gradients_of(component)
        return {
            group_of[id(parameter)]
            for name, parameter in step.model.named_parameters()
            if gradients[name] is not None and gradients[name].norm() > 0
        }

    return make


@pytest.mark.parametrize("component", LANGUAGE)
def test_a_language_loss_trains_the_backbone_and_nothing_of_the_head(component, trained_groups):
    assert trained_groups(component) == BACKBONE


@pytest.mark.parametrize("component", ["bbox_l1", "bbox_giou", "objectness", "caption"])
def test_a_detection_loss_trains_head_and_backbone(component, trained_groups):
    assert trained_groups(component) == EVERYTHING


@pytest.mark.parametrize("component", WEIGHTS)
def test_a_loss_reaches_every_matrix_of_the_vision_tower(component, step, gradients_of):
    gradients = gradients_of(component)
    prefix = "backbone.model.visual."
    matrices = [name for name, p in step.model.named_parameters() if name.startswith(prefix) and p.ndim > 1]
    assert matrices
    assert [name for name in matrices if not gradients[name].norm() > 0] == []


@pytest.mark.parametrize("component", WEIGHTS)
def test_a_weight_multiplies_its_own_mean(component, step, criterion_with):
    weighted, without = (criterion_with({component: weight}, aux_weight=0.0) for weight in (7.0, 0.0))
    share = step.objective(weighted) - step.objective(without)
    mean = weighted.means(step.losses, step.batch.counts)[component]
    torch.testing.assert_close(share, 7 * mean, atol=1e-4, rtol=1e-5)


def test_each_sum_is_divided_by_its_own_count(step, make_criterion):
    counts = Counts(teacher_tokens=2, student_tokens=3, objects=5, samples=7)
    means = make_criterion().means(step.losses, counts)
    divisors = {name: round((step.losses[name] / means[name]).item()) for name in WEIGHTS}
    assert divisors == dict(zip(WEIGHTS, [2, 3, 5, 5, 7, 7], strict=True))


@pytest.fixture(scope="module", params=["packed", "standard"])
def step_without(request, collate, encoded, builder, samples, make_model, make_criterion):
    """A function from what is missing to a step on a batch that lacks it."""

    def encode(missing):
        if missing == "objects":  # annotated as empty
            return [replace(s, boxes_cxcywh=s.boxes_cxcywh[:0], noise=s.noise[:0], captions=()) for s in encoded]
        if missing == "supervision":
            return [sample.unsupervised() for sample in encoded]
        return [builder.encode(builder.converse(sample, (), with_answer=True)) for sample in samples]

    @cache
    def make(missing):
        return run_step(make_model(), make_criterion(), collate(request.param, encode(missing)))

    return make


@pytest.mark.parametrize("missing", ["objects", "supervision", "teachers"])
def test_every_parameter_gets_a_finite_gradient_whatever_is_missing(missing, step_without, make_criterion):
    step = step_without(missing)
    gradients = step.gradients(step.objective(make_criterion()))
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []


@pytest.mark.parametrize(
    ("missing", "undefined"),
    [
        ("objects", {"bbox_l1", "bbox_giou", "caption", "aux_bbox_l1", "aux_bbox_giou"}),
        ("teachers", {"teacher_lm"}),
        ("supervision", {*WEIGHTS, "aux_bbox_l1", "aux_bbox_giou", "aux_objectness"}),
    ],
)
def test_a_loss_of_what_is_missing_has_no_mean_and_stays_on_the_graph_as_0(
    missing, undefined, step_without, make_criterion
):
    step, criterion = step_without(missing), make_criterion()
    means = criterion.means(step.losses, step.batch.counts)
    assert step.losses.keys() - means.keys() == undefined
    assert {name for name, loss in step.losses.items() if loss == 0} == undefined
    assert {name for name, loss in step.losses.items() if not loss.requires_grad} == set()
    total = sum(criterion.weights[name] * mean for name, mean in means.items())
    torch.testing.assert_close(step.objective(criterion), torch.as_tensor(total, dtype=torch.float32))
    logged = step_metrics.loss_metrics(criterion, step.losses, step.batch.counts)
    assert logged.keys() == {f"loss/{name}" for name in (*means, *(["total"] if means else []))}


def test_a_step_without_any_supervision_has_zero_gradients(step_without, make_criterion):
    step = step_without("supervision")
    total = step.objective(make_criterion())
    assert total == 0
    assert [name for name, gradient in step.gradients(total).items() if (gradient != 0).any()] == []


def test_pictures_annotated_as_empty_train_objectness_only(step_without):
    losses = step_without("objects").losses
    assert losses["objectness"] > 0
    assert losses["bbox_l1"] == losses["bbox_giou"] == losses["caption"] == 0


@torch.no_grad()
def test_a_picture_without_objects_weighs_as_much_as_another_in_the_losses_of_objectness(
    collate, encoded, make_model, make_criterion
):
    model, criterion = make_model("head=dino"), make_criterion()

    def means(*some):
        batch = collate("packed", list(some))
        return criterion.means(criterion(model(batch), batch), batch.counts)

    busy, empty, both = means(encoded[0]), means(encoded[2]), means(encoded[0], encoded[2])
    for name in ("objectness", "aux_objectness", "dense_objectness"):
        torch.testing.assert_close(both[name], (busy[name] + empty[name]) / 2)
    assert not {"denoising_objectness", "dense_bbox_l1", "caption"} & empty.keys()


@torch.no_grad()
def test_a_sample_without_annotations_changes_no_detection_loss(collate, encoded, make_model, make_criterion):
    model, criterion = make_model(), make_criterion()
    batch = collate("packed", [encoded[0]])
    batch_with_it = collate("packed", [encoded[0], replace(encoded[2], annotated=False)])
    expected, losses = criterion(model(batch), batch), criterion(model(batch_with_it), batch_with_it)
    names = [name for name in losses if not name.endswith("_lm")]
    assert batch_with_it.counts.samples == 1
    torch.testing.assert_close({name: losses[name] for name in names}, {name: expected[name] for name in names})


@pytest.fixture(scope="module")
def three_layers(make_model, collate, encoded):
    """The outputs of a model with three decoder layers, and their batch."""
    batch = collate("packed", encoded)
    with torch.no_grad():
        return make_model("head.num_decoder_layers=3")(batch), batch


def test_the_losses_of_earlier_layers_are_proportional_to_aux_weight(three_layers, criterion_with):
    outputs, batch = three_layers
    criteria = [criterion_with({}, aux_weight) for aux_weight in (0.0, 1.0, 2.0)]
    without, once, twice = (criterion.objective(criterion(outputs, batch), batch.counts) for criterion in criteria)
    assert once > without
    torch.testing.assert_close(twice - without, 2 * (once - without))


def test_an_earlier_layer_has_the_losses_that_it_would_have_as_the_last(three_layers, make_criterion):
    outputs, batch = three_layers
    criterion, detections = make_criterion(), outputs.detections
    losses = criterion(outputs, batch)
    expected = dict.fromkeys(("bbox_l1", "bbox_giou", "objectness"), 0)
    for layer in range(2):
        parts = ("boxes_logits", "boxes_cxcywh", "objectness_logits")
        only_layer = replace(detections, **{name: getattr(detections, name)[layer : layer + 1] for name in parts})
        as_last = criterion(replace(outputs, detections=only_layer), batch)
        expected = {name: total + as_last[name] for name, total in expected.items()}
    torch.testing.assert_close({name: losses[f"aux_{name}"] for name in expected}, expected)


def test_with_aux_weight_0_no_auxiliary_loss_is_computed(step, criterion_with):
    assert set(criterion_with({}, 0.0)(step.outputs, step.batch)) == set(WEIGHTS)


def test_a_single_layer_has_no_auxiliary_loss(make_model, make_criterion, collate, encoded):
    with torch.no_grad():
        step = run_step(make_model("head.num_decoder_layers=1"), make_criterion(), collate("packed", encoded))
    assert set(step.losses) == set(WEIGHTS)


@torch.no_grad()
def test_a_model_without_a_head_has_the_language_losses_alone(make_model, make_criterion, collate, encoded):
    batch, joint, language = collate("packed", encoded), make_criterion(), make_criterion("loss=language")
    outputs = make_model("head=none")(batch)
    losses = joint(outputs, batch)
    assert set(losses) == set(LANGUAGE)
    expected = language.objective(language(outputs, batch), batch.counts)
    torch.testing.assert_close(joint.objective(losses, batch.counts), expected)


def test_the_language_criterion_trains_nothing_of_a_head(step, make_criterion):
    language = make_criterion("loss=language")
    total = language.objective(language(step.outputs, step.batch), step.batch.counts)
    gradients = step.gradients(total)
    assert {gradient for name, gradient in gradients.items() if name.startswith("head.")} == {None}
