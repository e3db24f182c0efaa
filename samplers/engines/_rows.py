"""What the torch engine knows of its rows: arrays for each step's work, objects for the rest.

Shape suffixes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from samplers.engines._slots import KV
from samplers.types import Floats, Ids, Ramp, Request

T = TypeVar("T")
FORWARD_TOKENS = 8192
"""Padded tokens of one forward beside the decoding: bounds its mask and activations."""

STATE = np.dtype(
    [
        ("length", np.int64),  # tokens whose KV is in the slot
        ("token", np.int64),  # next token to feed
        ("count", np.int64),  # tokens sampled
        ("limit", np.int64),
        ("seed", np.uint64),
        ("temperature", np.float32),
        ("top_p", np.float64),
        ("top_k", np.int64),  # 0: all
        ("stops", np.int64),  # row of the table of stop sets
        ("bias", np.int64),  # row of the table of logit biases
        ("drawn", np.int64),  # tokens that the seed has drawn before
        ("ramp", np.int64),  # token whose logit is raised as the row grows
        ("ramp_start", np.float64),
        ("ramp_end", np.float64),
        ("ramp_strength", np.float32),  # 0: none
    ]
)


@dataclass(slots=True)
class Kept:
    """A kept prefix. Without `kv` (dropped by a weight load) forks prefill its ids."""

    ids: Ids
    kv: list[KV] | None
    length: int
    forks: int = 0
    released: bool = False


@dataclass(slots=True)
class Row:
    request: Request
    context: Ids
    """Everything before the first sampled token: reused prefix, then the request's ids."""
    kept: Kept | None = None
    """Prefix to copy KV from; None prefills the context."""
    ids: Ids = field(default_factory=lambda: np.zeros(0, np.int32))
    """Sampled before a weight load sent the row back to the queue."""
    logprobs: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    spans: list[tuple[int, int]] = field(default_factory=list)

    def leave(self) -> None:
        """A fork needs its prefix no more; the last one to do so frees a released one."""
        if self.kept is not None:
            self.kept.forks -= 1
            if self.kept.released and not self.kept.forks:
                self.kept.kv = None
            self.kept = None


class Table:
    """Distinct per-token settings (stop ids, biases) as rows of one array: a step needs no loop."""

    def __init__(self, empty_V: torch.Tensor) -> None:
        self.values = empty_V[None]
        self._rows: dict[Any, int] = {(): 0}

    def row(self, tokens: tuple[int, ...] | Mapping[int, float]) -> int:
        """The row of these stop ids, or of these biases."""
        key = tokens if isinstance(tokens, tuple) else tuple(tokens.items())
        if key not in self._rows:
            new = torch.zeros_like(self.values[:1])
            for token in tokens:
                new[0, token] = 1 if isinstance(tokens, tuple) else tokens[token]
            self._rows[key] = len(self.values)
            self.values = torch.cat([self.values, new])
        return self._rows[key]


_FLAT = Ramp(0, 0.0, 1.0, 0.0)


def started(request: Request, count: int, stops: Table, biases: Table) -> tuple[Any, ...]:
    """STATE of a row with nothing in the cache, of which `count` tokens are sampled."""
    ramp = request.ramp or _FLAT
    return (
        0, 0, count, request.max_tokens, request.seed & 0xFFFFFFFFFFFFFFFF, request.temperature,
        request.top_p, request.top_k,
        stops.row(request.stop_ids), biases.row(request.logit_bias or ()), request.drawn,
        ramp.token, ramp.start, ramp.end, ramp.strength,
    )  # fmt: skip


def biased(logits_NV: torch.Tensor, state: NDArray[Any], biases: Table) -> torch.Tensor:
    """Logits with what requests add to them: their biases, and ramps at the rows' lengths."""
    device = logits_NV.device
    if state["bias"].any():
        rows_N = torch.from_numpy(state["bias"].copy()).to(device)
        logits_NV = logits_NV + biases.values[rows_N]
    ramped = np.flatnonzero(state["ramp_strength"])
    if len(ramped):
        of = state[ramped]
        share = (of["count"] - of["ramp_start"]) / (of["ramp_end"] - of["ramp_start"])
        added = of["ramp_strength"] * share.clip(0, 1).astype(np.float32)
        where = torch.from_numpy(ramped).to(device), torch.from_numpy(of["ramp"].copy()).to(device)
        raised = torch.from_numpy(added).to(device, logits_NV.dtype)
        logits_NV = logits_NV.index_put(where, raised, accumulate=True)
    return logits_NV


def chunks(items: list[T], lengths: list[int]) -> Iterator[list[T]]:
    """Consecutive items whose padded lengths fit one forward, in order."""
    first, longest = 0, 0
    for i, length in enumerate(lengths):
        if i > first and max(longest, length) * (i + 1 - first) > FORWARD_TOKENS:
            yield items[first:i]
            first, longest = i, 0
        longest = max(longest, length)
    if items:
        yield items[first:]
