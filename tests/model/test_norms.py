"""The norms that stand in for transformers' own."""

import pytest
import torch
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from bbu_train.model.norms import Norm, replace_norms

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.fixture(params=DEVICES)
def stock(request):
    torch.manual_seed(0)
    norm = Qwen2_5_VLRMSNorm(96).to(request.param)
    torch.nn.init.normal_(norm.weight)
    return norm


class Exact(nn.Module):
    """The definition, in float64."""

    def __init__(self, stock):
        super().__init__()
        self.weight, self.eps = stock.weight, stock.variance_epsilon

    def forward(self, x):
        x = x.double()
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight.double()


def run(norm, dtype):
    """The output, and the gradients of the input and of the weight."""
    torch.manual_seed(1)
    x = (3 * torch.randn(7, 96)).to(norm.weight.device, dtype).requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16):
        out = norm(x)
    weights = torch.sin(torch.arange(out.numel(), device=x.device)).view(out.shape)
    return out, *torch.autograd.grad((out * weights).sum(), [x, norm.weight])


def test_a_norm_in_float32_is_transformers_own(stock):
    for ours, theirs in zip(run(Norm(stock), torch.float32), run(stock, torch.float32), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_norm_of_bfloat16_is_nearer_to_the_exact_one_and_of_the_same_dtype(stock):
    exact = run(Exact(stock), torch.bfloat16)
    for ours, theirs, true in zip(run(Norm(stock), torch.bfloat16), run(stock, torch.bfloat16), exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours.double() - true.double()).norm() <= (theirs.double() - true.double()).norm()


def test_all_norms_of_a_model_are_replaced_and_no_name_changes(make_model):
    model = make_model("head=none")
    names = [name for name, _ in model.named_parameters()]
    kept = dict(model.named_parameters())
    replace_norms(model.backbone, but_in=[])
    assert not any(isinstance(module, Qwen2_5_VLRMSNorm) for module in model.modules())
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter is kept[name] for name, parameter in model.named_parameters())


def test_norms_of_compiled_blocks_are_left_as_they_are(make_model):
    backbone = make_model("head=none").backbone
    replace_norms(backbone, but_in=backbone.model.language_model.layers)
    left = {name.rsplit(".")[-1] for name, module in backbone.named_modules() if isinstance(module, Qwen2_5_VLRMSNorm)}
    assert left == {"input_layernorm", "post_attention_layernorm"}
    assert isinstance(backbone.model.language_model.norm, Norm)
    assert isinstance(backbone.model.visual.merger.ln_q, Norm)
