"""The caption decoder: what it may read, and that greedy decoding agrees with teacher forcing."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bbu_train.head.caption import CaptionDecoder
from bbu_train.head.memory import Memory
from bbu_train.runtime.seeds import generator

WIDTH, D_MODEL, VOCABULARY, IGNORED = 12, 8, 20, -100
NUM_SAMPLES, NUM_SLOTS, NUM_TOKENS = 2, 3, 5
END = 19


class RecordingLinear(nn.Linear):
    """The output matrix, which records all logits that it returns."""

    def forward(self, hidden):
        self.logits = [*getattr(self, "logits", []), super().forward(hidden)]
        return self.logits[-1]


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return CaptionDecoder(WIDTH, D_MODEL, num_layers=2, num_heads=2, vocabulary_chunk=1000, max_tokens=6)


@pytest.fixture
def embed():
    torch.manual_seed(1)
    return nn.Embedding(VOCABULARY, WIDTH)


@pytest.fixture
def project():
    torch.manual_seed(2)
    return RecordingLinear(WIDTH, VOCABULARY, bias=False)


@pytest.fixture
def inputs():
    """The states of the queries, and the memory."""
    random = generator("inputs")
    queries = random.standard_normal((NUM_SAMPLES, NUM_SLOTS, D_MODEL), dtype="float32")
    memory = random.standard_normal((NUM_SAMPLES, 4, D_MODEL), dtype="float32")
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    pos_embed = random.standard_normal(memory.shape, dtype="float32")
    return torch.from_numpy(queries), Memory(torch.from_numpy(memory), torch.from_numpy(pos_embed), mask)


@pytest.fixture
def caption_ids():
    """Words without the end token; the first sample's second caption is padded, its third is all padding."""
    ids = torch.from_numpy(generator("ids").integers(0, END, (NUM_SAMPLES, NUM_SLOTS, NUM_TOKENS)))
    ids[0, 1, 2:] = IGNORED
    ids[0, 2] = IGNORED
    return ids


def losses(decoder, inputs, caption_ids, embed, project):
    """The losses, of the shape (samples, slots, tokens) of `caption_ids`."""
    (queries, memory), num_slots = inputs, caption_ids.shape[1]
    samples = torch.arange(len(queries)).repeat_interleave(num_slots)
    flat = queries.flatten(0, 1), samples, num_slots, caption_ids.flatten(0, 1)
    return decoder.losses(*flat, memory, embed, project).view(caption_ids.shape)


def logits_of(decoder, inputs, caption_ids, embed, project):
    losses(decoder, inputs, caption_ids, embed, project)
    return project.logits[-1].view(*caption_ids.shape, -1)


class DictatingProjection(nn.Module):
    """The output matrix, but the likeliest token of each step is the next of the given captions."""

    def __init__(self, project, caption_ids):
        super().__init__()
        self.project = project
        self.words = iter(caption_ids.unbind(-1))

    def forward(self, hidden):
        logits = self.project(hidden)
        return torch.zeros_like(logits).scatter(-1, next(self.words)[..., None], 1.0)


def test_losses_are_the_cross_entropy_of_each_word_and_0_for_padding(decoder, inputs, caption_ids, embed, project):
    out = losses(decoder, inputs, caption_ids, embed, project)
    logits = logits_of(decoder, inputs, caption_ids, embed, project)
    expected = cross_entropy(logits.flatten(0, 2), caption_ids.flatten(), reduction="none", ignore_index=IGNORED)
    torch.testing.assert_close(out.flatten(), expected)
    assert (out[caption_ids == IGNORED] == 0).all()


def test_a_word_does_not_see_itself_nor_later_words(decoder, inputs, caption_ids, embed, project):
    before = logits_of(decoder, inputs, caption_ids, embed, project)
    changed = caption_ids.clone()
    changed[:, :, 2] = (changed[:, :, 2].clamp(min=0) + 1) % END
    after = logits_of(decoder, inputs, changed, embed, project)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.isclose(before[:, :, 3], after[:, :, 3]).all(-1).any()


def test_a_caption_reads_its_own_query_and_no_other_caption(decoder, inputs, caption_ids, embed, project):
    queries, memory = inputs
    before = losses(decoder, inputs, caption_ids, embed, project)
    changed_queries = queries.clone()
    changed_queries[1, 2] += 1
    words = caption_ids.clone()
    words[1, 2] = (words[1, 2] + 1) % END
    after = losses(decoder, (changed_queries, memory), words, embed, project)
    assert torch.equal(after[:1], before[:1])
    assert torch.equal(after[1, :2], before[1, :2])
    assert not torch.isclose(after[1, 2], before[1, 2]).any()


def test_a_caption_does_not_read_masked_memory(decoder, inputs, caption_ids, embed, project):
    queries, memory = inputs
    changed = memory._replace(states=torch.where(memory.mask[..., None], memory.states, 7.0))
    before = losses(decoder, inputs, caption_ids, embed, project)
    assert torch.equal(losses(decoder, (queries, changed), caption_ids, embed, project), before)


def test_a_caption_reads_the_memory(decoder, inputs, caption_ids, embed, project):
    queries, memory = inputs
    before = losses(decoder, inputs, caption_ids, embed, project)[1]
    after = losses(decoder, (queries, memory._replace(states=-memory.states)), caption_ids, embed, project)[1]
    assert not torch.isclose(before, after).all(-1).any()


def test_a_caption_reads_the_positions_of_the_memory(decoder, inputs, caption_ids, embed, project):
    queries, memory = inputs
    before = losses(decoder, inputs, caption_ids, embed, project)[1]
    after = losses(decoder, (queries, memory._replace(pos_embed=-memory.pos_embed)), caption_ids, embed, project)[1]
    assert not torch.isclose(before, after).all(-1).any()


def test_decoding_with_a_cache_gives_the_logits_of_teacher_forcing(decoder, inputs, caption_ids, embed, project):
    words = caption_ids.clamp(min=0)
    expected = logits_of(decoder, inputs, words, embed, project)
    project.logits = []
    queries, memory = inputs
    decoder.max_tokens = NUM_TOKENS
    generated = decoder.generate(queries, memory, embed, DictatingProjection(project, words), END)
    assert torch.equal(generated, words)
    torch.testing.assert_close(torch.stack(project.logits, dim=2), expected, atol=1e-5, rtol=0)


def test_greedy_captions_are_those_of_decoding_without_a_cache(decoder, inputs, embed, project):
    queries, memory = inputs
    words = torch.zeros(NUM_SAMPLES, NUM_SLOTS, 0, dtype=torch.long)
    for _ in range(6):
        unknown = torch.zeros(NUM_SAMPLES, NUM_SLOTS, 1, dtype=torch.long)
        logits = logits_of(decoder, inputs, torch.cat([words, unknown], dim=-1), embed, project)
        words = torch.cat([words, logits[:, :, -1:].argmax(-1)], dim=-1)
    assert len(words.unique()) > 2
    assert torch.equal(decoder.generate(queries, memory, embed, project, VOCABULARY), words)


def dictate(decoder, inputs, embed, project, words, max_tokens):
    queries, memory = inputs[0][:1], Memory(*(part[:1] for part in inputs[1]))
    projection, decoder.max_tokens = DictatingProjection(project, torch.tensor(words)[None]), max_tokens
    return decoder.generate(queries[:, : len(words)], memory, embed, projection, END)[0].tolist()


def test_a_caption_that_has_ended_is_filled_with_the_end_token(decoder, inputs, embed, project):
    words = dictate(decoder, inputs, embed, project, [[5, END, 7, 8], [6, 6, END, 9]], max_tokens=4)
    assert words == [[5, END, END], [6, 6, END]], "the longest caption ends at its third word, so decoding stops there"


def test_no_caption_is_longer_than_max_tokens(decoder, inputs, embed, project):
    words = dictate(decoder, inputs, embed, project, [[5, END, 7, 8], [6, 6, 3, 9]], max_tokens=3)
    assert words == [[5, END, END], [6, 6, 3]]


def test_a_sample_whose_captions_have_all_ended_is_no_longer_decoded_and_the_others_are_as_before(
    decoder, inputs, embed, project
):
    words = torch.tensor(
        [[[5, END, 7, 8], [4, END, 1, 2], [END, 3, 3, 3]], [[6, 6, 3, 9], [1, END, 3, 3], [2, 3, 4, 5]]]
    )
    expected = logits_of(decoder, inputs, words, embed, project)
    project.logits = []

    class OpenSamples(DictatingProjection):
        """Dictates the words of the first samples for two steps, then those of the second sample alone."""

        def forward(self, hidden):
            self.words = iter([next(self.words)[-len(hidden) :], *self.words])
            return super().forward(hidden)

    queries, memory = inputs
    decoder.max_tokens = 4
    captions = decoder.generate(queries, memory, embed, OpenSamples(project, words), END)
    assert [len(logits) for logits in project.logits] == [2, 2, 1, 1]
    assert captions[0].tolist() == [[5, END, END, END], [4, END, END, END], [END, END, END, END]]
    assert captions[1].tolist() == [[6, 6, 3, 9], [1, END, END, END], [2, 3, 4, 5]]
    for step, logits in enumerate(project.logits):  # of slots that have not ended
        torch.testing.assert_close(logits[-1, [0, 2]], expected[1, [0, 2], step], atol=1e-5, rtol=0)


def test_of_a_caption_longer_than_max_tokens_the_beginning_is_learned(decoder, inputs, caption_ids, embed, project):
    expected = losses(decoder, inputs, caption_ids, embed, project)[:, :, :3]
    decoder.max_tokens = 3
    queries, memory = inputs
    samples = torch.arange(NUM_SAMPLES).repeat_interleave(NUM_SLOTS)
    flat = queries.flatten(0, 1), samples, NUM_SLOTS, caption_ids.flatten(0, 1)
    torch.testing.assert_close(decoder.losses(*flat, memory, embed, project), expected.flatten(0, 1))
