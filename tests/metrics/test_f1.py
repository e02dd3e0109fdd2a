"""F1 counts every predicted box, and one matching serves all thresholds."""

import numpy as np
import pytest
from scored import A, B, C, iou, picture, prediction

from bbu_train.metrics.f1 import best_f1, count_unknown
from bbu_train.runtime.seeds import generator


def test_f1_counts_a_predicted_box_of_any_class_in_any_annotated_picture():
    pictures = [picture((A, "x"), (B, "x")), picture()]
    correct = prediction((A, 0.9, "x"), (B, 0.5, "x"))
    for box, name in ((C, "screw"), (A, "screw"), (C, "x"), (C, "")):  # of a class with and without true objects
        for wrong in (
            [prediction((A, 0.9, "x"), (box, 0.7, name), (B, 0.5, "x"))],
            [correct, prediction((box, 0.7, name))],
        ):
            predictions = [*wrong, prediction()][:2]
            f1, threshold = best_f1([*zip(pictures, predictions, strict=True)], {"x"})
            assert (f1, threshold) == (pytest.approx(4 / 5), 0.5)  # 2 hits, 3 predicted, 2 true


def brute_force_f1(pictures, predictions, thresholds):
    """The best F1 over the thresholds, with a new matching at each."""
    best = 0.0
    for threshold in thresholds:
        num_hits = num_predicted = 0
        for truth, predicted in zip(pictures, predictions, strict=True):
            free = list(truth.objects)
            indices = [i for i in np.argsort(-predicted.scores, kind="stable") if predicted.scores[i] >= threshold]
            num_predicted += len(indices)
            for i in indices:
                candidates = [
                    (iou(predicted.boxes_xyxy[i], each.box_xyxy), each)
                    for each in free
                    if each.description == predicted.descriptions[i]
                ]
                overlap, target = max(candidates, key=lambda candidate: candidate[0], default=(0.0, None))
                if overlap >= 0.5:
                    num_hits += 1
                    free.remove(target)
        best = max(best, 2 * num_hits / (num_predicted + sum(len(each.objects) for each in pictures)))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_f1_equals_a_new_matching_at_every_threshold(seed):
    random = generator("f1", seed)

    def boxes(count):
        corners = random.uniform(0, 30, (count, 2))
        return np.concatenate([corners, corners + random.uniform(15, 30, (count, 2))], axis=1)

    pictures, predictions = [], []
    for _ in range(4):
        pictures.append(picture(*((box, random.choice(["x", "y"])) for box in boxes(random.integers(0, 6)))))
        detections = [
            (box, round(random.random(), 1), random.choice(["x", "y", "z"])) for box in boxes(random.integers(1, 8))
        ]
        predictions.append(prediction(*detections))
    f1, threshold = best_f1([*zip(pictures, predictions, strict=True)], {"x", "y"})
    assert f1 == pytest.approx(
        brute_force_f1(pictures, predictions, {score for each in predictions for score in each.scores})
    )
    assert f1 == pytest.approx(brute_force_f1(pictures, predictions, {threshold}))


def test_without_a_hit_f1_is_0_at_threshold_1():
    assert best_f1([(picture((A, "x")), prediction((C, 0.9, "x"), (A, 0.8, "y")))], {"x"}) == (0.0, 1.0)
    assert best_f1([(picture((A, "x")), prediction())], {"x"}) == (0.0, 1.0)


def test_no_threshold_separates_equal_scores():
    pairs = [(picture((A, "x")), prediction((A, 0.5, "x"), (C, 0.5, "x"), (B, 0.5, "x")))]
    assert best_f1(pairs, {"x"}) == (pytest.approx(2 / 4), 0.5)


def test_boxes_of_unknown_classes_are_counted_at_any_score():
    pairs = [(picture((A, "x")), prediction((A, 0.0, "y/x"), (A, 0.9, "x/y"), (C, 0.1, "")))]
    assert count_unknown(pairs, {"x"}) == 2
