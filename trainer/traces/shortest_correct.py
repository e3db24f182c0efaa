"""The shortest right ones of one's own rollouts: rejection sampling against over-thinking.

Kimi k1.5 (arXiv:2501.12599, "shortest rejection sampling", 8 samples) and Munkhbat et al. 2025
(arXiv:2502.20122) fine-tune on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rewards import lengths
from samplers.types import Rollout
from trainer.traces import base


class Config(base.Config):
    keep: int = Field(1, ge=1)
    """The shortest so many right rollouts of a prompt; of each mode or budget, where plans name
    subgroups."""
    length: lengths.Kind = "response"
    """What is to be short: the whole `response`, or what the model has to `think`."""


def shortest(
    lengths_G: NDArray[np.float64], right_G: NDArray[np.bool_], keep: int
) -> NDArray[np.intp]:
    """Indices of the `keep` shortest right ones, shortest first; the earlier of equals."""
    order_G = np.argsort(lengths_G, kind="stable")
    return order_G[right_G[order_G]][:keep]


def make(config: Config, draws: Sequence[base.Draw], sampler: base.Sampler) -> list[Rollout]:
    """Sample every prompt as the stage's budget policy plans, and keep what is right and short."""
    asks = [base.Ask(draw, sampler.plans(draw, config.samples)) for draw in draws]
    kept = []
    for group in sampler.sample(asks):
        lengths_G = lengths.lengths(group, config.length, count_forced=True)[:, -1, 0]
        right_G = base.right(group)
        for mode_G in group.subgroups.values():
            best = shortest(lengths_G, right_G & mode_G, config.keep)
            kept += [group.rollouts[i] for i in best]
    return kept
