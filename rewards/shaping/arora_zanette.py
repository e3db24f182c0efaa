"""arora_zanette: among right answers the shorter earn more; wrong answers stay at 0.

R = correct * (1 - alpha * sigmoid((length - mu) / (sd + 1e-7))), mu and sd (ddof 0) over the right
answers of the group. Arora & Zanette 2025, "Training Language Models to Reason Efficiently"
(code: Zanette-Labs/efficient-reasoning). The component is R minus `correct`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from rewards.shaping import base
from rewards.shaping.base import Bools, Floats
from samplers.types import Group

EPSILON = 1e-7
requires = base.requires


class Config(base.Compared):
    alpha: float = Field(0.1, gt=0, lt=1)
    """Strength of the length term; the paper tries 0.05, 0.1, 0.2 and 0.4."""


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group: 0 where wrong or unknown, else in (-alpha, 0) times the score.

    Every cut has statistics of its own: answers at one budget are compared with each other.
    """

    def formula(lengths_N: Floats, right_N: Floats) -> Floats:
        counted_N = right_N > 0
        if not counted_N.any():
            return np.zeros_like(lengths_N)
        return np.where(counted_N, -config.alpha * standing(lengths_N, counted_N), 0.0)

    return [base.compared(g, config, formula) * base.scores(g) for g in groups], state


def standing(lengths: Floats, counted: Bools) -> Floats:
    """sigmoid of the standardised length, in (0, 1), by mean and deviation of the counted ones."""
    used = lengths[counted]
    z = (lengths - used.mean()) / (used.std() + EPSILON)
    return 0.5 * (1.0 + np.tanh(0.5 * z))
