import torch

from bbu_train.collator.prompts import left_pad
from bbu_train.types.samples import Role


def test_prompts_end_together_and_equal_the_beginning_of_the_training_conversation(builder, samples, encoded):
    prompts = [builder.encode(builder.converse(sample, sample.teachers, with_answer=False)) for sample in samples]
    batch = left_pad(prompts, builder.picture_format)
    for row, (prompt, conversation) in enumerate(zip(prompts, encoded, strict=True)):
        length = len(prompt.input_ids)
        assert length == conversation.memory_end == prompt.memory_end
        assert torch.equal(batch.input_ids[row, -length:], conversation.input_ids[:length])
        assert torch.equal(batch.position_ids[1:, row, -length:], conversation.position_ids[:, :length])
        assert (batch.sample_of_token[row, :-length] == -1).all()
        assert (batch.sample_of_token[row, -length:] == row).all()
    assert Role.STUDENT not in batch.label_roles
