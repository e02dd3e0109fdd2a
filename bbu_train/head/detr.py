"""A plain DETR decoder (Carion et al. 2020) on top of Qwen2.5-VL: boxes, objectness and captions."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bbu_train.head import activations, flops
from bbu_train.head.adapter import Adapter
from bbu_train.head.caption import CaptionDecoder
from bbu_train.head.layers import DecoderLayer, Mlp, ObjectnessHead
from bbu_train.head.memory import Memory, gather_memory
from bbu_train.ops.activations import ActivationBytes, Execution, MicroBatchSizes
from bbu_train.ops.compile import compile_dynamic
from bbu_train.ops.flops import Sizes
from bbu_train.types.batch import GroundTruth, MemoryIndex
from bbu_train.types.outputs import Detections


class QueryLayer(DecoderLayer):
    """One pre-norm decoder layer: self-attention, cross-attention to the memory, feed-forward network.

    `query_pos` and `memory.pos_embed` are added to the inputs of queries and keys, never of values, as in DETR.
    """

    def forward(
        self,
        queries: Float[Tensor, "samples queries model"],
        query_pos: Float[Tensor, "queries model"],
        memory: Memory,
    ) -> Float[Tensor, "samples queries model"]:
        normalised = self.norms[0](queries)
        with_pos = normalised + query_pos
        queries = queries + self.self_attention(with_pos, self.self_attention.keys_values(with_pos, normalised))
        keys_values = self.cross_attention.keys_values(memory.keys, memory.states, memory.mask)
        queries = queries + self.cross_attention(self.norms[1](queries) + query_pos, keys_values)
        return queries + self.feed_forward(self.norms[2](queries))


class Detr(flops.Decoder):
    """Predict a box, an objectness and a caption from each of `num_queries` learned queries.

    The queries attend to each sample's memory: the image tokens of the student's picture and the text before the
    student's answer (`MemoryIndex`). All decoder layers share the box and objectness heads, and return predictions for
    auxiliary losses. Two differences from DETR: there is no encoder, since the backbone is one, and no class
    prediction, since captions name the class.
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
        vocabulary_chunk: int,
        max_caption_tokens: int,
    ) -> None:
        super().__init__()
        self.vision_adapter = Adapter(width, adapter_ratio, d_model)
        self.language_adapter = Adapter(width, adapter_ratio, d_model)
        self.memory_norm = nn.LayerNorm(d_model)
        self.query = nn.Embedding(num_queries, d_model)
        self.query_position = nn.Embedding(num_queries, d_model)
        self.layers = nn.ModuleList(QueryLayer(d_model, num_heads) for _ in range(num_decoder_layers))
        self.norm = nn.LayerNorm(d_model)
        self.box = Mlp(d_model, 4, num_layers=3)
        self.objectness = ObjectnessHead(d_model)
        self.captioner = CaptionDecoder(
            width, d_model, num_caption_layers, num_heads, vocabulary_chunk, max_caption_tokens
        )

    def compile_parts(self) -> None:
        """Compile everything before the matching into one graph, and the captions, which follow it, into others.

        The head's kernels are so small that the device waits for the host to launch each of them. A compiled graph
        launches fewer.
        """
        self.detect = compile_dynamic(self.detect)
        self.captioner.compile_parts()

    def training_flops(
        self, sizes: Sizes, vocabulary_size: int, features_require_grad: bool, lm_head_requires_grad: bool
    ) -> int:
        """Count the operations of a training step on samples of these sizes; see `flops.detr`."""
        return flops.detr(self, sizes, vocabulary_size, features_require_grad, lm_head_requires_grad)

    def activation_bytes(self, sizes: MicroBatchSizes, vocabulary_size: int, execution: Execution) -> ActivationBytes:
        """Return the bytes of the head's activations for a micro-batch; see `activations.detr`."""
        return activations.detr(self, sizes, vocabulary_size, execution)

    def forward(
        self,
        vision_features: Float[Tensor, "merged width"],
        hidden: Float[Tensor, "flat width"],
        index: MemoryIndex,
        truth: GroundTruth,
        embed: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
    ) -> Detections:
        """Return the detections of every layer.

        `embed` maps token ids to the backbone's width, and `project` maps that width to logits. `truth` is not used:
        this head has no denoising and no dense loss.
        """
        states, pos_embed, mask, layers, boxes_logits, objectness_logits = self.detect(vision_features, hidden, index)
        captions = self.captioner.caption_functions(layers[-1], Memory(states, pos_embed, mask), embed, project)
        return Detections(boxes_logits, boxes_logits.sigmoid(), objectness_logits, *captions)

    def detect(
        self,
        vision_features: Float[Tensor, "merged width"],
        hidden: Float[Tensor, "flat width"],
        index: MemoryIndex,
    ) -> tuple[Tensor, ...]:
        """Return the three fields of the memory, then query states, boxes and objectness logits after each layer.

        Boxes are logits too, and both kinds are float32. The tuple is flat, because compiled code cannot return a
        named one in torch 2.11.
        """
        memory = gather_memory(self.vision_adapter(vision_features), self.language_adapter(hidden), index)
        memory = memory._replace(states=self.memory_norm(memory.states))
        layers = self._decode(memory)
        return *memory, layers, self.box(layers).float(), self.objectness(layers)[..., 0].float()

    def _decode(self, memory: Memory) -> Float[Tensor, "layers samples queries model"]:
        """Return the normalised query states after each layer."""
        queries = self.query.weight.expand(len(memory.states), -1, -1)
        outputs = []
        for layer in self.layers:
            queries = layer(queries, self.query_position.weight, memory)
            outputs.append(self.norm(queries))
        return torch.stack(outputs)
