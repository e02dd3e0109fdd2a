"""RMS norms in one kernel, compared with transformers' own."""

import pytest
import torch
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from bbu_train.model.norms import RMSNorm, replace_norms

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
    """Return the output, and the gradients of the input and of the weight."""
    torch.manual_seed(1)
    x = (3 * torch.randn(7, 96)).to(norm.weight.device, dtype).requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16):
        out = norm(x)
    weights = torch.sin(torch.arange(out.numel(), device=x.device)).view(out.shape)
    return out, *torch.autograd.grad((out * weights).sum(), [x, norm.weight])


def test_in_float32_the_norm_equals_transformers_own(stock):
    torch.testing.assert_close(run(RMSNorm(stock), torch.float32), run(stock, torch.float32))


def test_in_bfloat16_the_norm_is_at_least_as_exact_as_transformers_and_has_its_dtype(stock):
    norms = RMSNorm(stock), stock, Exact(stock)
    for value, stock_value, exact in zip(*(run(norm, torch.bfloat16) for norm in norms), strict=True):
        assert value.dtype == stock_value.dtype
        assert (value.double() - exact.double()).norm() <= (stock_value.double() - exact.double()).norm()


def test_all_norms_of_a_model_are_replaced_and_keep_their_parameters(make_model):
    model = make_model("head=none")
    before = dict(model.named_parameters())
    replace_norms(model.backbone, excluded=[])
    assert not any(isinstance(module, Qwen2_5_VLRMSNorm) for module in model.modules())
    assert [name for name, _ in model.named_parameters()] == list(before)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_norms_in_excluded_modules_are_not_replaced(make_model):
    backbone = make_model("head=none").backbone
    replace_norms(backbone, excluded=backbone.model.language_model.layers)
    stock = {name.rsplit(".")[-1] for name, module in backbone.named_modules() if isinstance(module, Qwen2_5_VLRMSNorm)}
    assert stock == {"input_layernorm", "post_attention_layernorm"}
    assert isinstance(backbone.model.language_model.norm, RMSNorm)
    assert isinstance(backbone.model.visual.merger.ln_q, RMSNorm)
