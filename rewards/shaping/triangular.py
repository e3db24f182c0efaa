"""triangular: answers of the wanted length earn most, shorter and longer ones linearly less.

R = correct * [right] + weight * T(n / L) for n tokens where L are wanted: T rises from 0 at n = 0
to 1 at n = L and falls to 0 at n = 2L. With `band` it is flat: 1 up to L. Train Long, Think Short
(2508.08940), sections 3.3-3.4; its format reward (weight 0.1) is the shaper `format`.

Right beats wrong at any length where correct > weight; length-heavy (0.3, 0.6) a wrong answer of
the wanted length beats a right one of twice that: `gate: correct` mends it, and that wrong answers
are paid for their length at all. The band pays for empty answers as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from rewards.shaping import base
from rewards.shaping.base import Floats
from samplers.facts import TARGET
from samplers.types import Group


class Config(base.Measured, base.Gated):
    correct: float = Field(0.6, gt=0)
    """Reward of a right answer; the paper's pairs with `weight` are (0.6, 0.3) and (0.3, 0.6)."""
    weight: float = Field(0.3, gt=0)
    """Reward of the wanted length."""
    band: bool = False
    """Flat up to the wanted length instead of triangular."""
    target: int | None = Field(None, ge=1)
    """Wanted tokens; None: what each plan announces."""


def requires(config: Config) -> Mapping[str, str]:
    if config.target is not None:
        return base.requires(config)
    why = "it rewards the length that was asked for; set its target for a fixed one"
    return {**base.requires(config), TARGET: why}


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group: R minus `correct`. No target: no reward for the length."""
    return [_group(group, config) for group in groups], state


def _group(group: Group, config: Config) -> Floats:
    wanted_G11: Floats | float = config.target or base.targets(group)
    lengths_GCA = base.measured(group, config)
    length_GCA = config.weight * np.nan_to_num(triangle(lengths_GCA, wanted_G11, config.band))
    reward_GCA = config.correct * base.right(group) + length_GCA
    return base.replaced(group, reward_GCA, config.gate)


def triangle(lengths: Floats, wanted: Floats | float, band: bool = False) -> Floats:
    """In [0, 1]: n / L up to the wanted length L (with `band` 1), then 2 - n / L down to 0."""
    ratio = lengths / wanted
    return np.maximum(np.minimum(1.0 if band else ratio, 2.0 - ratio), 0.0)
