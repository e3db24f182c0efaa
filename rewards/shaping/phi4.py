"""phi4: right answers may be long before they earn less, wrong ones should be.

Right: 1 up to `positive` tokens, then half a cosine down to 0.5 at the cap. Wrong: -1 at length 0,
half a cosine up to -0.5 at `negative` tokens and beyond. No end of sequence: -0.5; a thought that
the model ended without closing it: -1. All times 8/13; the other 1/13 is the shaper `repetition`.
Phi-4-reasoning (2504.21318), from summaries of it.

Right beats wrong at any length among whole responses; the two violations come before the verdict.
`gate: correct` pays right answers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from rewards.shaping import base
from rewards.shaping.base import Bools, Floats
from samplers.types import Group

LONGEST, POSITIVE, NEGATIVE = 31744, 25600, 3702  # the paper's, in tokens
requires = base.requires


class Config(base.Measured, base.Capped, base.Gated):
    positive: int | None = Field(None, ge=0)
    """Length from which right answers earn less; None: 25600 / 31744 of the cap."""
    negative: int | None = Field(None, ge=1)
    """Length from which wrong answers cost least; None: 3702 / 31744 of the cap."""
    weight: float = Field(8 / 13, gt=0)
    """Weight of this reward beside that of repetition."""
    no_eos: float = -0.5
    """Reward of a response that ended by its length limit."""
    bad_think: float = -1.0
    """Reward of a response that ended before there was an answer."""


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group: the reward minus `correct`."""
    return [_group(group, config) for group in groups], state


def _group(group: Group, config: Config) -> Floats:
    caps_G11 = base.caps(group, config)
    positive = POSITIVE / LONGEST * caps_G11 if config.positive is None else config.positive
    negative = NEGATIVE / LONGEST * caps_G11 if config.negative is None else config.negative
    if np.any(positive >= caps_G11):
        raise ValueError(
            f"phi4.positive={config.positive}: must be below the cap of "
            f"{int(caps_G11.min())} tokens"
        )
    lengths_GCA = base.measured(group, config)
    reward_GCA = rewards(lengths_GCA, base.right(group), caps_G11, positive, negative)
    answers = [rollout.answers for rollout in group.rollouts]
    unread = [[[a.text is None for a in cut] for cut in r] for r in answers]
    endless = [[[a.tokens.finish == "length" for a in cut] for cut in r] for r in answers]
    reward_GCA = np.where(unread, config.bad_think, reward_GCA)
    reward_GCA = np.where(endless, config.no_eos, reward_GCA)
    return base.replaced(group, config.weight * reward_GCA, config.gate)


def rewards(
    lengths: Floats,
    right: Bools,
    longest: Floats | float = LONGEST,
    positive: Floats | float = POSITIVE,
    negative: Floats | float = NEGATIVE,
) -> Floats:
    """In [-1, -0.5] where wrong and [0.5, 1] where right, for whole responses."""
    over = np.maximum(lengths - positive, 0.0) / (longest - positive)
    good = base.half_cosine(over, 1.0, 0.5)
    return np.where(right, good, base.half_cosine(lengths / negative, -1.0, -0.5))
