"""A decoder that learns in minutes what a plain one learns in hours: DINO (Zhang et al. 2022) on Qwen2.5-VL."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bbu_train.head import anchors, flops, modulated_attention
from bbu_train.head.adapter import Adapter, Memory, gather, in_picture
from bbu_train.head.caption import CaptionDecoder
from bbu_train.head.denoising import Slots, Starts, beside, noised, slots
from bbu_train.head.dense import object_of_token
from bbu_train.head.layers import DecoderLayer, KeysValues, Mlp, Objectness
from bbu_train.ops.flops import Sizes
from bbu_train.types.batch import GroundTruth, MemoryIndex
from bbu_train.types.outputs import DenoisingOutputs, DenseOutputs, Detections


class AnchoredLayer(DecoderLayer):
    """One decoder layer, pre-norm: the queries of a group read each other, then the memory around their boxes."""

    def __init__(self, d_model: int, num_heads: int):
        super().__init__(d_model, num_heads)
        self.gaze = modulated_attention.Gaze(d_model, num_heads)

    def forward(
        self,
        queries: Float[Tensor, "samples groups queries model"],
        places: Float[Tensor, "samples groups queries model"],
        boxes_cxcywh: Float[Tensor, "samples groups queries 4"],
        mask: Bool[Tensor, "samples_groups queries"] | None,
        memory: KeysValues,
        where: modulated_attention.Places,
    ) -> Float[Tensor, "samples groups queries model"]:
        groups = queries.shape[:2]
        normalised = self.norms[0](queries)
        placed = (normalised + places).flatten(0, 1)
        keys_values = self.self_attention.keys_values(placed, normalised.flatten(0, 1), mask)
        queries = queries + self.self_attention(placed, keys_values).unflatten(0, groups)
        # Groups differ in what they read of each other, and to the memory they are one sequence of queries.
        asked = (self.norms[1](queries) + places).flatten(1, 2)
        looks = self.gaze(asked, boxes_cxcywh.flatten(1, 2), where.token_sizes)
        read = modulated_attention.look(self.cross_attention.asking(asked), *memory, looks, where.entries)
        queries = queries + self.cross_attention.answer(read).unflatten(1, queries.shape[1:3])
        return queries + self.feed_forward(self.norms[2](queries))


class Dino(nn.Module):
    """Queries begin at boxes that image tokens propose, and each layer moves the boxes of the layer before.

    logit(b_i) = logit(b_i-1) + MLP(query after layer i), and b_0 that of the `num_queries` image tokens which look most
    like an object, a box around the token moved likewise. An image token is first split into `split` x `split` parts,
    2 being its patches, so that small objects have tokens of their own. A layer reads around its boxes (`Gaze`). The
    proposals are the first of the layers that come back. As in DINO a layer's losses reach the layer before it too, and
    no farther, and in training true boxes with noise pass through the same decoder, `num_denoising_groups` times each,
    as groups of queries that no other query reads. In training each image token learns by itself, too, to find the
    object in whose middle it lies (`DenseOutputs`): from queries alone, which look everywhere at first, a vision tower
    of random weights learns little. Unlike in DINO attention is dense, the features have one scale, a query begins with
    its token's state besides a learned one, and objectness and captions take the place of classes.
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
    ):
        super().__init__()
        self.d_model = d_model
        self.split = split
        self.num_denoising_groups = num_denoising_groups
        self.vision_adapter = Adapter(width, adapter_ratio, split**2 * d_model)
        self.language_adapter = Adapter(width, adapter_ratio, d_model)
        self.memory_norm = nn.LayerNorm(d_model)
        self.proposed_objectness = Objectness(d_model)
        self.proposed_box = _still(Mlp(d_model, 4, num_layers=3))
        self.dense_objectness = Objectness(d_model)
        self.dense_box = _still(Mlp(d_model, 4, num_layers=3))
        self.query = nn.Embedding(num_queries, d_model)
        self.place = Mlp(2 * d_model, d_model, num_layers=2)
        self.layers = nn.ModuleList(AnchoredLayer(d_model, num_heads) for _ in range(num_decoder_layers))
        self.norm = nn.LayerNorm(d_model)
        self.box = _still(Mlp(d_model, 4, num_layers=3))
        self.objectness = Objectness(d_model)
        self.captioner = CaptionDecoder(width, d_model, num_caption_layers, num_heads, vocabulary_chunk)
        nn.init.normal_(self.query.weight, std=0.02)  # enough to part queries of one token, which has most to say

    def compile_parts(self) -> None:
        """Fuse the captions. Code for the decoder would take minutes to make, and the host is far ahead of the device
        when it comes to it."""
        self.captioner.compile_parts()

    def training_flops(self, sizes: Sizes, vocabulary_size: int, features_train: bool, words_train: bool) -> int:
        """Of a training step on samples of these sizes; what trains outside of the head is given."""
        return flops.dino(self, sizes, vocabulary_size, features_train, words_train)

    def forward(
        self,
        vision_features: Float[Tensor, "merged width"],
        hidden: Float[Tensor, "flat width"],
        index: MemoryIndex,
        truth: GroundTruth,
        embed: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
    ) -> Detections:
        """`embed` and `project` are the backbone's: token ids to its width, and from its width to logits. `truth` is
        read in training only, and by nothing but `denoised` and `dense`."""
        index = anchors.finer(index, self.split)
        memory, states, boxes_logits, objectness_logits, denoised, dense = self.detect(
            vision_features, hidden, index, truth
        )
        # A caption looks for its object where the object is.
        placed = states + in_picture(boxes_logits[-1, ..., :2].detach().sigmoid(), self.d_model).to(states.dtype)
        spoken = self.captioner.speaker(placed, memory, embed, project)
        return Detections(boxes_logits, boxes_logits.sigmoid(), objectness_logits, *spoken, denoised, dense)

    def detect(
        self,
        vision_features: Float[Tensor, "merged width"],
        hidden: Float[Tensor, "flat width"],
        index: MemoryIndex,
        truth: GroundTruth,
    ) -> tuple[Memory, Tensor, Tensor, Tensor, DenoisingOutputs | None, DenseOutputs | None]:
        """The memory, the states of the queries after the last layer, boxes and objectness of proposals and layers
        before the sigmoid, in float32, and what exists in training only. `index` is that of the split tokens."""
        vision = self.vision_adapter(vision_features).view(-1, self.d_model)
        memory = gather(vision, self.language_adapter(hidden), index)
        memory = memory._replace(states=self.memory_norm(memory.states))
        # What is read says where it is, too: a box is told from where its sides were seen.
        read = [layer.cross_attention.keys_values(memory.keys, memory.keys) for layer in self.layers]
        where = modulated_attention.places(index)
        seen = memory.states[:, : index.vision.shape[1]]

        tokens, proposed, scores = self._propose(seen, index)
        starts = Starts((self.query.weight + tokens)[:, None], proposed[:, None], None)
        rows = None
        if self.training and self.num_denoising_groups:
            rows = slots(truth.sample_of_object, len(seen), truth.max_objects)
            starts = beside(starts, self._noised(truth, rows, seen, index))
        states, boxes, objectness = self._decode(starts, read, where)
        denoised = self._denoised(rows, boxes, objectness) if rows else None
        dense = self._each_token(truth, seen, index) if self.training else None
        num_queries = proposed.shape[1]
        boxes = torch.cat([proposed[None], boxes[:, :, 0, :num_queries]])
        objectness = torch.cat([scores[None], objectness[:, :, 0, :num_queries]])
        return memory, states[:, 0, :num_queries], boxes, objectness, denoised, dense

    def _propose(
        self, seen: Float[Tensor, "samples vision model"], index: MemoryIndex
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States, boxes and objectness of the best tokens of each picture, the latter two before the sigmoid."""
        scores = self.proposed_objectness(seen)[..., 0].float()
        chosen = anchors.best(scores.detach(), index.vision_mask, self.query.num_embeddings)
        tokens = anchors.take(seen, chosen)
        boxes = anchors.take(anchors.of_tokens(index), chosen) + self.proposed_box(tokens).float()
        return tokens, boxes, scores.gather(1, chosen)

    def _noised(
        self, truth: GroundTruth, rows: Slots, seen: Float[Tensor, "samples vision model"], index: MemoryIndex
    ) -> Starts:
        """Where the groups of noised true boxes begin."""
        boxes = rows.lay(noised(truth.boxes_cxcywh, truth.noise, self.num_denoising_groups))
        tokens = anchors.take(seen, anchors.nearest(boxes.flatten(1, 2), index)).unflatten(1, boxes.shape[1:3])
        return Starts(tokens, anchors.logits(boxes), rows.mask[:, None].expand(boxes.shape[:3]))

    def _denoised(self, rows: Slots, boxes: Tensor, objectness: Tensor) -> DenoisingOutputs:
        num_slots = rows.mask.shape[1]
        said, seemed = boxes[:, :, 1:, :num_slots], objectness[:, :, 1:, :num_slots]
        return DenoisingOutputs(rows.lift(said)[..., 0, :].sigmoid(), rows.lift(seemed[..., None])[..., 0])

    def _each_token(
        self, truth: GroundTruth, seen: Float[Tensor, "samples vision model"], index: MemoryIndex
    ) -> DenseOutputs:
        boxes = anchors.of_tokens(index) + self.dense_box(seen).float()
        objects = object_of_token(index.vision_centers, index.vision_mask, truth.boxes_cxcywh, truth.sample_of_object)
        return DenseOutputs(boxes.sigmoid(), self.dense_objectness(seen)[..., 0].float(), objects, index.vision_mask)

    def _decode(
        self, starts: Starts, read: list[KeysValues], where: modulated_attention.Places
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States after the last layer, and boxes and objectness after each, before the sigmoid."""
        queries, mask = starts.queries, None if starts.mask is None else starts.mask.flatten(0, 1)
        before = anchor = starts.boxes_logits.detach()
        said, seemed = [], []
        for layer, keys_values in zip(self.layers, read, strict=True):
            boxes_cxcywh = anchor.sigmoid()
            places = self.place(anchors.wave(boxes_cxcywh, self.d_model))
            queries = layer(queries, places, boxes_cxcywh, mask, keys_values, where)
            states = self.norm(queries)
            move = self.box(states).float()
            said.append(before + move)
            seemed.append(self.objectness(states)[..., 0].float())
            before = anchor + move
            anchor = before.detach()
        return states, torch.stack(said), torch.stack(seemed)


def _still(box: Mlp) -> Mlp:
    """A box that does not move before it has learned to."""
    nn.init.zeros_(box[-1].weight)
    nn.init.zeros_(box[-1].bias)
    return box
