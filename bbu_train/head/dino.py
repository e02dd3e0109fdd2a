"""A DINO decoder (Zhang et al. 2022) on top of Qwen2.5-VL. It learns in minutes what plain DETR learns in hours."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bbu_train.head import activations, anchors, flops
from bbu_train.head.adapter import Adapter
from bbu_train.head.anchored_layer import AnchoredLayer
from bbu_train.head.caption import CaptionDecoder
from bbu_train.head.denoising import DecoderInputs, Slots, add_box_noise, build_slots, concat_queries
from bbu_train.head.dense import assign_tokens
from bbu_train.head.layers import KeysValues, Mlp, ObjectnessHead
from bbu_train.head.memory import Memory, gather_memory, point_sine_encoding
from bbu_train.head.modulated_attention import MemoryPositions, memory_positions
from bbu_train.ops.activations import ActivationBytes, Execution, MicroBatchSizes
from bbu_train.ops.flops import Sizes
from bbu_train.types.batch import GroundTruth, MemoryIndex
from bbu_train.types.outputs import DenoisingOutputs, DenseOutputs, Detections


class Dino(flops.AnchoredDecoder):
    """Predict boxes that start at proposals of image tokens and that each decoder layer refines:

    logit(b_i) = logit(b_i-1) + MLP(query after layer i).

    - Proposals: b_0 are the refined anchors of the `num_queries` image tokens with the highest objectness. They are
      returned as layer 0 of the predictions. Image tokens are first split into `split` x `split` parts (2: patches), so
      that small objects have tokens of their own.
    - Look forward twice: the losses of a layer reach the refinement of the layer before it, and none earlier.
    - Contrastive denoising, in training: true boxes with noise pass through the same decoder as
      `num_denoising_groups` groups of queries. No group attends to another (`DenoisingOutputs`).
    - Dense loss, in training: each image token also predicts the object in whose central part it lies (`DenseOutputs`).
      A vision tower with random weights learns little from queries alone, which attend everywhere at first.

    Differences from DINO: cross-attention is dense and modulated around the boxes (`GaussianModulation`), features have
    one scale, a query starts as the sum of its token's state and a learned embedding, objectness and captions replace
    classes, and denoising queries do not see the matched ones.
    """

    def __init__(
        self,
        width: int,
        num_queries: int,
        d_model: int,
        num_heads: int,
        num_decoder_layers: int,
        num_caption_layers: int,
        adapter_ratio: int,
        split: int,
        num_denoising_groups: int,
        vocabulary_chunk: int,
        max_caption_tokens: int,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.split = split
        self.num_denoising_groups = num_denoising_groups
        self.vision_adapter = Adapter(width, adapter_ratio, split**2 * d_model)
        self.language_adapter = Adapter(width, adapter_ratio, d_model)
        self.memory_norm = nn.LayerNorm(d_model)
        self.proposal_objectness = ObjectnessHead(d_model)
        self.proposal_box = zero_init_last(Mlp(d_model, 4, num_layers=3))
        self.dense_objectness = ObjectnessHead(d_model)
        self.dense_box = zero_init_last(Mlp(d_model, 4, num_layers=3))
        self.query = nn.Embedding(num_queries, d_model)
        self.query_pos_head = Mlp(2 * d_model, d_model, num_layers=2)
        self.layers = nn.ModuleList(AnchoredLayer(d_model, num_heads) for _ in range(num_decoder_layers))
        self.norm = nn.LayerNorm(d_model)
        self.box = zero_init_last(Mlp(d_model, 4, num_layers=3))
        self.objectness = ObjectnessHead(d_model)
        self.captioner = CaptionDecoder(
            width, d_model, num_caption_layers, num_heads, vocabulary_chunk, max_caption_tokens
        )
        # Small beside the token's state, but enough to separate queries that start from the same token.
        nn.init.normal_(self.query.weight, std=0.02)

    def compile_parts(self) -> None:
        """Compile the captions only.

        Compiling the decoder takes minutes and gains little: beside a large model, the host launches its kernels well
        ahead of the device.
        """
        self.captioner.compile_parts()

    def training_flops(
        self, sizes: Sizes, vocabulary_size: int, features_require_grad: bool, lm_head_requires_grad: bool
    ) -> int:
        """Count the operations of a training step on samples of these sizes; see `flops.dino`."""
        return flops.dino(self, sizes, vocabulary_size, features_require_grad, lm_head_requires_grad)

    def activation_bytes(self, sizes: MicroBatchSizes, vocabulary_size: int, execution: Execution) -> ActivationBytes:
        """Return the bytes of the head's activations for a micro-batch; see `activations.dino`."""
        return activations.dino(self, sizes, vocabulary_size, execution)

    def forward(
        self,
        vision_features: Float[Tensor, "merged width"],
        hidden: Float[Tensor, "flat width"],
        index: MemoryIndex,
        truth: GroundTruth,
        embed: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
    ) -> Detections:
        """Return the detections of the proposals and of every layer.

        `embed` maps token ids to the backbone's width, and `project` maps that width to logits. `truth` is used in
        training mode only, and affects nothing but `denoising` and `dense`.
        """
        index = anchors.split_tokens(index, self.split)
        memory, states, boxes_logits, objectness_logits, denoising, dense = self.detect(
            vision_features, hidden, index, truth
        )
        # The centre of its box tells a caption where to attend. Captions do not train boxes, hence the detach.
        centers = boxes_logits[-1, ..., :2].detach().sigmoid()
        states = states + point_sine_encoding(centers, self.d_model).to(states.dtype)
        captions = self.captioner.caption_functions(states, memory, embed, project)
        return Detections(boxes_logits, boxes_logits.sigmoid(), objectness_logits, *captions, denoising, dense)

    def detect(
        self,
        vision_features: Float[Tensor, "merged width"],
        hidden: Float[Tensor, "flat width"],
        index: MemoryIndex,
        truth: GroundTruth,
    ) -> tuple[Memory, Tensor, Tensor, Tensor, DenoisingOutputs | None, DenseOutputs | None]:
        """Return the memory, the final query states, boxes and objectness, and the outputs that only training has.

        Boxes and objectness are float32 logits of the proposals and of every layer. `index` is of the split tokens.
        """
        vision = self.vision_adapter(vision_features).view(-1, self.d_model)
        memory = gather_memory(vision, self.language_adapter(hidden), index)
        memory = memory._replace(states=self.memory_norm(memory.states))
        # Unlike in DETR, positions are added to the values too: the box head needs to know where attended tokens lie.
        keys_values = [layer.cross_attention.keys_values(memory.keys, memory.keys) for layer in self.layers]
        image_states = memory.states[:, : index.vision.shape[1]]

        tokens, proposals, scores = self._propose(image_states, index)
        inputs = DecoderInputs((self.query.weight + tokens)[:, None], proposals[:, None], None)
        slots = None
        if self.training and self.num_denoising_groups:
            slots = build_slots(truth.sample_of_object, len(image_states), truth.max_objects)
            inputs = concat_queries(inputs, self._denoising_inputs(truth, slots, image_states, index))
        states, boxes, objectness = self._decode(inputs, keys_values, memory_positions(index))
        denoising = self._denoising_outputs(slots, boxes, objectness) if slots else None
        dense = self._dense_outputs(truth, image_states, index) if self.training else None
        num_queries = proposals.shape[1]
        boxes = torch.cat([proposals[None], boxes[:, :, 0, :num_queries]])
        objectness = torch.cat([scores[None], objectness[:, :, 0, :num_queries]])
        return memory, states[:, 0, :num_queries], boxes, objectness, denoising, dense

    def _propose(
        self, image_states: Float[Tensor, "samples vision model"], index: MemoryIndex
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return states, box logits and objectness logits of the image tokens with the highest objectness."""
        scores = self.proposal_objectness(image_states)[..., 0].float()
        chosen = anchors.topk_tokens(scores.detach(), index.vision_mask, self.query.num_embeddings)
        tokens = anchors.gather_tokens(image_states, chosen)
        boxes = anchors.gather_tokens(anchors.anchor_logits(index), chosen) + self.proposal_box(tokens).float()
        return tokens, boxes, scores.gather(1, chosen)

    def _denoising_inputs(
        self, truth: GroundTruth, slots: Slots, image_states: Float[Tensor, "samples vision model"], index: MemoryIndex
    ) -> DecoderInputs:
        """Return noised true boxes, with the state of the image token nearest to each as its query."""
        boxes = slots.pad(add_box_noise(truth.boxes_cxcywh, truth.noise, self.num_denoising_groups))
        nearest = anchors.nearest_tokens(boxes.flatten(1, 2), index)
        tokens = anchors.gather_tokens(image_states, nearest).unflatten(1, boxes.shape[1:3])
        return DecoderInputs(tokens, anchors.inverse_sigmoid(boxes), slots.mask[:, None].expand(boxes.shape[:3]))

    def _denoising_outputs(self, slots: Slots, boxes: Tensor, objectness: Tensor) -> DenoisingOutputs:
        """Split the denoising groups off the boxes and objectness logits of all groups; group 0 is the matched one."""
        num_slots = slots.mask.shape[1]
        boxes, objectness = boxes[:, :, 1:, :num_slots], objectness[:, :, 1:, :num_slots]
        return DenoisingOutputs(
            slots.unpad(boxes)[..., 0, :].sigmoid(),
            slots.unpad(objectness[..., None])[..., 0],
        )

    def _dense_outputs(
        self, truth: GroundTruth, image_states: Float[Tensor, "samples vision model"], index: MemoryIndex
    ) -> DenseOutputs:
        boxes = (anchors.anchor_logits(index) + self.dense_box(image_states).float()).sigmoid()
        objectness = self.dense_objectness(image_states)[..., 0].float()
        objects = assign_tokens(index.vision_centers, index.vision_mask, truth.boxes_cxcywh, truth.sample_of_object)
        return DenseOutputs(boxes, objectness, objects, index.vision_mask)

    def _decode(
        self, inputs: DecoderInputs, keys_values: list[KeysValues], memory_pos: MemoryPositions
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the states after the last layer, and box and objectness logits after each."""
        queries, mask = inputs.queries, None if inputs.mask is None else inputs.mask.flatten(0, 1)
        # Both are the boxes so far; `reference` has the gradient of the last refinement, `anchor` none.
        reference = anchor = inputs.boxes_logits.detach()
        boxes, objectness = [], []
        for layer, layer_keys_values in zip(self.layers, keys_values, strict=True):
            boxes_cxcywh = anchor.sigmoid()
            query_pos = self.query_pos_head(anchors.box_sine_encoding(boxes_cxcywh, self.d_model))
            queries = layer(queries, query_pos, boxes_cxcywh, mask, layer_keys_values, memory_pos)
            states = self.norm(queries)
            refinement = self.box(states).float()
            boxes.append(reference + refinement)
            objectness.append(self.objectness(states)[..., 0].float())
            reference = anchor + refinement
            anchor = reference.detach()
        return states, torch.stack(boxes), torch.stack(objectness)


def zero_init_last(box: Mlp) -> Mlp:
    """Set the last layer of a box head to zero, so that it leaves boxes where they are before it is trained."""
    nn.init.zeros_(box[-1].weight)
    nn.init.zeros_(box[-1].bias)
    return box
