"""A plain DETR decoder on top of Qwen2.5-VL (Carion et al. 2020): boxes, objectness and captions."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bbu_train.head import flops
from bbu_train.head.adapter import Adapter, Memory, gather
from bbu_train.head.caption import CaptionDecoder
from bbu_train.head.layers import DecoderLayer, Mlp, Objectness
from bbu_train.ops.compile import compile_dynamic
from bbu_train.ops.flops import Sizes
from bbu_train.types.batch import GroundTruth, MemoryIndex
from bbu_train.types.outputs import Detections


class QueryLayer(DecoderLayer):
    """One decoder layer, pre-norm: the queries read each other, then the memory, each with its position added."""

    def forward(
        self,
        queries: Float[Tensor, "samples queries model"],
        places: Float[Tensor, "queries model"],
        memory: Memory,
    ) -> Float[Tensor, "samples queries model"]:
        normalised = self.norms[0](queries)
        placed = normalised + places
        queries = queries + self.self_attention(placed, self.self_attention.keys_values(placed, normalised))
        read = self.cross_attention.keys_values(memory.keys, memory.states, memory.mask)
        queries = queries + self.cross_attention(self.norms[1](queries) + places, read)
        return queries + self.feed_forward(self.norms[2](queries))


class Detr(nn.Module):
    """`num_queries` learned queries read each sample's memory and say a box, an objectness and a caption each.

    The memory is the student picture's image tokens and the sample's text before the student's answer
    (`MemoryIndex`). Box and objectness heads are shared by all layers, whose outputs all come back for auxiliary
    losses. Unlike DETR there is no encoder, since the backbone is one, and no class layer: captions name the class.
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
    ):
        super().__init__()
        self.vision_adapter = Adapter(width, adapter_ratio, d_model)
        self.language_adapter = Adapter(width, adapter_ratio, d_model)
        self.memory_norm = nn.LayerNorm(d_model)
        self.query = nn.Embedding(num_queries, d_model)
        self.query_position = nn.Embedding(num_queries, d_model)
        self.layers = nn.ModuleList(QueryLayer(d_model, num_heads) for _ in range(num_decoder_layers))
        self.norm = nn.LayerNorm(d_model)
        self.box = Mlp(d_model, 4, num_layers=3)
        self.objectness = Objectness(d_model)
        self.captioner = CaptionDecoder(width, d_model, num_caption_layers, num_heads, vocabulary_chunk)

    def compile_parts(self) -> None:
        """Fuse what comes before the matching into one graph, and the captions, which come after it, into another.

        There the host is not ahead of the device, which would wait for each small kernel that is launched by itself.
        """
        self.detect = compile_dynamic(self.detect)
        self.captioner.compile_parts()

    def training_flops(self, sizes: Sizes, vocabulary_size: int, features_train: bool, words_train: bool) -> int:
        """Of a training step on samples of these sizes; what trains outside of the head is given."""
        return flops.detr(self, sizes, vocabulary_size, features_train, words_train)

    def forward(
        self,
        vision_features: Float[Tensor, "merged width"],
        hidden: Float[Tensor, "flat width"],
        index: MemoryIndex,
        truth: GroundTruth,
        embed: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
    ) -> Detections:
        """`embed` and `project` are the backbone's: token ids to its width, and from its width to logits. This head
        learns from its losses alone, and does not look at `truth`."""
        states, places, mask, layers, boxes_logits, objectness_logits = self.detect(vision_features, hidden, index)
        spoken = self.captioner.speaker(layers[-1], Memory(states, places, mask), embed, project)
        return Detections(boxes_logits, boxes_logits.sigmoid(), objectness_logits, *spoken)

    def detect(
        self,
        vision_features: Float[Tensor, "merged width"],
        hidden: Float[Tensor, "flat width"],
        index: MemoryIndex,
    ) -> tuple[Tensor, ...]:
        """The three parts of the memory, the states of the queries after each layer, and their boxes and objectness
        before the sigmoid, in float32. A flat tuple, because torch 2.11 cannot give a named one from compiled code."""
        memory = gather(self.vision_adapter(vision_features), self.language_adapter(hidden), index)
        memory = memory._replace(states=self.memory_norm(memory.states))
        layers = self._queries(memory)
        return *memory, layers, self.box(layers).float(), self.objectness(layers)[..., 0].float()

    def _queries(self, memory: Memory) -> Float[Tensor, "layers samples queries model"]:
        queries = self.query.weight.expand(len(memory.states), -1, -1)
        outputs = []
        for layer in self.layers:
            queries = layer(queries, self.query_position.weight, memory)
            outputs.append(self.norm(queries))
        return torch.stack(outputs)
