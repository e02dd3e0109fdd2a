"""Qwen2.5-VL with a detection head: one vision pass feeds both."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoImageProcessor, Cache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.modeling_outputs import BaseModelOutputWithPooling

from bbu_train.errors import InputError
from bbu_train.model import activation_checkpointing, flops, image_positions
from bbu_train.model import attention as attention_choices
from bbu_train.model.fused_qkv import join_projections
from bbu_train.model.linear_patch_embedding import StillPatchEmbedding
from bbu_train.model.norms import replace_norms
from bbu_train.model.padding import pad_vision_mlp
from bbu_train.model.shape import configuration
from bbu_train.model.teacher_cache import TeacherCache
from bbu_train.ops.chunked_cross_entropy import chunked_cross_entropy, cross_entropy
from bbu_train.ops.compile import compile_dynamic
from bbu_train.ops.flops import Sizes
from bbu_train.types.batch import Batch, VisionInputs
from bbu_train.types.outputs import Detections, Outputs


class GroundingModel(nn.Module):
    """The stock transformers model, and a head that reads the same features; `head` may be None.

    Logits exist only at supervised positions, `vocabulary_chunk` of them at a time. To what the language model sees of
    an image token its place is added, times `image_position_scale`; 0 is the stock model.
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
        """The backbone block by block, of which all of a kind share one graph; lengths are symbols in it."""
        for block in _blocks(self.backbone):
            block.compile(dynamic=True)
        for first in (self.backbone.model.visual.blocks[0], self.backbone.model.language_model.layers[0]):
            first.register_forward_pre_hook(_without_view)
        self.cross_entropy = compile_dynamic(cross_entropy)
        if self.head is not None:
            self.head.compile_parts()

    def forward(self, batch: Batch) -> Outputs:
        vision_features = self.encode_images(batch)
        hidden = self.hidden_states(batch, vision_features)
        supervised = hidden[batch.supervised_positions]
        how = self.backbone.lm_head, self.vocabulary_chunk, self.cross_entropy
        token_losses = chunked_cross_entropy(supervised, batch.labels, *how)
        return Outputs(token_losses, self.detect(batch, vision_features, hidden))

    def detect(
        self, batch: Batch, vision_features: Float[Tensor, "merged width"], hidden: Float[Tensor, "flat width"]
    ) -> Detections | None:
        """What the head makes of the features; None without a head."""
        if self.head is None:
            return None
        embed = self.backbone.get_input_embeddings()
        return self.head(vision_features, hidden, batch.memory, batch.ground_truth, embed, self.project)

    def encode_images(self, batch: Batch) -> Float[Tensor, "merged width"]:
        """Features of every image token of the batch, in order. The only run of the vision tower in a step, but for
        one for each of `batch.teachers` that the cache lacks: alone, so that what is kept depends on nothing else."""
        if not batch.teachers:
            return self._tower(batch.vision).pooler_output
        states = [self._states(batch.vision)]
        for picture in batch.teachers:
            make = partial(self._states_from_host, picture.vision, batch.vision.patches.device)
            states.append(self.teacher_cache.states(picture.key, make))
        return self.backbone.model.visual.merger(torch.cat(states))

    def _states_from_host(self, vision: VisionInputs, device: torch.device) -> Float[Tensor, "merged merge width"]:
        # Pinned, or the copy would wait until the device has done all that it was told before.
        return self._states((vision.pin_memory() if device.type == "cuda" else vision).to(device))

    def _states(self, vision: VisionInputs) -> Float[Tensor, "merged merge width"]:
        """What the merger joins to one image token each, in order. The tower runs its merger all the same, for nothing:
        under 2% of it, for which no code of transformers need be copied or changed."""
        of_windows = self._tower(vision).last_hidden_state.unflatten(0, (len(vision.window_index), -1))
        return of_windows[vision.window_index.argsort()]

    def _tower(self, vision: VisionInputs) -> BaseModelOutputWithPooling:
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
        """Last hidden states of the flattened rows. Segments are kept apart by `cu_seqlens`, so there is no mask.
        An empty `cache` is filled with the keys and values of all slots of the rows, padding included."""
        embedded = self.backbone.get_input_embeddings()(batch.input_ids)
        if self.image_position_scale:
            positions = batch.position_ids[1:].flatten(1)[:, batch.image_positions]
            placed = self.image_position_scale * image_positions.sines(positions, vision_features.shape[1])
            vision_features = vision_features + placed.to(vision_features.dtype)
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

    def project(self, hidden: Float[Tensor, "*n width"]) -> Float[Tensor, "*n vocabulary"]:
        return self.backbone.lm_head(hidden)

    def training_flops(self, sizes: Sizes) -> int:
        """Of a training step on samples of these sizes, forward and backward, with what trains now (`flops`)."""
        backbone = flops.backbone_flops(self.backbone, sizes)
        if self.head is None:
            return backbone
        features_train = any(parameter.requires_grad for parameter in self.backbone.parameters())
        words_train = self.backbone.lm_head.weight.requires_grad
        vocabulary_size = self.backbone.config.text_config.vocab_size
        return backbone + self.head.training_flops(sizes, vocabulary_size, features_train, words_train)

    def check_teacher_cache(self) -> None:
        """Raise InputError if there is a cache for a vision tower that is trained; its merger may be."""
        parameters = self.backbone.model.visual.named_parameters()
        trained = [name for name, p in parameters if p.requires_grad and not name.startswith("merger.")]
        if self.teacher_cache.max_bytes and trained:
            raise InputError(
                f"model.teacher_cache_gib={self.teacher_cache.max_bytes / 2**30:g} needs a frozen vision tower, but "
                f"{len(trained)} of its parameters are trained. Set optimizer.groups.vision.lr=0 (with "
                "optimizer=adamw) or model.teacher_cache_gib=0."
            )

    def enable_gradient_checkpointing(self, choice: str) -> None:
        """Compute some of each block of the backbone again in the backward pass: "selective" or "full"."""
        activation_checkpointing.enable(self.backbone, choice)


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
    """The model on `device`, with pretrained weights or, from the current seed, random ones.

    `precision` is the engine's: unless it is "fp32", matrices are bfloat16, in which published weights come; norms,
    biases and the head's queries, which it adds to, are always float32. `head` takes the backbone's width, and gives
    None for a language model alone. `compile` turns the backbone's blocks, and of the head what it names, into fused
    kernels, for any length. `teacher_cache_gib` needs a frozen vision tower. Raises InputError for an
    `image_position_scale` that these weights cannot learn with.
    """
    image_positions.check(image_position_scale, weights)
    config = configuration(checkpoint, weights, shape)
    with torch.device(device):
        backbone = _backbone(config, checkpoint, weights)
        built_head = head(config.text_config.hidden_size)
    visual = backbone.model.visual
    pad_vision_mlp(visual, vision_mlp_multiple)
    join_projections(backbone.model.language_model)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    for parameter in (*backbone.parameters(), *_matrices(built_head)):
        if parameter.ndim >= 2:
            parameter.data = parameter.data.to(dtype)
    name = attention_choices.choose(attention, device, dtype)
    # Given as a plain string, a name with "flash" in it would be looked up as a kernel on the hub.
    backbone.set_attn_implementation({"text_config": name, "vision_config": name})
    if attention_choices.is_kernel(name):
        from bbu_train.model.window_attention import replace_windows  # Triton comes with torch for GPUs only

        replace_windows(visual)
        replace_norms(backbone, but_in=_blocks(backbone) if compile else [])  # compiled ones are fused
    cache = TeacherCache(teacher_cache_gib)
    model = GroundingModel(backbone, built_head, vocabulary_chunk, image_position_scale, cache)
    if compile:
        model.compile_parts()
    # Weights come in evaluation mode, in which transformers quietly leaves out gradient checkpointing.
    return model.to(device).train()


def _backbone(config: Qwen2_5_VLConfig, checkpoint: str | None, weights: str) -> Qwen2_5_VLForConditionalGeneration:
    """In float32, reading patches of still pictures as bytes."""
    if weights == "random":
        backbone = Qwen2_5_VLForConditionalGeneration(config)
        mean, std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    else:
        backbone = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        processor = AutoImageProcessor.from_pretrained(checkpoint)
        mean, std = processor.image_mean, processor.image_std
    visual = backbone.model.visual
    visual.patch_embed = StillPatchEmbedding(visual.patch_embed.proj, list(mean), list(std))
    return backbone


@torch.compiler.disable
def _without_view(_, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a view, which a first block is given, code would be made apart, for that block alone."""
    hidden, *others = inputs
    return hidden.clone(), *others


def _blocks(backbone: Qwen2_5_VLForConditionalGeneration) -> list[nn.Module]:
    return [*backbone.model.visual.blocks, *backbone.model.language_model.layers]


def _matrices(head: nn.Module | None) -> list[nn.Parameter]:
    """What autocast would turn into bfloat16 at each use."""
    return [module.weight for module in head.modules() if isinstance(module, nn.Linear)] if head is not None else []
