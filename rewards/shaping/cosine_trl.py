"""cosine_trl: short right answers earn most, and short wrong ones least.

Half a cosine from length 0 to the cap: right 1 down to 0.5, wrong -1 up to -0.5, so that a model
that cannot solve a problem yet thinks longer. TRL's `get_cosine_scaled_reward`, after Yeo et al.
2025, "Demystifying Long Chain-of-Thought Reasoning in LLMs"; lengths beyond the cap count as it.

Right beats wrong at any length as long as min_correct > max_wrong. `gate: correct` pays right
answers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.shaping import base
from rewards.shaping.base import Bools, Floats
from samplers.types import Group

requires = base.requires


class Config(base.Measured, base.Capped, base.Gated):
    min_wrong: float = -1.0
    """Reward of a wrong answer of no length."""
    max_wrong: float = -0.5
    """Reward of a wrong answer as long as the cap."""
    min_correct: float = 0.5
    """Reward of a right answer as long as the cap."""
    max_correct: float = 1.0
    """Reward of a right answer of no length."""


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group: the reward minus `correct`."""
    wrong, correct = (config.min_wrong, config.max_wrong), (config.min_correct, config.max_correct)
    out = []
    for group in groups:
        progress_GCA = base.measured(group, config) / base.caps(group, config)
        reward_GCA = rewards(progress_GCA, base.right(group), wrong, correct)
        out.append(base.replaced(group, reward_GCA, config.gate))
    return out, state


def rewards(
    progress: Floats,
    right: Bools,
    wrong: tuple[float, float],
    correct: tuple[float, float],
) -> Floats:
    """Right: from the high end of `correct` to its low one; wrong: from the low end up.

    `progress` is length over cap; `wrong` and `correct` are (min, max).
    """
    start = np.where(right, correct[1], wrong[0])
    end = np.where(right, correct[0], wrong[1])
    return base.half_cosine(progress, start, end)
