"""The assignment kernel, against scipy."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from bbu_train.runtime.seeds import generator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on CUDA only")
GPU = torch.device("cuda")


def by_kernel(costs, objects_per_sample):
    from bbu_train.loss.assignment_kernel import assign

    samples = torch.arange(len(objects_per_sample)).repeat_interleave(torch.tensor(objects_per_sample))
    return assign(costs.to(GPU), samples.to(GPU), len(objects_per_sample)).cpu()


def by_scipy(costs, objects_per_sample):
    layers = [
        [torch.from_numpy(linear_sum_assignment(cost)[1]) for cost in layer.split(objects_per_sample)]
        for layer in costs
    ]
    return torch.stack([torch.cat(layer) for layer in layers])


@pytest.mark.parametrize(
    "objects_per_sample,num_queries",
    [((3, 1, 6), 8), ((1,), 1), ((0, 2, 0), 4), ((12, 40, 7), 100), ((16,), 16), ((300, 2), 300), ((0, 0), 5)],
)
def test_the_assignment_is_scipys(objects_per_sample, num_queries):
    for draw in range(5):
        random = generator("costs", draw, *objects_per_sample)
        costs = torch.from_numpy(random.standard_normal((3, sum(objects_per_sample), num_queries), dtype="float32"))
        assert torch.equal(by_kernel(costs, objects_per_sample), by_scipy(costs, objects_per_sample))


def test_with_ties_the_assignment_is_as_cheap_as_scipys():
    objects_per_sample = (5, 9, 2)
    for draw in range(5):
        random = generator("equal costs", draw)
        costs = torch.from_numpy(random.integers(0, 3, (2, 16, 12))).float()
        costs[..., 4:] = 1e6  # stands for costs that are not finite
        queries, expected = (assign(costs, objects_per_sample) for assign in (by_kernel, by_scipy))
        for start, end in ((0, 5), (5, 14), (14, 16)):
            assert all(len(set(layer[start:end].tolist())) == end - start for layer in queries)
        assert torch.equal(costs.gather(2, queries[..., None]).sum(1), costs.gather(2, expected[..., None]).sum(1))
