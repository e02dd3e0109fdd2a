"""What the bytes of activations depend on: the sizes of a micro-batch, and how it is computed.

Each part of the model counts its own (`model.activations`, `head.activations`), as with FLOPs. Every formula also takes
NumPy arrays as sizes, so that the largest of many micro-batches is found at once.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

Count = int | np.integer | np.ndarray


@dataclass(frozen=True)
class MicroBatchSizes:
    """The sizes of a micro-batch, padding included: integers, or arrays with one entry for each of several.

    samples         samples
    positions       positions of the flattened rows
    token_squares   pairs of tokens of the same sample
    supervised      tokens with a language loss
    patches         patches that the vision tower reads with gradients
    other_patches   patches of the largest picture that is encoded apart, for the teacher cache; 0 without one
    pictures        pictures
    merged          image tokens of all pictures
    memory_image    image tokens of the largest student's picture
    memory_text     tokens of the longest text before a student's answer
    objects         objects of the students' pictures
    max_objects     most objects of one sample
    caption_tokens  tokens of the longest caption, its end included; the head may cut it
    """

    samples: Count
    positions: Count
    token_squares: Count
    supervised: Count
    patches: Count
    other_patches: Count
    pictures: Count
    merged: Count
    memory_image: Count
    memory_text: Count
    objects: Count
    max_objects: Count
    caption_tokens: Count


@dataclass(frozen=True)
class Execution:
    """How a micro-batch is computed.

    precision               engine.precision
    is_compiled             model.compile
    attention               model.attention, but never "auto"
    gradient_checkpointing  "none", "vision", "selective" or "full"
    is_on_gpu               whether a GPU computes it
    """

    precision: str
    is_compiled: bool
    attention: str
    gradient_checkpointing: str
    is_on_gpu: bool

    @property
    def of_vision(self) -> "Execution":
        """How the vision tower is computed: of checkpointing only "none", "selective" and "full" are left."""
        return replace(self, gradient_checkpointing="selective") if self.gradient_checkpointing == "vision" else self

    @property
    def of_language(self) -> "Execution":
        """How the language model is computed, likewise."""
        return replace(self, gradient_checkpointing="none") if self.gradient_checkpointing == "vision" else self

    @property
    def num_bytes(self) -> int:
        """Bytes of a number of the compute dtype."""
        return 4 if self.precision == "fp32" else 2

    @property
    def has_kernels(self) -> bool:
        """Whether attention, windows and norms run as kernels of a GPU, which `sdpa` stands in for elsewhere."""
        return self.attention != "sdpa"

    def linear_inputs(self, num_readers: int) -> int:
        """Return the bytes of a float32 number that `num_readers` linear layers read.

        Each layer keeps its input for the gradient of its weight. Autocast casts it once for each layer.
        """
        return 4 if self.num_bytes == 4 else 2 * num_readers


class ActivationBytes(NamedTuple):
    """Bytes of the activations of a micro-batch.

    saved      kept from the forward pass until the backward pass
    transient  the most that a part of the model needs beside `saved`, while it is computed or differentiated
    """

    saved: Count
    transient: Count


def vocabulary_bytes(num_tokens: Count, chunk: int, vocabulary_size: int, execution: Execution) -> ActivationBytes:
    """Return the bytes of the logits of `num_tokens` tokens in `ops.chunked_cross_entropy`.

    Only the last chunk is kept; the others are recomputed one by one. Without compilation log_softmax keeps float32
    log-probabilities. Their gradient and that of the logits come beside them in the backward pass. The compiled loss
    keeps the logits as they are, and writes their gradient beside them.
    """
    kept, extra = (execution.num_bytes, execution.num_bytes) if execution.is_compiled else (4, 8)
    largest = np.minimum(num_tokens, chunk)
    last = np.where(num_tokens > 0, (num_tokens - 1) % chunk + 1, 0)
    saved = last * vocabulary_size * kept
    return ActivationBytes(saved, largest * vocabulary_size * (kept + extra) - saved)
