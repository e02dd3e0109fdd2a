"""The data types: Sample -> Conversation -> Encoded -> Batch -> Outputs -> Losses.

`samples` holds the types that need no torch, `batch` the model's inputs, `outputs` its outputs. Import from these
modules: nothing is re-exported here, so that importing `bbu_train.types.samples` does not load torch.

Axis names in shape annotations:

    tokens      tokens of one conversation
    rows        rows of a batch; row_tokens: tokens of one row, padding included
    supervised  tokens with a language loss
    patches     14 x 14 pixel patches; merged: image tokens, each of 2 x 2 patches
    pictures    pictures of a batch; samples: conversations of a batch; flat: positions of all rows, flattened
    vision      image tokens of one picture, padded; text: text tokens before the answer, padded
    slots       padded queries or objects of a sample
    objects     ground-truth objects of a batch; caption: tokens of one description
    queries     object queries of the head; layers: its decoder layers; groups: denoising groups
    memory      entries of the decoder's memory; width: hidden size of the backbone; model: hidden size of the head
"""
