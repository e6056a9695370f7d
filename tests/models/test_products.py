"""Linear layers without gradient: the same sums by another library's kernels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bita.models import products
from bita.models.products import fast_products


@pytest.fixture(autouse=True)
def not_intel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take oneDNN's kernels on whatever CPU this is."""
    monkeypatch.setattr(products, "_onednn", lambda: torch.ops.mkldnn._linear_pointwise)


@pytest.mark.parametrize(
    ("shape", "bias"),
    [
        ((7, 5), True),
        ((11, 5), True),
        ((3, 9, 5), False),
        ((2, 3, 5), True),
        ((2, 1, 4, 5), False),
        ((1, 5), False),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_sums_are_those_of_torch(
    shape: tuple[int, ...], bias: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    layer, x = nn.Linear(5, 9, bias=bias), torch.randn(shape)
    wanted = layer(x)
    with torch.no_grad(), fast_products():
        found = layer(x)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_what_is_cut_out_of_a_tensor_is_read_rightly() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4), torch.randn(6, 5, 8)[::2, :, 1::2]
    with torch.no_grad(), fast_products():
        torch.testing.assert_close(layer(x), layer(x.contiguous()), rtol=1e-5, atol=1e-6)


def test_training_and_other_precisions_stay_with_torch() -> None:
    layer, x = nn.Linear(5, 9), torch.randn(3, 5)
    with fast_products():
        assert layer(x).requires_grad
    with torch.no_grad(), fast_products():
        assert torch.equal(layer.bfloat16()(x.bfloat16()), layer(x.bfloat16()))
    with torch.no_grad(), fast_products(wanted=False):
        assert torch.equal(layer.float()(x), nn.functional.linear(x, layer.weight, layer.bias))
