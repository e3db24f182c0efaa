"""HBPO (2507.15844): rollouts of several announced budgets, compared within and between them.

A = mean over the rollout's subgroup of (reward - f2(b)), plus its GRPO advantage in the whole
group; f2(b) = beta cos(pi b / (2 L_max)) is what a right answer within the budget b earns by
`shaping: hbpo`, which wants the same beta and cap. The paper's form: its released code adds the
first term twice. That term is never positive, up to rounding: a group that is all wrong is pushed
away from everything it did, unless `zero_if_all_wrong`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from pydantic import Field

from rewards.shaping import base, hbpo
from samplers.facts import SUBGROUPS, TARGET
from samplers.types import Group
from trainer import credit
from trainer.algorithms import _plain
from trainer.types import TrainSequence

Floats = _plain.Floats


class Config(_plain.Config, base.Capped):
    beta: float = Field(4.0, gt=0)
    """Scale of the reward: that of `shaping: hbpo`, as is max_tokens (the paper's L_max)."""
    eps: float = Field(1e-6, ge=0)
    """Added to the deviation of the group."""
    zero_if_all_wrong: bool = False
    """Groups without a right answer teach nothing, as with plain GRPO."""


def requires(config: Config) -> Mapping[str, str]:
    return {
        **_plain.requires(config),
        SUBGROUPS: "it compares budgets; set budget: hierarchical",
        TARGET: "its baseline is what the announced budget is worth; set budget: hierarchical",
        hbpo.scale(config.beta, config.max_tokens): "its baseline is the most that this reward "
        "gives; add it to shaping, with the beta and max_tokens of the algorithm",
    }


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """Budget's mean reward - f2(b) + (reward - group mean) / (deviation + eps), for every token."""
    rewards, counted = _plain.rewards(groups), _plain.counted(groups, config)
    between = _plain.advantages(groups, config, partial(credit.grpo, eps=config.eps))
    total = []
    for group, rewards_G, counted_G, between_G in zip(
        groups, rewards, counted, between, strict=True
    ):
        longest_G = base.caps(group, config).ravel()
        best_G = hbpo.worth(base.targets(group).ravel(), longest_G, config.beta)
        advantages_G = between_G + intra(
            rewards_G, best_G, counted_G, list(group.subgroups.values())
        )
        (right_G,) = _plain.right([group])
        total.append(advantages_G * bool(right_G.any() or not config.zero_if_all_wrong))
    return _plain.sequences(groups, total, config)


def intra(
    rewards_G: Floats, best_G: Floats, counted_G: _plain.Bools, subgroups: Sequence[_plain.Bools]
) -> Floats:
    """[G]: mean of (reward - best) over the counted rollouts of one's subgroup.

    Unknown rewards, and rollouts without a budget (a best of NaN), leave the mean and get 0.
    """
    short_G = rewards_G - best_G
    known_G = ~np.isnan(short_G)
    out_G = np.zeros(len(rewards_G))
    for members_G in subgroups:
        used = short_G[members_G & counted_G & known_G]
        out_G[members_G & known_G] = used.mean() if len(used) else 0.0
    return out_G
