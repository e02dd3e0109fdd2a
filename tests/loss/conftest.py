"""Batches of true boxes and detections of predicted boxes, without running a model."""

from dataclasses import replace

import pytest
import torch

from bbu_train.runtime.seeds import generator
from bbu_train.types.outputs import Detections


@pytest.fixture(scope="session")
def random_boxes():
    """A function from a name and a shape to cxcywh boxes of positive area inside the unit square."""

    def make(name, *shape):
        sizes, centers = torch.from_numpy(generator("boxes", name).random((2, *shape, 2), dtype="float32"))
        sizes = 0.05 + 0.4 * sizes
        return torch.cat([sizes / 2 + (1 - sizes) * centers, sizes], dim=-1)

    return make


@pytest.fixture(scope="session")
def batch_of(collate, encoded):
    """A function from the true boxes of each sample to a batch of "sample 0", "sample 1" and so on."""

    def make(*boxes_of_sample):
        def sample(i, boxes):
            captions = (torch.tensor([5]),) * len(boxes)
            return replace(encoded[2], sample_id=f"sample {i}", boxes_cxcywh=boxes, noise=boxes, captions=captions)

        return collate("packed", [sample(i, boxes) for i, boxes in enumerate(boxes_of_sample)])

    return make


@pytest.fixture(scope="session")
def detections_of():
    """A function from predicted boxes and objectness logits to detections whose captions are dummies."""

    def make(boxes_cxcywh, objectness_logits):
        return Detections(
            boxes_cxcywh.logit(),
            boxes_cxcywh,
            objectness_logits,
            lambda samples, queries, caption_ids, max_objects: torch.zeros(caption_ids.shape),
            lambda end_token: torch.zeros(*objectness_logits.shape[1:], 1, dtype=torch.long),
        )

    return make
