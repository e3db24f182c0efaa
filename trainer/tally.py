"""Sums of a batch's metrics on one rank, made into means over all ranks at the end."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from trainer.types import MicroBatch

AT_START = ("engine_gap", "engine_gap_max")
"""Only meant for weights that sampled the tokens: counted in a batch's first optimiser step."""


class Tally:
    """One batch. `skip` and `add` are called once per optimiser step, in step on every rank."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.largest: dict[str, Tensor] = {}
        self.steps = self.skipped = 0
        self.norms = 0.0
        self.bad_prompts: list[int] = []

    def add(
        self,
        losses: Sequence[Tensor],
        metrics: Sequence[Mapping[str, Tensor]],
        norm: float,
        tokens: int,
    ) -> None:
        """One step that was taken. `metrics` are (sum, count) pairs, or `_max` scalars."""
        first = not (self.steps or self.skipped)
        self.steps += 1
        self.norms += norm
        own = {"loss": torch.stack(list(losses)).sum(), "tokens": torch.tensor(float(tokens))}
        for micro_batch in (*metrics, own):
            for name, value in micro_batch.items():
                if name in AT_START and not first:
                    continue
                if name.endswith("_max"):
                    self.largest[name] = torch.maximum(self.largest.get(name, value), value)
                else:
                    self.sums[name] = self.sums.get(name, 0.0) + value.double().to(self.device)

    def skip(self, prompts: Sequence[int]) -> None:
        """One step that no rank took."""
        self.skipped += 1
        self.bad_prompts += prompts

    def means(self) -> dict[str, Any]:
        """The same on every rank; collective. A mean over no tokens at all is left out."""
        out: dict[str, Any] = {"steps": self.steps, "skipped_steps": self.skipped}
        if self.bad_prompts:
            out["bad_prompts"] = sorted(set(self.bad_prompts))
        if not self.steps:
            return out
        names, maxima = sorted(self.sums), sorted(self.largest)
        pairs_M2 = torch.stack([torch.atleast_1d(self.sums[n]).expand(2) for n in names])
        torch.distributed.all_reduce(pairs_M2)
        for name, (total, count) in zip(names, pairs_M2.tolist(), strict=True):
            if name in ("loss", "tokens"):
                out[name] = total / (self.steps if name == "loss" else 1)
            elif count:
                out[name] = total / count
        if maxima:
            largest_M = torch.stack([self.largest[n].double() for n in maxima])
            torch.distributed.all_reduce(largest_M, torch.distributed.ReduceOp.MAX)
            out |= dict(zip(maxima, largest_M.tolist(), strict=True))
        out["grad_norm"] = self.norms / self.steps
        return out


def blamed(update: Sequence[MicroBatch], finite: Sequence[bool]) -> list[int]:
    """Prompts of the micro-batches whose loss is not finite, on any rank; of all where every loss
    is (then some gradient was not). Collective."""
    from trainer import zero

    guilty = [micro for micro, fine in zip(update, finite, strict=True) if not fine]
    everyone = zero.gather_objects([int(p) for m in guilty for p in m.prompts_B])
    if not any(everyone):
        everyone = zero.gather_objects([int(p) for m in update for p in m.prompts_B])
    return sorted({p for rank in everyone for p in rank if p >= 0})


def peak_memory_mb(device: torch.device) -> float:
    """MiB of this process so far: allocated on the GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
