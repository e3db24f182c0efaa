"""cosine_demystify: the cosine reward of the paper, which also punishes what reaches the cap.

Half a cosine from length 0 to the cap: right 2 down to 1, wrong -10 up to 0, and -10 for any
answer that comes within 16 tokens of the cap. Yeo et al. 2025, "Demystifying Long Chain-of-Thought
Reasoning in LLMs" (code: eddycmu/demystify-long-cot).

Below that limit right beats wrong at any length; at it a right answer is punished as no wrong one
before. `gate: correct` mends it and pays right answers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from rewards.shaping import base, cosine_trl
from rewards.shaping.base import Floats
from samplers.types import Group

requires = base.requires


class Config(cosine_trl.Config):
    min_wrong: float = -10.0
    """Reward of a wrong answer of no length."""
    max_wrong: float = 0.0
    """Reward of a wrong answer as long as the cap."""
    min_correct: float = 1.0
    """Reward of a right answer as long as the cap."""
    max_correct: float = 2.0
    """Reward of a right answer of no length."""
    exceed: float = -10.0
    """Reward of any answer that comes too close to the cap."""
    margin: int = Field(16, ge=0)
    """Tokens that are too close to the cap."""


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group. Raises ValueError if the margin is as long as the cap."""
    wrong, correct = (config.min_wrong, config.max_wrong), (config.min_correct, config.max_correct)
    out = []
    for group in groups:
        caps_G11 = base.caps(group, config)
        if caps_G11.min() <= config.margin:
            raise ValueError(
                f"cosine_demystify.margin={config.margin}: must be below the cap of "
                f"{int(caps_G11.min())} tokens, or every answer is too long"
            )
        lengths_GCA = base.measured(group, config)
        reward_GCA = cosine_trl.rewards(lengths_GCA / caps_G11, base.right(group), wrong, correct)
        exceeded_GCA = lengths_GCA + config.margin >= caps_G11
        reward_GCA = np.where(exceeded_GCA, config.exceed, reward_GCA)
        out.append(base.replaced(group, reward_GCA, config.gate))
    return out, state
