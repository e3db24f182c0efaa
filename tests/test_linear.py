"""Risk: the faster linear layers round, or leave torch's precision settings changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tiny import tiny_model
from trainer import linear


def test_same_numbers_as_nn_linear() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 160), nn.SiLU(), nn.Linear(160, 33, bias=False))
    x = torch.randn(3, 50, 96, requires_grad=True)
    g = torch.randn(3, 50, 33)

    def run() -> list[torch.Tensor]:
        y = model(x)
        y.backward(g)
        found = [y.detach(), x.grad, *(p.grad for p in model.parameters())]
        x.grad = None
        model.zero_grad()
        return [t for t in found if t is not None]

    plain = run()
    changed = linear.speed_up(model)
    assert changed == (2 if linear.exact() else 0)
    fast = run()
    assert len(plain) == len(fast) == 5
    for a, b in zip(fast, plain, strict=True):
        assert (a - b).abs().max() <= 2e-6 * b.abs().max()


def test_gradients_of_a_model_and_its_head_kept() -> None:
    ids = torch.arange(40).view(2, 20) % 30

    def gradients(fast: bool) -> dict[str, torch.Tensor]:
        model = tiny_model("qwen3", tied=False).train()
        if fast:
            linear.speed_up(model)
            assert "forward" not in vars(model.get_output_embeddings())
        model(ids, labels=ids, use_cache=False).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, fast = gradients(False), gradients(True)
    assert plain.keys() == fast.keys()
    assert len(plain) > 10
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-4, atol=1e-6)


def test_frozen_weights_get_no_gradient() -> None:
    layer = nn.Linear(8, 8)
    layer.weight.requires_grad_(False)
    model = nn.Sequential(layer)
    linear.speed_up(model)
    model(torch.randn(4, 8, requires_grad=True)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


def test_precision_settings_are_left_as_they_were() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    model = nn.Sequential(nn.Linear(8, 8))
    linear.speed_up(model)
    model(torch.randn(4, 8)).sum().backward()
    with pytest.raises(RuntimeError):  # also when the product fails
        model(torch.randn(4, 9))
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert torch.get_float32_matmul_precision() == "highest"


def test_refused_where_products_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with matrix units: bfloat16 operands are found out, and nothing changes."""
    product = torch.Tensor.__matmul__

    def rounded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype == torch.float32:
            a, b = a.bfloat16().float(), b.bfloat16().float()
        return product(a, b)

    linear.exact.cache_clear()
    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    model = nn.Sequential(nn.Linear(8, 8))
    assert not linear.exact()
    assert linear.speed_up(model) == 0
    assert "forward" not in vars(model[0])
    linear.exact.cache_clear()


def test_other_types_are_left_alone() -> None:
    assert linear.speed_up(nn.Sequential(nn.Linear(8, 8)).bfloat16()) == 0
