import pytest
import torch

from bbu_train.ops.flops import peak_bf16_flops, peak_bf16_flops_of


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        *(("NVIDIA H200", 989.5), ("NVIDIA H100 80GB HBM3", 989.5), ("NVIDIA H100 PCIe", 756.5), ("NVIDIA L4", 121)),
        *(("NVIDIA A100-SXM4-80GB", 312), ("A100-PCIE-40GB", 312), ("NVIDIA A100 80GB PCIe", 312)),
        *(("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA B200", 2250), ("NVIDIA GB200", 2500)),
    ],
)
def test_a_known_card_has_the_dense_rate_of_its_data_sheet(name, tflops):
    assert peak_bf16_flops_of(name) == round(tflops * 1e12)


@pytest.mark.parametrize(
    "name", ["", "Tesla V100-SXM2-32GB", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"]
)
def test_an_unknown_card_or_a_variant_of_a_known_one_has_no_rate(name):
    assert peak_bf16_flops_of(name) == 0


def test_a_cpu_has_no_rate():
    assert peak_bf16_flops(torch.device("cpu")) == 0
