"""Cross entropy in chunks: equal to plain cross entropy, without holding all logits at once."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bbu_train.ops.chunked_cross_entropy import IGNORED, chunked_cross_entropy
from bbu_train.runtime.seeds import generator

TOKENS, WIDTH, VOCABULARY = 7, 4, 11


@pytest.fixture
def hidden():
    return torch.from_numpy(generator("hidden").standard_normal((TOKENS, WIDTH), dtype="float32")).requires_grad_()


@pytest.fixture
def labels():
    return torch.tensor([3, IGNORED, 0, 10, 5, IGNORED, 3])


class Projection(nn.Linear):
    """An output matrix that records the number of tokens of each call."""

    def __init__(self):
        super().__init__(WIDTH, VOCABULARY, bias=False)
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(generator("projection").standard_normal((VOCABULARY, WIDTH))))
        self.calls = []

    def forward(self, hidden):
        self.calls.append(len(hidden))
        return super().forward(hidden)


@pytest.mark.parametrize("chunk", [1, 2, 3, TOKENS, 100])
def test_any_chunk_gives_the_values_and_gradients_of_plain_cross_entropy(hidden, labels, chunk):
    project, weights = Projection(), torch.arange(1.0, TOKENS + 1)
    expected = cross_entropy(project(hidden), labels, reduction="none", ignore_index=IGNORED)
    expected_gradients = torch.autograd.grad((weights * expected).sum(), [hidden, project.weight])
    losses = chunked_cross_entropy(hidden, labels, project, chunk)
    torch.testing.assert_close(losses, expected)
    gradients = torch.autograd.grad((weights * losses).sum(), [hidden, project.weight])
    torch.testing.assert_close(gradients, expected_gradients)


def test_an_ignored_token_has_loss_0(hidden, labels):
    losses = chunked_cross_entropy(hidden, labels, Projection(), 2)
    assert (losses == 0).tolist() == (labels == IGNORED).tolist()


def test_logits_of_one_chunk_are_computed_at_a_time_forward_and_backward(hidden, labels):
    project = Projection()
    chunked_cross_entropy(hidden, labels, project, 3).sum().backward()
    assert project.calls == [3, 3, 1, 3, 3]  # the last chunk, with which the backward pass begins, is not recomputed


def test_only_logits_of_the_last_chunk_are_kept_for_the_backward_pass(hidden, labels):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda t: t):
        chunked_cross_entropy(hidden, labels, Projection(), 3)
    logits = [shape for shape in saved if VOCABULARY in shape[1:] and WIDTH not in shape]
    assert {shape[0] for shape in logits} == {1}


def test_losses_of_half_precision_states_are_float32(hidden, labels):
    project = Projection().to(torch.bfloat16)
    assert chunked_cross_entropy(hidden.bfloat16(), labels, project, 3).dtype == torch.float32


def test_losses_are_the_same_without_gradients(hidden, labels):
    with torch.no_grad():
        losses = chunked_cross_entropy(hidden, labels, Projection(), 3)
    torch.testing.assert_close(losses, chunked_cross_entropy(hidden, labels, Projection(), 3).detach())
