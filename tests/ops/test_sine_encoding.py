import math

import pytest
import torch

from bbu_train.ops.sine_encoding import sine_encoding


@pytest.mark.parametrize("longest", [64, 10_000])
def test_the_encoding_is_the_formula_of_vaswani_et_al(longest):
    out = sine_encoding(torch.tensor([0.0, 1.0, 70.5]), 6, longest)
    for row, position in zip(out.tolist(), (0.0, 1.0, 70.5), strict=True):
        angles = [position / longest ** (2 * i / 6) for i in range(3)]
        assert row == pytest.approx([math.sin(a) for a in angles] + [math.cos(a) for a in angles], abs=1e-5)
