"""Linear layers on CPUs whose widest units MKL leaves idle.

torch multiplies float32 matrices with MKL, which runs at half speed on processors that are not
Intel's: 95 GFLOP/s a core on an EPYC of 2025, where oneDNN reaches 220. torch hands a product to
oneDNN only where it may round its operands to bfloat16, and oneDNN makes use of that permission
only on CPUs with matrix units (AMX). So the permission is given for the products of linear layers
alone, on CPUs where a probe shows that nothing is rounded: same numbers, a third less time for a
training step of the tiny reasoner. Attention keeps MKL: oneDNN is slower at its small products.

Shape suffixes: F tokens, flat; I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_PROBE = (256, 512, 256)
_ROUNDED = 1e-4
"""Relative error that only rounded operands make: 2^-9 in bfloat16, below 1e-6 in float32."""


def speed_up(model: nn.Module) -> int:
    """Have the plain float32 linear layers of `model` multiplied by oneDNN, where that is exact.

    The head is left alone: whoever scores tokens has a forward of its own. Weights must be whole
    in forward and backward (not ZeRO-3). Returns how many layers changed; 0 on other machines.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    layers = [m for m in model.modules() if type(m) is nn.Linear and m is not head]
    layers = [m for m in layers if m.weight.dtype == torch.float32 and not m.weight.is_cuda]
    if not layers or torch.cuda.is_available() or not exact():
        return 0
    for layer in layers:
        layer.forward = _Forward(layer)
    return len(layers)


@cache
def exact() -> bool:
    """A product computed by permission to round shows that it was not rounded."""
    rows, inner, columns = _PROBE
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*s, generator=generator) for s in ((rows, inner), (inner, columns)))
    with _onednn():
        product = a @ b
    truth = a.double() @ b.double()
    return bool((product - truth).abs().max() < _ROUNDED * truth.abs().max())


@contextmanager
def _onednn() -> Iterator[None]:
    """Inside, torch gives float32 products to oneDNN."""
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


class _Forward:
    """The forward of one layer: what `nn.Linear` computes."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer

    def __call__(self, inputs: Tensor) -> Tensor:
        out: Tensor = _Linear.apply(inputs, self.layer.weight, self.layer.bias)
        return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight_OI)
        with _onednn():
            return linear(inputs, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight_OI = ctx.saved_tensors
        wants_inputs, wants_weight, wants_bias = ctx.needs_input_grad
        grad_FO, inputs_FI = grad.flatten(0, -2), inputs.flatten(0, -2)
        with _onednn():
            return (
                grad @ weight_OI if wants_inputs else None,
                grad_FO.t() @ inputs_FI if wants_weight else None,
                grad_FO.sum(0) if wants_bias else None,
            )
