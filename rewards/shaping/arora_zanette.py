"""arora_zanette: among right answers the shorter earn more; wrong answers stay at 0.

R = correct * (1 - alpha * sigmoid((length - mu) / (sd + 1e-7))), mu and sd (ddof 0) over the right
answers of the group. Arora & Zanette 2025, "Training Language Models to Reason Efficiently"
(code: Zanette-Labs/efficient-reasoning). The component is R minus `correct`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rewards.lengths import Kind, lengths
from samplers.seam import Component
from samplers.types import Group

EPSILON = 1e-7


class Config(Component):
    alpha: float = Field(0.1, gt=0, lt=1)
    """Strength of the length term; the paper tries 0.05, 0.1, 0.2 and 0.4."""
    length: Kind = "response"
    """What is short: the whole 'response' (the paper) or the thought alone ('think')."""


def shape(
    groups: Sequence[Group], config: Config, state: Any
) -> tuple[list[NDArray[np.float64]], Any]:
    """One [G, C, A] array per group: 0 where wrong or unknown, else in (-alpha, 0) times the score.

    Every cut has statistics of its own: answers at one budget are compared with each other.
    """
    return [_group(group, config) for group in groups], state


def _group(group: Group, config: Config) -> NDArray[np.float64]:
    length_GCA = lengths(group, config.length)
    right_GCA = group.correct_GCA & group.known_GCA
    score_GCA = np.array([[[v.score for v in c] for c in r] for r in group.verdicts])
    out_GCA = np.zeros_like(length_GCA)
    for c in range(length_GCA.shape[1]):
        right, length = right_GCA[:, c], length_GCA[:, c]
        if right.any():
            penalty = config.alpha * standing(length, right)
            out_GCA[:, c] = np.where(right, -penalty * score_GCA[:, c], 0.0)
    return out_GCA


def standing(lengths: NDArray[np.float64], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """sigmoid of the standardised length, in (0, 1), by mean and deviation of the counted ones."""
    used = lengths[counted]
    z = (lengths - used.mean()) / (used.std() + EPSILON)
    return 0.5 * (1.0 + np.tanh(0.5 * z))
