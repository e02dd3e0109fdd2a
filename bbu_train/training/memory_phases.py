"""Bytes of GPU memory in each phase of a run: what stays, forward and backward, evaluation, and loading.

Every function of a micro-batch's sizes takes arrays too. Only tensors are
counted, not the CUDA context (half a GiB or more) nor gaps in the allocator.
"""

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import nn

from bbu_train.average import ema
from bbu_train.head.activations import generation_bytes
from bbu_train.model import activations
from bbu_train.model.qwen25vl import GroundingModel
from bbu_train.ops.activations import ActivationBytes, Count, Execution, MicroBatchSizes
from bbu_train.optimizer import float32_update, muon
from bbu_train.optimizer.groups import state_bytes
from bbu_train.optimizer.mixed_adamw import MixedAdamW

MUON_BYTES = 20  # of a matrix's element: three float32 numbers, and those of Newton-Schulz in bfloat16


@dataclass(frozen=True)
class Resident:
    """Bytes of what stays for the whole run, and of gradients: all, those of the vision tower and those of the head."""

    weights: int
    optimizer: int
    average: int
    scratch: int
    teacher_cache: int
    gradients: int
    vision_gradients: int
    head_gradients: int

    @property
    def without_gradients(self) -> int:
        return self.weights + self.optimizer + self.average + self.scratch + self.teacher_cache


def resident(model: GroundingModel, optimizer: MixedAdamW, average: Any) -> Resident:
    """Count the bytes that stay. Frozen parameters have neither gradient nor state nor average.

    `average` is a choice of conf/average: its `averages` are counted.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    vision = [parameter for parameter in model.backbone.model.visual.parameters() if parameter.requires_grad]
    return Resident(
        weights=sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
        optimizer=state_bytes(optimizer),
        average=sum(each.nbytes for name, each in average.averages.items() if name in trained),
        scratch=scratch_bytes(optimizer, average),
        teacher_cache=model.teacher_cache.max_bytes,
        gradients=sum(parameter.nbytes for parameter in trained.values()),
        vision_gradients=sum(parameter.nbytes for parameter in vision),
        head_gradients=sum(parameter.nbytes for name, parameter in trained.items() if name.startswith("head.")),
    )


def scratch_bytes(optimizer: MixedAdamW, average: Any) -> int:
    """Count what the updates of weights and of their average compute in: it is allocated before the first step."""
    trained = [(group, [p for p in group["params"] if p.requires_grad]) for group in optimizer.param_groups]
    changes = [
        min(float32_update.BUCKET_ELEMENTS["cuda"], sum(p.numel() for p in some if p.dtype == torch.float32))
        for group, some in trained
        if group["weight_decay"] and "momentum" not in group
    ]
    matrices = [p.numel() for group, some in trained if "momentum" in group for p in some]
    in_batch = min(max(muon.MAX_BATCH_ELEMENTS, *matrices), sum(matrices)) if matrices else 0
    in_bfloat16 = sum(p.numel() for _, some in trained for p in some if p.dtype == torch.bfloat16)
    in_chunk = min(ema.MAX_ELEMENTS, in_bfloat16) if average.averages else 0
    return 4 * max(changes, default=0) + MUON_BYTES * in_batch + 4 * in_chunk


def activation_parts(model: GroundingModel, sizes: MicroBatchSizes, execution: Execution) -> dict[str, ActivationBytes]:
    """Return the bytes of vision, language, logits and head, in the order of the forward pass."""
    backbone, head = model.backbone, model.head
    vocabulary_size = backbone.lm_head.weight.shape[0]
    return {
        "vision": activations.vision_bytes(backbone, sizes, execution),
        "language": activations.language_bytes(backbone, sizes, execution),
        "logits": activations.logit_bytes(backbone, sizes, model.vocabulary_chunk, execution),
        "head": ActivationBytes(0, 0) if head is None else head.activation_bytes(sizes, vocabulary_size, execution),
    }


def backward_bytes(
    model: GroundingModel, stays: Resident, sizes: MicroBatchSizes, execution: Execution, holds_gradients: bool
) -> Count:
    """Return the most bytes of forward and backward, with what stays.

    The backward pass goes through the head, the logits, the language model and the vision tower. What it has passed has
    freed its activations and made its gradients and, for what comes next, the gradient of its input (the features).
    With `holds_gradients` all gradients were there before, and each new one comes beside the sum of the earlier ones.
    """
    vision, language, logits, head = activation_parts(model, sizes, execution).values()
    features = 4 * (sizes.positions + sizes.merged) * model.backbone.config.text_config.hidden_size
    after_head, after_language = stays.head_gradients, stays.gradients - stays.vision_gradients
    made = (stays.gradients,) * 4 if holds_gradients else (0, after_head, after_language, stays.gradients)
    peaks = (
        vision.saved + language.saved + logits.saved + head.saved + head.transient + made[0],
        vision.saved + language.saved + logits.saved + logits.transient + features + made[1],
        vision.saved + language.saved + language.transient + features + made[1],
        vision.saved + language.transient + features + made[2],
        vision.saved + vision.transient + made[2],
        vision.transient + made[3],
    )
    peak = reduce(np.maximum, peaks)
    largest = max((p.nbytes for p in model.parameters() if p.requires_grad), default=0)
    return stays.without_gradients + input_bytes(model, sizes) + peak + largest


def input_bytes(model: GroundingModel, sizes: MicroBatchSizes) -> Count:
    """Return the bytes of a batch on the device: pixels of patches, and seven integers for each position."""
    return sizes.patches * model.backbone.model.visual.patch_embed.mean.numel() + 7 * 8 * sizes.positions


def evaluation_bytes(
    model: GroundingModel, stays: Resident, sizes: MicroBatchSizes, execution: Execution, holds_gradients: bool
) -> Count:
    """Return the most bytes of evaluating a batch, with what stays. An average keeps a copy of the trained weights.

    Evaluation runs without compilation (`validation`).
    """
    execution = replace(execution, is_compiled=False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    copies = sum(parameter.nbytes for parameter in parameters) if stays.average else 0
    backbone, head = model.backbone, model.head
    num_bytes = activations.forward_bytes(backbone, sizes, model.vocabulary_chunk, execution)
    if head is not None:
        vocabulary_size = backbone.lm_head.weight.shape[0]
        layers, width = len(head.layers), backbone.config.text_config.hidden_size
        states = (sizes.merged + sizes.positions) * width * execution.num_bytes
        once = head.activation_bytes(sizes, vocabulary_size, execution)
        without_gradients = once.saved // layers + once.transient  # one layer at a time
        decoding = generation_bytes(head, sizes, vocabulary_size, execution)
        num_bytes = np.maximum(num_bytes, states + np.maximum(without_gradients, decoding))
    return stays.without_gradients + (stays.gradients if holds_gradients else 0) + copies + num_bytes


def load_bytes(model: nn.Module) -> int:
    """Return the bytes of the weights in float32, in which they are made before matrices are cast."""
    return sum(4 * parameter.numel() for parameter in model.parameters())
