"""What others do: transformers' RT-DETR with a ResNet-18 backbone (Zhao et al. 2024), from random weights.

The pictures, their views and the scores are the project's own; what is made of a view is resized to a square, which is
how RT-DETR takes pictures. float32 weights, TF32 products on a GPU, not compiled. The moving average, of the weights
and of the statistics of batch norms, is RT-DETR's.
"""

import math
import time
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

from bbu_train.conversation.pixels import read_pixels
from bbu_train.metrics.detection import detection_metrics
from bbu_train.ops import boxes
from bbu_train.optimizer import groups
from bbu_train.runtime.seeds import generator
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Draw, Picture, Sample, class_of

RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 4e-4, 1e-4, 0.1
WARM_SHARE = 0.03  # of the time; then a cosine to 0
DECAY, DECAY_STEPS = 0.9999, 2000  # of the average, and in how many steps it grows to that but for 1 / e
NUM_FOUND = 300  # boxes a picture, as RT-DETR's own evaluation takes

Evaluation = dict[str, float]


def build(num_classes: int) -> RTDetrForObjectDetection:
    """26 million parameters. Batch norms are trained: frozen ones have nothing to say without pretrained weights."""
    backbone = RTDetrResNetConfig(
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=backbone,
            num_labels=num_classes,
            encoder_in_channels=[128, 256, 512],
            decoder_layers=3,
            freeze_backbone_batch_norms=False,
        )
    )


class Views(Dataset):
    """From draws of a step to what the model takes: pixels, and for each picture its classes and boxes."""

    def __init__(self, samples: Sequence[Sample], view_of, classes: Sequence[str], side: int):
        self.samples = samples
        self.view_of = view_of
        self.classes = {name: number for number, name in enumerate(classes)}
        self.side = side

    def __getitem__(self, draws: Sequence[Draw]) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
        students = [self.view_of(self.samples[draw.index], draw.epoch).student for draw in draws]
        return pixels(students, self.side), [self._labels(student) for student in students]

    def _labels(self, picture: Picture) -> dict[str, torch.Tensor]:
        corners = torch.tensor([each.box_xyxy for each in picture.objects or ()], dtype=torch.float32).reshape(-1, 4)
        normalised = boxes.scale(boxes.xyxy_to_cxcywh(corners), 1 / picture.width, 1 / picture.height)
        numbers = [self.classes[class_of(each.description)] for each in picture.objects or ()]
        return {"class_labels": torch.tensor(numbers, dtype=torch.long), "boxes": normalised}


def pixels(pictures: Sequence[Picture], side: int) -> torch.Tensor:
    """Bytes of shape (pictures, 3, side, side)."""
    return torch.stack([torch.from_numpy(np.array(read_pixels(each, side, side))) for each in pictures]).movedim(-1, 1)


def draws(num_samples: int, batch_size: int, seed: int) -> Iterator[list[Draw]]:
    """Steps without end, each epoch in an order of its own; what is left over at its end joins no step."""
    for epoch in count():
        order = generator("peer", seed, epoch).permutation(num_samples).tolist()
        for first in range(0, num_samples - batch_size + 1, batch_size):
            yield [Draw(epoch, index) for index in order[first : first + batch_size]]


def multiplier(share: float) -> float:
    """Of the rate, when that share of the time is gone."""
    if share < WARM_SHARE:
        return share / WARM_SHARE
    return 0.5 * (1 + math.cos(math.pi * min(1, (share - WARM_SHARE) / (1 - WARM_SHARE))))


def averaged(averages: list[torch.Tensor], latest: list[torch.Tensor], num_steps: torch.Tensor) -> None:
    decay = DECAY * (1 - math.exp(-int(num_steps) / DECAY_STEPS))
    get_ema_multi_avg_fn(decay)(averages, latest, num_steps)


class Peer:
    """The model and what trains it for `seconds`, of which evaluations are no part."""

    def __init__(self, data, view_of, seed: int, side: int, batch_size: int, num_workers: int):
        objects = [each for sample in data.train for each in sample.student.objects or ()]
        self.classes = sorted({class_of(each.description) for each in objects})
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.data, self.side, self.batch_size = data, side, batch_size
        torch.manual_seed(seed)
        torch.set_float32_matmul_precision("high")
        self.model = build(len(self.classes)).to(self.device).train()
        groups_config = {"all": {"pattern": "", "submodule": "model", "lr": RATE}}
        settings = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": WEIGHT_DECAY, "precision": "fp32"}
        self.optimizer = groups.build(self.model, groups_config, **settings)
        self.average = AveragedModel(self.model, multi_avg_fn=averaged, use_buffers=True)
        self.batches = DataLoader(
            Views(data.train, view_of, self.classes, side),
            batch_size=None,
            sampler=draws(len(data.train), batch_size, seed),
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="fork" if num_workers else None,
        )

    def train(self, seconds: float, moments: Sequence[float]) -> tuple[list[Evaluation], dict[str, torch.Tensor], int]:
        """Scores on validation after each of `moments`, rising seconds; the weights best by AP; the steps made.

        At each moment the weights and their average are scored, and the better counts.
        """
        evaluations: list[Evaluation] = []
        best: dict[str, torch.Tensor] = {}
        elapsed, num_steps, batches = 0.0, 0, iter(self.batches)
        for moment in moments:
            began = time.perf_counter() - elapsed
            while elapsed < moment:
                # The host waits in the matching of every step, so its clock is the device's.
                self._step(next(batches), multiplier(elapsed / seconds))
                num_steps += 1
                self.average.update_parameters(self.model)
                elapsed = time.perf_counter() - began
            found, weights = self._evaluated()
            if not evaluations or found["ap"] > max(each["ap"] for each in evaluations):
                best = weights
            evaluations.append({"seconds": elapsed, **found})
            print(f"peer, {elapsed:.0f} s, step {num_steps}: AP {found['ap']:.3f}", flush=True)
        return evaluations, best, num_steps

    def _step(self, batch: tuple[torch.Tensor, list[dict[str, torch.Tensor]]], rate: float) -> None:
        inputs, labels = batch
        groups.set_learning_rates(self.optimizer, rate)
        labels = [{name: its.to(self.device, non_blocking=True) for name, its in each.items()} for each in labels]
        loss = self.model(pixel_values=self._inputs(inputs), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.to(self.device, non_blocking=True) / 255

    def _evaluated(self) -> tuple[Evaluation, dict[str, torch.Tensor]]:
        pictures = [sample.student for sample in self.data.validation]
        candidates = [(self.scored(pictures, model), model) for model in (self.model, self.average.module)]
        found, model = max(candidates, key=lambda each: each[0]["ap"])
        return found, {name: its.detach().cpu().clone() for name, its in model.state_dict().items()}

    @torch.no_grad()
    def scored(self, pictures: Sequence[Picture], model: RTDetrForObjectDetection) -> Evaluation:
        model.eval()
        found: list[Prediction] = []
        for first in range(0, len(pictures), self.batch_size):
            some = pictures[first : first + self.batch_size]
            said = model(pixel_values=self._inputs(pixels(some, self.side)))
            found += map(self._prediction, said.logits.sigmoid().cpu(), said.pred_boxes.cpu(), some)
        model.train()
        return detection_metrics(pictures, found)

    def _prediction(self, scores: torch.Tensor, boxes_cxcywh: torch.Tensor, picture: Picture) -> Prediction:
        """The best pairs of a query and a class, as in RT-DETR's own post-processing."""
        values, places = scores.flatten().topk(min(NUM_FOUND, scores.numel()))
        corners = boxes.scale(boxes.cxcywh_to_xyxy(boxes_cxcywh), picture.width, picture.height)
        names = tuple(self.classes[place % len(self.classes)] for place in places.tolist())
        return Prediction(corners[places // len(self.classes)].numpy(), values.numpy(), names)
