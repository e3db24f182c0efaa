"""Gradients of each row of a micro-batch, from what passes through modules in one backward pass.

Rows do not see each other, so the gradient at a module's output holds each row's own, and with
the module's input it gives the row's gradient of the module's weights: for a matrix
sum_t g_t x_t^T (Goodfellow 2015, arXiv:1510.01799). Only its norm is made, from the product itself
or from the inner products of x and of g, whichever costs less (Li et al. 2022, arXiv:2110.05679).

Shape suffixes: B rows, T tokens of a row, L most tokens of a row, S positions of a row (tokens, or
tokens x heads), F features, I inputs and O outputs of a matrix, H hidden size, U different ids.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import Parameter

from trainer import zero
from trainer.types import MicroBatch

_affine: WeakSet[nn.Module] = WeakSet()
"""Modules that `affine` has found to be so."""


def segments(counts_B: NDArray[np.integer], device: torch.device) -> tuple[Tensor, Tensor]:
    """(index_BL, real_BL): places of each row's elements where rows lie one after another."""
    count_B1 = torch.as_tensor(np.asarray(counts_B, np.int64), device=device)[:, None]
    count_L = torch.arange(int(counts_B.max()), device=device)
    index_BL = count_B1.cumsum(0) - count_B1 + count_L
    return index_BL.clamp_(max=int(counts_B.sum()) - 1), count_L < count_B1


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of a micro-batch lie in the tensors of its forward pass."""

    count: int
    width: int
    """Tokens of a line of ids."""
    segments: tuple[Tensor, Tensor] | None
    """(index_BL, real_BL) where they lie one after another in one line."""

    @classmethod
    def of(cls, micro: MicroBatch, device: torch.device) -> Rows:
        count, (lines, width) = len(micro.lengths_B), micro.ids_BT.shape
        return cls(count, width, segments(micro.lengths_B, device) if count != lines else None)

    def divide(self, x: Tensor) -> bool:
        """Whether it can be told what of a tensor [..., F] belongs to which row."""
        if self.segments is None:
            return x.shape[0] in (self.count, self.count * self.width)
        ours = x.shape[:2] == (1, self.width)
        return ours and (x.ndim < 4 or x.shape[2] != self.width)  # else either axis may be tokens

    def split(self, x: Tensor) -> Tensor:
        """[B, S, F] of a tensor [..., F] that they `divide`; zeros behind a shorter row."""
        if self.segments is None:
            return x.reshape(self.count, -1, x.shape[-1])
        index_BL, real_BL = self.segments
        parts = x.reshape(self.width, -1, x.shape[-1])[index_BL]
        parts *= real_BL[:, :, None, None]
        return parts.flatten(1, 2)


class Captured:
    """Hooks on modules, and the squared gradient norms of their weights that come of it.

    Use: `watch` the modules, run the model, ask what is `missing`, call `backward`.

    Args:
        elements: the largest tensor made beside those of the pass itself, in elements.
    """

    def __init__(self, rows: Rows, elements: int, device: torch.device) -> None:
        self.rows, self.elements = rows, elements
        self.squares_B = torch.zeros(rows.count, dtype=torch.float64, device=device)
        self.tables: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        """Per embedding matrix (by its id): ids_BT and the gradients_BTH of their rows."""
        self._vectors: dict[nn.Module, list[str] | None] = {}
        self._anchors: list[Tensor] = []
        self._listening = True
        self._kinds: dict[int, str] = {}
        self._uses: Counter[int] = Counter()
        self._pairs: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._sums: dict[int, Tensor] = {}
        self._unknown: set[int] = set()

    @contextmanager
    def watch(self, modules: Mapping[nn.Module, Mapping[str, Parameter]]) -> Iterator[None]:
        """Inside, these parameters of modules are measured whenever the modules run.

        The model's input embedding has to be among them, if need be for none of its parameters:
        the backward pass ends there.
        """
        for module in modules:  # now: under ZeRO-3 to look at a parameter may gather it, later
            self._vectors[module] = vectors(module)
        handles = [
            module.register_forward_hook(partial(self._seen, wanted))
            for module, wanted in modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def missing(self, parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
        """Those that nothing is known of: `alone` measures them."""
        known = self._kinds.keys() - self._unknown
        return {name: p for name, p in parameters.items() if id(p) not in known}

    def alone(self, value_N: Tensor, row_N: Tensor, parameters: list[Parameter]) -> None:
        """Measure `parameters` by a backward pass a row."""
        self._listening = False
        for row in range(self.rows.count):
            mine = value_N[row_N == row].sum()
            grads = torch.autograd.grad(mine, parameters, retain_graph=True, allow_unused=True)
            for grad in grads:
                if grad is not None:
                    self.squares_B[row] += grad.float().square().sum()
        self._listening = True

    def backward(self, value: Tensor) -> None:
        """One backward pass of the sum over rows; no weight's gradient is computed or touched."""
        torch.autograd.grad(value, self._anchors, allow_unused=True)
        with torch.no_grad():
            for key in list(self._pairs):  # of uses that had no part in the value
                self._matrix_done(key)
            for key, sum_BF in self._sums.items():
                if key not in self._unknown:
                    self.squares_B += sum_BF.square().sum(1)
            for key, uses in self.tables.items():
                if key not in self._unknown:
                    self.squares_B += table_squares(*joined(uses))

    def _seen(
        self, wanted: Mapping[str, Parameter], module: nn.Module, args: Any, output: Any
    ) -> None:
        """A module ran: make ready for the gradient at its output, or say that it is not known."""
        from transformers.pytorch_utils import Conv1D

        if anchor := isinstance(module, nn.Embedding):
            if not output.requires_grad:  # frozen
                output.requires_grad_()
            self._anchors.append(output)
        call: Callable[[Tensor], None] | None = None
        kinds = dict.fromkeys(wanted, "vector")
        if len(args) == 1 and isinstance(output, Tensor) and self.rows.divide(output):
            x, names = args[0].detach(), self._vectors[module]
            if anchor:
                kinds |= {"weight": "table"}
                call = self._table(wanted, module, x)
            elif type(module).forward in (nn.Linear.forward, Conv1D.forward):
                kinds |= {"weight": "matrix"}
                call = self._linear(wanted, x)
            elif names and output.shape == x.shape and affine(module, x, names):
                call = partial(self._elementwise, wanted, module, x)
        for name, parameter in wanted.items():
            if call is None or self._kinds.setdefault(id(parameter), kinds[name]) != kinds[name]:
                self._unknown.add(id(parameter))
        if call is not None and wanted and output.requires_grad:
            output.register_hook(partial(self._heard, call))

    @torch.no_grad()
    def _heard(self, call: Callable[[Tensor], None], grad: Tensor) -> None:
        if self._listening:
            call(grad)

    def _linear(self, wanted: Mapping[str, Parameter], x: Tensor) -> Callable[[Tensor], None]:
        weight = id(wanted["weight"]) if "weight" in wanted else None
        if weight is not None:
            self._uses[weight] += 1

        def heard(grad: Tensor) -> None:
            if "bias" in wanted:
                self._add(wanted["bias"], grad.float())
            if weight is not None and weight not in self._unknown:
                self._pairs[weight].append((self.rows.split(x), self.rows.split(grad)))
                if len(self._pairs[weight]) == self._uses[weight]:
                    self._matrix_done(weight)

        return heard

    def _matrix_done(self, key: int) -> None:
        """A matrix used more than once has one gradient, of all its uses together."""
        self.squares_B += matrix_squares(*joined(self._pairs.pop(key)), self.elements)

    def _elementwise(
        self, wanted: Mapping[str, Parameter], module: nn.Module, x: Tensor, grad: Tensor
    ) -> None:
        names = self._vectors[module] or []
        for name, slope in slopes(module, x.float(), names).items():
            if name in wanted:
                self._add(wanted[name], grad * slope)

    def _add(self, parameter: Parameter, grad: Tensor) -> None:
        sum_BF = self.rows.split(grad).sum(1)
        self._sums[id(parameter)] = self._sums.get(id(parameter), 0.0) + sum_BF

    def _table(
        self, wanted: Mapping[str, Parameter], module: Any, ids: Tensor
    ) -> Callable[[Tensor], None] | None:
        if module.max_norm is not None or module.scale_grad_by_freq:
            return None
        scale_H: Tensor | None = None
        if (
            wanted and type(module).forward is not nn.Embedding.forward
        ):  # Gemma's multiply by sqrt(H)
            ones_1H = torch.ones(1, zero.shape(wanted["weight"])[1], device=ids.device)
            shell = copy.copy(module)
            shell.padding_idx = None
            scale_H = evaluate(shell, {"weight": ones_1H}, ids.new_zeros(1))[0]

        def heard(grad: Tensor) -> None:
            grad_BTH = self.rows.split(grad).float()
            ids_BT = self.rows.split(ids[..., None])[..., 0]
            if module.padding_idx is not None:  # as autograd has it: this row stays as it is
                grad_BTH = grad_BTH * (ids_BT != module.padding_idx)[..., None]
            if scale_H is not None:
                grad_BTH = grad_BTH * scale_H
            self.tables[id(wanted["weight"])].append((ids_BT, grad_BTH))

        return heard


def evaluate(module: nn.Module, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The module's own computation with other parameters; hooks do not run, nothing is gathered."""
    shell = copy.copy(module)
    vars(shell)["_parameters"] = dict(values)
    out: Tensor = type(module).forward(shell, x)
    return out


def vectors(module: nn.Module) -> list[str] | None:
    """Names of the module's own parameters where all of them are vectors of one length."""
    shapes = {name: zero.shape(p) for name, p in module.named_parameters(recurse=False)}
    alike = len(set(shapes.values())) == 1 and all(len(shape) == 1 for shape in shapes.values())
    return list(shapes) if alike else None


def slopes(module: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """d output / d parameter where output = f0(x) + sum over parameters of p[f] slope(x)[..., f]:
    a norm's weight has the normed x, a bias 1. `names` are all of its parameters."""
    zeros = {name: x.new_zeros(x.shape[-1]) for name in names}
    base = evaluate(module, zeros, x)
    ones = {name: {**zeros, name: torch.ones_like(zeros[name])} for name in names}
    return {name: evaluate(module, values, x) - base for name, values in ones.items()}


def affine(module: nn.Module, x: Tensor, names: Sequence[str]) -> bool:
    """Whether the module is as `slopes` says: tried on the first row of x, once a module."""
    if module not in _affine:
        x = x[:1].float()
        ramp = torch.linspace(0.5, 1.5, x.shape[-1], device=x.device)
        values = {name: ramp.roll(i) for i, name in enumerate(names)}
        expected = evaluate(module, {name: torch.zeros_like(ramp) for name in names}, x)
        for name, slope in slopes(module, x, names).items():
            expected = expected + values[name] * slope
        if torch.allclose(evaluate(module, values, x), expected, rtol=1e-4, atol=1e-5):
            _affine.add(module)
    return module in _affine


def joined(uses: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Of several uses of a weight in one forward pass: positions one after another."""
    if len(uses) == 1:
        return uses[0]
    left, right = zip(*uses, strict=True)
    return torch.cat(left, 1), torch.cat(right, 1)


def matrix_squares(x_BSI: Tensor, g_BSO: Tensor, elements: int) -> Tensor:
    """[B]: squared Frobenius norm of sum_s g x^T of each row, in float32.

    At most about `elements` numbers are made at once (one row's at least).
    """
    (_, s, i), o = x_BSI.shape, g_BSO.shape[-1]
    products = s * (i + o) < i * o  # S x S inner products cost less than the I x O gradient
    step = max(1, elements // (s * s if products else i * o))
    out = []
    for x, g in zip(x_BSI.split(step), g_BSO.split(step), strict=True):
        x, g = x.float(), g.float()
        if products:
            out.append(((x @ x.mT) * (g @ g.mT)).sum((1, 2)))
        else:
            out.append((g.mT @ x).square_().sum((1, 2)))
    return torch.cat(out)


def table_squares(ids_BT: Tensor, grad_BTH: Tensor) -> Tensor:
    """[B]: squared norm of each row's gradient of an embedding: its tokens' by id, added up."""
    row_B1 = torch.arange(len(ids_BT), device=ids_BT.device)[:, None]
    vocabulary = ids_BT.max() + 1
    keys_U, place_BT = torch.unique(row_B1 * vocabulary + ids_BT, return_inverse=True)
    sums_UH = grad_BTH.new_zeros(len(keys_U), grad_BTH.shape[-1])
    sums_UH.index_add_(0, place_BT.flatten(), grad_BTH.flatten(0, 1))
    out_B = grad_BTH.new_zeros(len(ids_BT))
    return out_B.index_add_(0, keys_U // vocabulary, sums_UH.square_().sum(1))
