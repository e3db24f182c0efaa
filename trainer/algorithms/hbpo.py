"""HBPO (2507.15844): rollouts of several announced budgets, compared within and between them.

A = mean over the rollout's subgroup of (reward - f2(b)), plus its GRPO advantage in the whole
group; f2(b) = beta cos(pi b / (2 L_max)) is what a right answer within the budget b earns by the
reward of that name (rewards/shaping/hbpo.py: give both the same beta and L_max). The paper's form:
its released code adds the first term twice. That term is never positive, up to rounding: a group
that is all wrong is pushed away from everything it did, unless `zero_if_all_wrong`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from samplers.facts import SUBGROUPS, TARGET
from samplers.types import Group
from trainer import credit
from trainer.algorithms import _plain
from trainer.types import TrainSequence

Floats = _plain.Floats


class Config(_plain.Config):
    beta: float = Field(4.0, gt=0)
    """Scale of the reward; as in `shaping: hbpo`."""
    L_max: int = Field(4096, ge=1)
    """Tokens at which the reward has fallen to 0; as in `shaping: hbpo`."""
    eps: float = Field(1e-6, ge=0)
    """Added to the deviation of the group."""
    zero_if_all_wrong: bool = False
    """Groups without a right answer teach nothing, as with plain GRPO."""


def requires(config: Config) -> Mapping[str, str]:
    return {
        SUBGROUPS: "it compares budgets; set budget: hierarchical",
        TARGET: "its baseline is what the announced budget is worth; set budget: hierarchical",
        "shaping hbpo": "its baseline is the most that this reward gives; add it to shaping",
    }


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """Budget's mean reward - f2(b) + (reward - group mean) / (deviation + eps), for every token."""
    budgets = [np.array([_target(group, g) for g in range(len(group))]) for group in groups]
    keys = [np.array([rollout.plan.subgroup for rollout in group.rollouts]) for group in groups]
    counted = _plain.counted(groups, config)
    inner = intra(_plain.rewards(groups), counted, budgets, keys, config)
    outer = _plain.advantages(groups, config, lambda r, c: credit.grpo(r, c, eps=config.eps))
    total = [i + o for i, o in zip(inner, outer, strict=True)]
    if config.zero_if_all_wrong:
        right = _plain.right(groups)
        total = [a_G * right_G.any() for a_G, right_G in zip(total, right, strict=True)]
    return _plain.sequences(groups, total, config)


def intra(
    rewards: Sequence[Floats],
    counted: Sequence[_plain.Bools],
    budgets: Sequence[Floats],
    keys: Sequence[np.ndarray],
    config: Config,
) -> list[Floats]:
    """[G] per group: mean of (reward - f2(budget)) over the counted ones of a rollout's key.

    NaN rewards leave the mean and get 0, as does a subgroup of which nothing is counted.
    """
    out = []
    for rewards_G, counted_G, budgets_G, keys_G in zip(
        rewards, counted, budgets, keys, strict=True
    ):
        short_G = rewards_G - config.beta * np.cos(np.pi * budgets_G / (2 * config.L_max))
        used_G, intra_G = counted_G & ~np.isnan(rewards_G), np.zeros(len(rewards_G))
        for key in np.unique(keys_G[used_G]):
            intra_G[keys_G == key] = short_G[used_G & (keys_G == key)].mean()
        out.append(np.where(np.isnan(rewards_G), 0.0, intra_G))
    return out


def _target(group: Group, g: int) -> float:
    target = group.rollouts[g].plan.target
    if target is None:
        raise ValueError(
            f"algorithm hbpo: rollout {g} of prompt {group.prompt.id} has no target length; use a "
            "budget that announces one to every rollout (hierarchical)"
        )
    return float(target)
