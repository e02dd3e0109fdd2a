import pytest
import torch
from torch._dynamo.utils import counters

from bbu_train.ops.compile import compile_dynamic


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # raised inside torch
def test_one_graph_serves_all_lengths_even_if_two_are_equal_by_chance():
    least = 0.5
    torch.compiler.reset()
    counters.clear()
    function = compile_dynamic(lambda samples, layers: samples.clamp(least).sum(0) + layers.cos().sum(0))
    lengths = [(2, 2), (5, 2), (3, 7), (4, 4)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for num_samples, num_layers in lengths:
            samples, layers = torch.rand(num_samples, 3), torch.rand(num_layers, 3)
            torch.testing.assert_close(function(samples, layers), samples.clamp(0.5).sum(0) + layers.cos().sum(0))
    assert counters["aot_autograd"]["total"] == 1  # a symbol for `least` would have been given up at a second attempt
