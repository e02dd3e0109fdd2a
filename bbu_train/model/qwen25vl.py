"""Qwen2.5-VL with a detection head. One run of the vision tower serves both."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache, Qwen2_5_VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from bbu_train.errors import InputError
from bbu_train.model import flops, image_position_encoding
from bbu_train.model.activation_checkpointing import set_activation_checkpointing
from bbu_train.model.backbone import compile_blocks, install_kernels, load_backbone
from bbu_train.model.fused_qkv import fuse_qkv
from bbu_train.model.padding import pad_vision_mlp
from bbu_train.model.shape import configuration
from bbu_train.model.teacher_cache import TeacherCache
from bbu_train.ops.chunked_cross_entropy import chunked_cross_entropy, cross_entropy
from bbu_train.ops.compile import compile_dynamic, start_workers
from bbu_train.ops.flops import Sizes
from bbu_train.types.batch import Batch, VisionInputs
from bbu_train.types.outputs import Detections, Outputs


class GroundingModel(nn.Module):
    """Qwen2.5-VL and a head that reads the same features. `head=None` gives the language model alone.

    Logits are computed only at supervised positions, `vocabulary_chunk` of them at a time. Each image token gets a sine
    encoding of its row and column added, times `image_position_scale`. With 0, as in the published model, nothing is
    added.
    """

    def __init__(
        self,
        backbone: Qwen2_5_VLForConditionalGeneration,
        head: nn.Module | None,
        vocabulary_chunk: int,
        image_position_scale: float,
        teacher_cache: TeacherCache,
    ):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.vocabulary_chunk = vocabulary_chunk
        self.image_position_scale = image_position_scale
        self.teacher_cache = teacher_cache
        self.cross_entropy = cross_entropy

    def compile_parts(self) -> None:
        """Compile the backbone's blocks, the loss of tokens, and the parts that the head names, for any length."""
        compile_blocks(self.backbone)
        self.cross_entropy = compile_dynamic(cross_entropy)
        if self.head is not None:
            self.head.compile_parts()

    def forward(self, batch: Batch) -> Outputs:
        vision_features = self.encode_images(batch)
        hidden = self.hidden_states(batch, vision_features)
        supervised = hidden[batch.supervised_positions]
        token_losses = chunked_cross_entropy(
            supervised, batch.labels, self.backbone.lm_head, self.vocabulary_chunk, self.cross_entropy
        )
        return Outputs(token_losses, self.detect(batch, vision_features, hidden))

    def encode_images(self, batch: Batch) -> Float[Tensor, "merged width"]:
        """Return the features of every image token of the batch, in order.

        One pass of the tower serves the language model and the head. Pictures in `batch.teachers` that the cache lacks
        are encoded one by one, so that cached states depend on nothing but the picture.
        """
        if not batch.teachers:
            return self._run_tower(batch.vision).pooler_output
        states = [self._unmerged_states(batch.vision)]
        for picture in batch.teachers:
            compute = partial(self._unmerged_states_from_host, picture.vision, batch.vision.patches.device)
            states.append(self.teacher_cache.states(picture.key, compute))
        return self.backbone.model.visual.merger(torch.cat(states))

    def _unmerged_states_from_host(
        self, vision: VisionInputs, device: torch.device
    ) -> Float[Tensor, "merged merge width"]:
        # The copy from pageable memory would wait until the device has finished all queued work.
        return self._unmerged_states((vision.pin_memory() if device.type == "cuda" else vision).to(device))

    def _unmerged_states(self, vision: VisionInputs) -> Float[Tensor, "merged merge width"]:
        """Return the tower's last states, grouped by the image token into which the merger joins them, in order.

        The call also runs the merger, whose output is not used here. That costs less than 2% of the tower; to avoid it,
        the tower's forward code would have to be copied.
        """
        in_windows = self._run_tower(vision).last_hidden_state.unflatten(0, (len(vision.window_index), -1))
        return in_windows[vision.window_index.argsort()]

    def _run_tower(self, vision: VisionInputs) -> BaseModelOutputWithPooling:
        return self.backbone.model.visual(
            vision.patches,
            grid_thw=vision.grid_thw,
            position_ids=vision.position_ids,
            window_index=vision.window_index,
            cu_seqlens=vision.cu_seqlens,
            cu_window_seqlens=vision.cu_window_seqlens,
            max_seqlen=vision.max_seqlen,
            max_window_seqlen=vision.max_window_seqlen,
        )

    def hidden_states(
        self, batch: Batch, vision_features: Float[Tensor, "merged width"], cache: Cache | None = None
    ) -> Float[Tensor, "flat width"]:
        """Return the language model's last hidden states of the flattened rows.

        `cu_seqlens` keeps segments apart, so there is no mask. An empty `cache` is filled with the keys and values of
        all tokens, padding included.
        """
        embedded = self.backbone.get_input_embeddings()(batch.input_ids)
        if self.image_position_scale:
            position_ids = batch.position_ids[1:].flatten(1)[:, batch.image_positions]
            encoding = image_position_encoding.image_position_encoding(position_ids, vision_features.shape[1])
            vision_features = vision_features + (self.image_position_scale * encoding).to(vision_features.dtype)
        flat = embedded.flatten(0, 1).index_copy(0, batch.image_positions, vision_features.to(embedded.dtype))
        hidden = self.backbone.model.language_model(
            inputs_embeds=flat.view_as(embedded),
            position_ids=batch.position_ids,
            attention_mask=None,
            past_key_values=cache,
            use_cache=cache is not None,
            cu_seq_lens_q=batch.cu_seqlens,
            cu_seq_lens_k=batch.cu_seqlens,
            max_length_q=batch.max_seqlen,
            max_length_k=batch.max_seqlen,
        ).last_hidden_state
        return hidden.flatten(0, 1)

    def detect(
        self, batch: Batch, vision_features: Float[Tensor, "merged width"], hidden: Float[Tensor, "flat width"]
    ) -> Detections | None:
        """Return the head's detections, or None without a head."""
        if self.head is None:
            return None
        embed = self.backbone.get_input_embeddings()
        return self.head(vision_features, hidden, batch.memory, batch.ground_truth, embed, self.project)

    def project(self, hidden: Float[Tensor, "*n width"]) -> Float[Tensor, "*n vocabulary"]:
        """Return the logits of the vocabulary."""
        return self.backbone.lm_head(hidden)

    def training_flops(self, sizes: Sizes) -> int:
        """Return the operations of a training step, forward and backward, with the parameters that train now."""
        backbone = flops.backbone_flops(self.backbone, sizes)
        if self.head is None:
            return backbone
        features_require_grad = any(parameter.requires_grad for parameter in self.backbone.parameters())
        lm_head_requires_grad = self.backbone.lm_head.weight.requires_grad
        vocabulary_size = self.backbone.config.text_config.vocab_size
        return backbone + self.head.training_flops(sizes, vocabulary_size, features_require_grad, lm_head_requires_grad)

    def check_teacher_cache(self) -> None:
        """Raise InputError if there is a cache but the vision tower is trained. Its merger may be trained."""
        parameters = self.backbone.model.visual.named_parameters()
        trained = [name for name, p in parameters if p.requires_grad and not name.startswith("merger.")]
        if self.teacher_cache.max_bytes and trained:
            raise InputError(
                f"model.teacher_cache_gib={self.teacher_cache.max_bytes / 2**30:g} needs a frozen vision tower, but "
                f"{len(trained)} of its parameters are trained. Set optimizer.groups.vision.lr=0 (with "
                "optimizer=adamw) or model.teacher_cache_gib=0."
            )

    def set_activation_checkpointing(self, choice: str) -> None:
        """Recompute what `choice` says in the backward pass: one of `activation_checkpointing.CHOICES`."""
        set_activation_checkpointing(self.backbone, choice)


def build(
    checkpoint: str | None,
    weights: str,
    shape: dict[str, Any],
    attention: str,
    precision: str,
    vocabulary_chunk: int,
    vision_mlp_multiple: int,
    image_position_scale: float,
    teacher_cache_gib: float,
    compile: bool,
    device: torch.device,
    head: Callable[[int], nn.Module | None],
) -> GroundingModel:
    """Return the model on `device`, with pretrained weights or with random ones from the current seed.

    `head` is called with the backbone's width and returns the head, or None for a language model alone. `precision` is
    engine.precision: with "fp32" all weights are float32; otherwise matrices are bfloat16, as in the published
    checkpoints, and norms, biases and the head's queries stay float32.
    Raise InputError for an `attention` that cannot run here and an `image_position_scale` unfit for these weights.
    """
    image_position_encoding.check_scale(image_position_scale, weights)
    if compile and device.type == "cuda":
        start_workers()  # so that they are ready when the weights are
    config = configuration(checkpoint, weights, shape)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    backbone = load_backbone(config, checkpoint, weights, device, dtype)
    with device:
        built_head = head(config.text_config.hidden_size)
    pad_vision_mlp(backbone.model.visual, vision_mlp_multiple)
    fuse_qkv(backbone.model.language_model)
    _cast_linear_layers(built_head, dtype)
    install_kernels(backbone, attention, device, dtype, compile)
    cache = TeacherCache(teacher_cache_gib)
    model = GroundingModel(backbone, built_head, vocabulary_chunk, image_position_scale, cache)
    if compile:
        model.compile_parts()
    # from_pretrained returns evaluation mode, in which transformers silently skips gradient checkpointing.
    return model.to(device).train()


def _cast_linear_layers(head: nn.Module | None, dtype: torch.dtype) -> None:
    """Cast the matrices of the head's linear layers, which autocast would otherwise cast at each use."""
    for module in head.modules() if head is not None else ():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.to(dtype)
