"""All six losses together: what each one trains, and what is left where there is nothing to learn from."""

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate

from bbu_train.optimizer.groups import parameters_by_group
from bbu_train.types.batch import Counts

WEIGHTS = {
    "teacher_lm": "teacher",
    "student_lm": "student",
    "bbox_l1": "l1",
    "bbox_giou": "giou",
    "objectness": "objectness",
    "caption": "caption",
}
BACKBONE = {"llm", "vision", "merger"}
EVERYTHING = BACKBONE | {"adapter", "detection"}


def alone(component):
    """Overrides that leave one loss its weight, and weigh the others 0."""
    return [f"loss.weights.{weight}={int(name == component)}" for name, weight in WEIGHTS.items()]


def objective(model, criterion, batch):
    return criterion.objective(criterion(model(batch), batch), batch.counts)


def groups_of(model, config):
    return parameters_by_group(instantiate(config().optimizer, _convert_="all")(model))


@pytest.fixture
def gradient_of(make_model, make_criterion, collate, encoded, config):
    """A function from a component to the groups that its loss, alone, reaches with a gradient."""

    def make(component, *overrides):
        model, batch = make_model(), collate("packed", encoded)
        objective(model, make_criterion(*alone(component), *overrides), batch).backward()
        return {
            name
            for name, parameters in groups_of(model, config).items()
            if any(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in parameters)
        }

    return make


@pytest.mark.parametrize("component", ["teacher_lm", "student_lm"])
def test_a_language_loss_trains_the_backbone_and_nothing_of_the_head(component, gradient_of):
    assert gradient_of(component) == BACKBONE


@pytest.mark.parametrize("component", ["bbox_l1", "bbox_giou", "objectness", "caption"])
def test_a_detection_loss_trains_head_and_backbone(component, gradient_of):
    assert gradient_of(component, "loss.aux_weight=0") == EVERYTHING


@pytest.mark.parametrize("component", WEIGHTS)
def test_a_loss_reaches_every_matrix_of_the_vision_tower(component, make_model, make_criterion, collate, encoded):
    model, batch = make_model(), collate("packed", encoded)
    objective(model, make_criterion(*alone(component), "loss.aux_weight=0"), batch).backward()
    matrices = {name: p for name, p in model.backbone.model.visual.named_parameters() if p.ndim > 1}
    assert [name for name, parameter in matrices.items() if not parameter.grad.norm() > 0] == []


@pytest.mark.parametrize("component", WEIGHTS)
def test_a_weight_multiplies_its_own_mean(component, make_model, make_criterion, collate, encoded):
    batch, model = collate("packed", encoded), make_model()
    criterion = make_criterion(f"loss.weights.{WEIGHTS[component]}=7", "loss.aux_weight=0")
    others = make_criterion(f"loss.weights.{WEIGHTS[component]}=0", "loss.aux_weight=0")
    losses = criterion(model(batch), batch)
    share = criterion.objective(losses, batch.counts) - others.objective(losses, batch.counts)
    torch.testing.assert_close(share, 7 * criterion.means(losses, batch.counts)[component], atol=1e-4, rtol=1e-5)


def test_each_sum_is_divided_by_what_it_is_a_sum_over(make_model, make_criterion, collate, encoded):
    batch, criterion = collate("packed", encoded), make_criterion()
    sums = criterion(make_model()(batch), batch)
    means = criterion.means(sums, Counts(teacher_tokens=2, student_tokens=3, objects=5, samples=7))
    divisors = [round((sums[name] / means[name]).item()) for name in WEIGHTS]
    assert list(WEIGHTS) == ["teacher_lm", "student_lm", "bbox_l1", "bbox_giou", "objectness", "caption"]
    assert divisors == [2, 3, 5, 5, 7, 7]


@pytest.fixture(params=["packed", "standard"])
def batch_without(request, collate, encoded, builder, samples):
    """A function from what is missing to a batch that lacks it."""

    def make(what):
        if what == "objects":  # annotated as empty
            chosen = [
                replace(its, boxes_cxcywh=its.boxes_cxcywh[:0], noise=its.noise[:0], captions=()) for its in encoded
            ]
        elif what == "supervision":
            chosen = [its.unsupervised() for its in encoded]
        else:
            chosen = [builder.encode(builder.converse(its, (), with_answer=True)) for its in samples]
        return collate(request.param, chosen)

    return make


@pytest.mark.parametrize("missing", ["objects", "supervision", "teachers"])
def test_every_parameter_gets_a_finite_gradient_whatever_is_missing(missing, batch_without, make_model, make_criterion):
    model = make_model()
    objective(model, make_criterion(), batch_without(missing)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(
    ("missing", "zero"),
    [
        ("objects", {"bbox_l1", "bbox_giou", "caption", "aux_bbox_l1", "aux_bbox_giou"}),
        ("teachers", {"teacher_lm"}),
        ("supervision", {*WEIGHTS, "aux_bbox_l1", "aux_bbox_giou", "aux_objectness"}),
    ],
)
def test_what_is_missing_costs_nothing_and_stays_on_the_graph(missing, zero, batch_without, make_model, make_criterion):
    batch, criterion = batch_without(missing), make_criterion()
    means = criterion.means(criterion(make_model()(batch), batch), batch.counts)
    assert {name for name, mean in means.items() if mean == 0} == zero
    assert {name for name, mean in means.items() if not mean.requires_grad} == set()


def test_a_step_without_any_supervision_moves_nothing(collate, encoded, make_model, make_criterion):
    model, batch = make_model(), collate("packed", [its.unsupervised() for its in encoded])
    total = objective(model, make_criterion(), batch)
    total.backward()
    assert total == 0
    assert [name for name, parameter in model.named_parameters() if (parameter.grad != 0).any()] == []


def test_pictures_annotated_as_empty_train_objectness_only(batch_without, make_model, make_criterion):
    batch, criterion = batch_without("objects"), make_criterion()
    losses = criterion(make_model()(batch), batch)
    assert losses["objectness"] > 0
    assert losses["bbox_l1"] == losses["bbox_giou"] == losses["caption"] == 0


def test_a_sample_that_nobody_annotated_changes_no_detection_loss(collate, encoded, make_model, make_criterion):
    model, criterion = make_model(), make_criterion()
    nobody = replace(encoded[2], annotated=False)
    without, with_it = (collate("packed", its) for its in ([encoded[0]], [encoded[0], nobody]))
    expected, losses = criterion(model(without), without), criterion(model(with_it), with_it)
    names = [name for name in losses if not name.endswith("_lm")]
    assert with_it.counts.samples == 1
    torch.testing.assert_close({name: losses[name] for name in names}, {name: expected[name] for name in names})


def test_earlier_layers_add_their_losses_in_proportion_to_aux_weight(make_model, make_criterion, collate, encoded):
    model, batch = make_model("head.num_decoder_layers=3"), collate("packed", encoded)
    criteria = [make_criterion(f"loss.aux_weight={weight}") for weight in (0, 1, 2)]
    without, once, twice = (objective(model, criterion, batch) for criterion in criteria)
    assert once > without
    torch.testing.assert_close(twice - without, 2 * (once - without))


def test_earlier_layers_lose_what_they_would_lose_as_the_last(make_model, make_criterion, collate, encoded):
    batch, criterion = collate("packed", encoded), make_criterion()
    outputs = make_model("head.num_decoder_layers=3")(batch)
    losses = criterion(outputs, batch)
    said = outputs.detections
    for name in ("bbox_l1", "bbox_giou", "objectness"):
        expected = 0
        for layer in range(2):
            parts = (said.boxes_logits, said.boxes_cxcywh, said.objectness_logits)
            as_last = [part[layer : layer + 1] for part in parts]
            detections = type(said)(*as_last, said.caption_losses, said.generate_captions)
            expected += criterion(replace(outputs, detections=detections), batch)[name]
        torch.testing.assert_close(losses[f"aux_{name}"], expected)


@pytest.mark.parametrize(
    ("head", "loss"), [(["head.num_decoder_layers=1"], []), ([], ["loss.aux_weight=0"])], ids=["one layer", "weight 0"]
)
def test_no_auxiliary_loss_is_made_where_it_would_count_nothing(
    head, loss, make_model, make_criterion, collate, encoded
):
    batch = collate("packed", encoded)
    assert set(make_criterion(*loss)(make_model(*head)(batch), batch)) == set(WEIGHTS)


def test_a_model_without_a_head_has_the_language_losses_alone(make_model, make_criterion, collate, encoded):
    batch, model = collate("packed", encoded), make_model("head=none")
    joint, language = make_criterion(), make_criterion("loss=language")
    losses = joint(model(batch), batch)
    assert set(losses) == {"teacher_lm", "student_lm"}
    expected = language.objective(language(model(batch), batch), batch.counts)
    torch.testing.assert_close(joint.objective(losses, batch.counts), expected)


def test_the_language_criterion_trains_nothing_of_a_head(make_model, make_criterion, collate, encoded):
    model = make_model()
    objective(model, make_criterion("loss=language"), collate("packed", encoded)).backward()
    assert {parameter.grad for parameter in model.head.parameters()} == {None}
