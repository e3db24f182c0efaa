"""QGLAS: a bonus for brevity after the baseline, only where the advantage is already positive.

A = A_q + weight x h, h = clip((L_ref - L) / L_ref, 0, c) / c for right rollouts with A_q > 0,
L_ref their mean length; everyone else keeps A_q. One-sided: nobody is pushed down for being long,
no sign can flip, and where all are right (A_q = 0) length plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from rewards.lengths import Kind, lengths
from samplers.types import Group
from trainer import credit
from trainer.algorithms import _plain
from trainer.types import TrainSequence

Floats = _plain.Floats
requires = _plain.requires


class Config(_plain.Config):
    base: credit.Form = "grpo"
    """A_q: standardised (grpo), centred (dr_grpo) or against the mean of the others (rloo)."""
    weight: float = Field(0.2, ge=0)
    """Largest bonus, in units of the advantage (default ours)."""
    c: float = Field(0.5, gt=0, le=1)
    """Share of the reference length that must be saved for the whole bonus (default ours)."""
    length: Kind = "response"
    """What is short: the whole 'response' or the thought alone ('think')."""


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """A_q plus the weighed bonus, for every token of a rollout."""

    def formula(*columns: list[np.ndarray]) -> list[Floats]:
        rewards, counted, right, length = columns
        quality = credit.FORMS[config.base](rewards, counted)
        parts = zip(quality, right, counted, length, strict=True)
        return [q + config.weight * bonus(q * r * c, ln, config.c) for q, r, c, ln in parts]

    length = [lengths(group, config.length)[:, -1, 0] for group in groups]
    advantages = _plain.advantages(groups, config, formula, _plain.right(groups), length)
    return _plain.sequences(groups, advantages, config)


def bonus(quality_G: Floats, lengths_G: Floats, c: float) -> Floats:
    """[G], in [0, 1]: clip((L_ref - L) / L_ref, 0, c) / c where the quality is positive, else 0."""
    good_G = quality_G > 0
    reference = lengths_G[good_G].mean() if good_G.any() else 0.0
    saved_G = (reference - lengths_G) / max(reference, 1.0)
    return np.where(good_G, np.clip(saved_G, 0.0, c) / c, 0.0)
