"""The peer of detection.py: transformers' RT-DETR with a ResNet-18 backbone (Zhao et al. 2024), from random weights.

Not a program of its own: `python benchmarks/detection.py data.root=/data/bccd contenders=rt_detr` runs it.

Pictures, views and metrics are those of bbu_train. Each view is resized to a square, as RT-DETR expects. float32
weights, TF32 products on a GPU, not compiled. As in RT-DETR, weights and batch-norm statistics have a moving average.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

from bbu_train.conversation.pixels import read_pixels
from bbu_train.data.splits import Splits
from bbu_train.metrics.detection import detection_metrics
from bbu_train.ops import boxes
from bbu_train.optimizer import adamw
from bbu_train.optimizer.groups import set_learning_rates
from bbu_train.runtime.seeds import generator
from bbu_train.types.outputs import Prediction
from bbu_train.types.samples import Picture, Sample, SampleVisit, class_of

LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 4e-4, 1e-4, 0.1
WARMUP_SHARE = 0.03  # of the training time; a cosine to 0 follows
EMA_DECAY, EMA_WARMUP_STEPS = 0.9999, 2000  # the decay approaches its final value as 1 - exp(-steps / warm-up steps)
NUM_BOXES = 300  # per picture, as in RT-DETR's own evaluation

Metrics = dict[str, float]
Labels = list[dict[str, Tensor]]


def build(num_classes: int) -> RTDetrForObjectDetection:
    """Build the model, with 26 million parameters. Batch norms are trained: frozen ones need pretrained statistics."""
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
    """The inputs of a step from its draws: pixels, and the classes and boxes of each picture."""

    def __init__(
        self,
        samples: Sequence[Sample],
        view_of: Callable[[Sample, int], Sample],
        classes: Sequence[str],
        side: int,
    ):
        self.samples = samples
        self.view_of = view_of
        self.classes = {name: number for number, name in enumerate(classes)}
        self.side = side

    def __getitem__(self, draws: Sequence[SampleVisit]) -> tuple[Tensor, Labels]:
        students = [self.view_of(self.samples[draw.index], draw.epoch).student for draw in draws]
        return pixels(students, self.side), [self._labels(student) for student in students]

    def _labels(self, picture: Picture) -> dict[str, Tensor]:
        corners = torch.tensor([each.box_xyxy for each in picture.objects or ()], dtype=torch.float32).reshape(-1, 4)
        normalised = boxes.scale(boxes.xyxy_to_cxcywh(corners), 1 / picture.width, 1 / picture.height)
        numbers = [self.classes[class_of(each.description)] for each in picture.objects or ()]
        return {"class_labels": torch.tensor(numbers, dtype=torch.long), "boxes": normalised}


def pixels(pictures: Sequence[Picture], side: int) -> Tensor:
    """Return bytes of shape (pictures, 3, side, side)."""
    return torch.stack([torch.from_numpy(np.array(read_pixels(each, side, side))) for each in pictures]).movedim(-1, 1)


def draws(num_samples: int, batch_size: int, seed: int) -> Iterator[list[SampleVisit]]:
    """Yield steps forever. Each epoch is shuffled anew; an incomplete last step is dropped."""
    for epoch in count():
        order = generator("peer", seed, epoch).permutation(num_samples).tolist()
        for first in range(0, num_samples - batch_size + 1, batch_size):
            yield [SampleVisit(epoch, index) for index in order[first : first + batch_size]]


def learning_rate_multiplier(share: float) -> float:
    """Return the factor of the learning rate after this share of the training time."""
    if share < WARMUP_SHARE:
        return share / WARMUP_SHARE
    return 0.5 * (1 + math.cos(math.pi * min(1, (share - WARMUP_SHARE) / (1 - WARMUP_SHARE))))


def update_average(averages: list[Tensor], latest: list[Tensor], num_steps: Tensor) -> None:
    decay = EMA_DECAY * (1 - math.exp(-int(num_steps) / EMA_WARMUP_STEPS))
    get_ema_multi_avg_fn(decay)(averages, latest, num_steps)


class Peer:
    """RT-DETR with its optimizer, moving average and data."""

    def __init__(
        self,
        data: Splits,
        view_of: Callable[[Sample, int], Sample],
        seed: int,
        side: int,
        batch_size: int,
        num_workers: int,
    ):
        objects = [each for sample in data.train for each in sample.student.objects or ()]
        self.classes = sorted({class_of(each.description) for each in objects})
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.data, self.side, self.batch_size = data, side, batch_size
        torch.manual_seed(seed)
        torch.set_float32_matmul_precision("high")
        self.model = build(len(self.classes)).to(self.device).train()
        one_group = {"all": {"pattern": "", "submodule": "model", "lr": LEARNING_RATE}}
        settings = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": WEIGHT_DECAY, "precision": "fp32"}
        self.optimizer = adamw.build(self.model, one_group, **settings)
        self.average = AveragedModel(self.model, multi_avg_fn=update_average, use_buffers=True)
        self.batches = DataLoader(
            Views(data.train, view_of, self.classes, side),
            batch_size=None,
            sampler=draws(len(data.train), batch_size, seed),
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="fork" if num_workers else None,
        )

    def train(self, seconds: float, evaluation_times: Sequence[float]) -> tuple[list[Metrics], dict[str, Tensor], int]:
        """Train for `seconds`, without the time of evaluations.

        Returns the validation metrics after each of `evaluation_times` (increasing, in seconds), the weights with the
        best AP, and the number of steps. Each evaluation scores the weights and their average; the better one counts.
        """
        evaluations: list[Metrics] = []
        best: dict[str, Tensor] = {}
        elapsed, num_steps, batches = 0.0, 0, iter(self.batches)
        for evaluation_time in evaluation_times:
            start = time.perf_counter() - elapsed
            while elapsed < evaluation_time:
                # The matching of every step waits for the device, so the host's clock measures the device.
                self._step(next(batches), learning_rate_multiplier(elapsed / seconds))
                num_steps += 1
                self.average.update_parameters(self.model)
                elapsed = time.perf_counter() - start
            metrics, weights = self._evaluate()
            if not evaluations or metrics["ap"] > max(each["ap"] for each in evaluations):
                best = weights
            evaluations.append({"seconds": elapsed, **metrics})
            print(f"rt_detr, {elapsed:.0f} s, step {num_steps}: AP {metrics['ap']:.3f}", flush=True)
        return evaluations, best, num_steps

    def _step(self, batch: tuple[Tensor, Labels], multiplier: float) -> None:
        inputs, labels = batch
        set_learning_rates(self.optimizer, multiplier)
        labels = [{name: value.to(self.device, non_blocking=True) for name, value in each.items()} for each in labels]
        loss = self.model(pixel_values=self._inputs(inputs), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _inputs(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.device, non_blocking=True) / 255

    def _evaluate(self) -> tuple[Metrics, dict[str, Tensor]]:
        """Return the metrics and weights of the better one of the model and its average on validation."""
        pictures = [sample.student for sample in self.data.validation]
        candidates = [(self.score(pictures, model), model) for model in (self.model, self.average.module)]
        metrics, model = max(candidates, key=lambda candidate: candidate[0]["ap"])
        return metrics, {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def score(self, pictures: Sequence[Picture], model: RTDetrForObjectDetection) -> Metrics:
        model.eval()
        predictions: list[Prediction] = []
        for first in range(0, len(pictures), self.batch_size):
            group = pictures[first : first + self.batch_size]
            outputs = model(pixel_values=self._inputs(pixels(group, self.side)))
            predictions += map(self._prediction, outputs.logits.sigmoid().cpu(), outputs.pred_boxes.cpu(), group)
        model.train()
        return detection_metrics(pictures, predictions)

    def _prediction(self, scores: Tensor, boxes_cxcywh: Tensor, picture: Picture) -> Prediction:
        """Return the pairs of a query and a class with the highest scores, as RT-DETR's post-processing does."""
        values, indices = scores.flatten().topk(min(NUM_BOXES, scores.numel()))
        corners = boxes.scale(boxes.cxcywh_to_xyxy(boxes_cxcywh), picture.width, picture.height)
        names = tuple(self.classes[index % len(self.classes)] for index in indices.tolist())
        return Prediction(corners[indices // len(self.classes)].numpy(), values.numpy(), names)
