"""kimi: shortest of the group +1/2, longest -1/2, linear between; no bonus for wrong answers.

lambda = 1/2 - (n - min) / (max - min) over all answers of the group; a right one gets lambda, a
wrong one min(0, lambda); all 0 where all are equally long. Added to the verdict with a weight.
Kimi k1.5 (2501.12599), section 2.3.3, which switches it on after a warm-up: give a stage of its
own to that.

Below a weight of 2 right beats wrong at any length, but among wrong answers the long are
punished: models learn to fail fast. `gate: correct` leaves wrong ones alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from rewards.shaping import base
from rewards.shaping.base import Floats
from samplers.types import Group

requires = base.requires


class Config(base.Compared, base.Gated):
    weight: float = Field(1.0, gt=0)
    """What the length reward, in [-1/2, 1/2], is multiplied with (not published)."""


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group, in [-weight / 2, weight / 2]."""
    parts = [config.weight * base.compared(g, config, rewards) for g in groups]
    return [base.added(g, p, config.gate) for g, p in zip(groups, parts, strict=True)], state


def rewards(lengths: Floats, right: Floats) -> Floats:
    """lambda where right is 1, min(0, lambda) where it is 0; 0 where all lengths are equal."""
    spread = lengths.max() - lengths.min()
    if spread == 0:
        return np.zeros_like(lengths)
    value = 0.5 - (lengths - lengths.min()) / spread
    return np.where(right > 0, value, np.minimum(value, 0.0))
