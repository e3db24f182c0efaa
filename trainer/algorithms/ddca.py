"""DDCA (2602.02099): an advantage for being right, and one for brevity among the right ones.

A = A_acc - beta x n/N x (s_i - mean s of the other right ones), where s is the sigmoid of the
length's z-score among the n right of N rollouts (deviation ddof 0). Wrong rollouts keep A_acc, so
failing fast earns nothing, and hard prompts (n/N small) feel little pressure. Formulas: the
paper's code, alphadl/DDCA `dca/advantage.py`.

Left alone the term can make a right answer's advantage negative. `sign` says what then:
`clip` and `largest` never let a right rollout be pushed down for its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from rewards.lengths import Kind, lengths
from samplers.types import Group
from trainer import credit
from trainer.algorithms import _plain
from trainer.types import TrainSequence

Floats = _plain.Floats
Bools = _plain.Bools
requires = _plain.requires


class Config(_plain.Config):
    base: credit.Form = "grpo"
    """A_acc: standardised (grpo), centred (dr_grpo) or against the mean of the others (rloo). With
    the first two the brevity of a rollout is compared with the mean of all right ones, itself
    included, as in the paper's code; with rloo with that of the others."""
    beta: float = Field(0.2, ge=0)
    """Weight of the length term (0.2 in the released code)."""
    by_pass_rate: bool = True
    """Scale it by the share of right rollouts; False is the paper's static variant, DCA."""
    sign: Literal["clip", "largest", "free"] = "clip"
    """clip: where the term would turn an advantage over it becomes 0; where all are right, and
    A_acc is 0, short ones are pushed up and long ones left alone. largest: the largest weight up
    to beta that leaves every right rollout of the group an advantage >= 0 (SmartThinker,
    2603.08000); where all are right that is 0. free: the formula alone."""
    length: Kind = "response"
    """What is short: the whole 'response' or the thought alone ('think')."""


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """A_acc less the weighed length term, for every token of a rollout."""

    def formula(*columns: list[np.ndarray]) -> list[Floats]:
        rewards, counted, right, length = columns
        quality = credit.FORMS[config.base](rewards, counted)
        out = []
        parts = zip(quality, rewards, counted, right, length, strict=True)
        for quality_G, rewards_G, counted_G, right_G, lengths_G in parts:
            used_G = counted_G & ~np.isnan(rewards_G)
            good_G = right_G & used_G
            excess_G = excess(good_G, lengths_G, used_G.sum(), config)
            out.append(combined(quality_G, excess_G, good_G, config))
        return out

    length = [lengths(group, config.length)[:, -1, 0] for group in groups]
    advantages = _plain.advantages(groups, config, formula, _plain.right(groups), length)
    return _plain.sequences(groups, advantages, config)


def excess(right_G: Bools, lengths_G: Floats, known: int, config: Config) -> Floats:
    """[G], in (-1, 1): how much longer than the other right ones; 0 for the rest, or if alone."""
    right = int(right_G.sum())
    if right < 2:
        return np.zeros(len(lengths_G))
    used = lengths_G[right_G]
    z_G = (lengths_G - used.mean()) / (used.std() + credit.NOISE)
    score_G = 0.5 * (1.0 + np.tanh(0.5 * z_G))
    total = score_G[right_G].sum()
    mean_G = (total - score_G) / (right - 1) if config.base == "rloo" else total / right
    scale = right / known if config.by_pass_rate else 1.0
    return np.where(right_G, credit.quiet(score_G - mean_G) * scale, 0.0)


def combined(quality_G: Floats, excess_G: Floats, right_G: Bools, config: Config) -> Floats:
    """quality - weight x excess, kept on the side of 0 that `config.sign` asks for."""
    weight = config.beta
    if config.sign == "largest":
        long_G = right_G & (excess_G > 0) & (quality_G >= 0)
        weight = min([weight, *(quality_G[long_G] / excess_G[long_G])])
    changed_G = quality_G - weight * excess_G
    if config.sign == "free":
        return changed_G
    return np.where(right_G, credit.keep_sign(quality_G, changed_G), quality_G)
