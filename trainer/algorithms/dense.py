"""GRPO with dense rewards: a token also gets what its own and all later tokens earned.

A_t = GRPO's advantage of the rollout by its rewards as a whole, plus coef x sum over k >= t of the
token rewards r_k (undiscounted, over thought and final answer, forced tokens included). The token
rewards, which plain methods add to the rollout's reward, are not in the first term. Used for dense
repetition penalties (Demystifying Long CoT, 2502.03373).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from samplers.facts import TOKEN_REWARDS
from samplers.types import Group, Rollout
from trainer.algorithms import _plain, grpo
from trainer.types import TrainSequence

Floats = _plain.Floats


class Config(grpo.Config):
    coef: float = 1.0
    """Weight of the token rewards beside an advantage of about 1."""
    baseline: Literal["none", "others"] = "none"
    """What is taken from the reward to go. others: the mean of what the other rollouts have still
    to get at the same distance from the prompt (nothing, where they have ended); it does not
    depend on the token, so it adds no bias. none: a penalty stays a penalty in every group."""


def requires(config: Config) -> Mapping[str, str]:
    why = "it is GRPO without; add shaping: repetition_dense"
    return {TOKEN_REWARDS: why, **_plain.requires(config)}


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """The rollout's advantage plus, token by token, the rewards to go."""
    whole = [replace(group, token_rewards={}) for group in groups]
    rows = _plain.sequences(whole, _plain.advantages(whole, config, grpo.formula(config)), config)
    dense = [rewards_to_go(group) for group in groups]
    if config.baseline == "others":
        known = [~np.isnan(rewards_G) for rewards_G in _plain.rewards(groups)]
        counted = _plain.counted(groups, config)
        used = [k & c for k, c in zip(known, counted, strict=True)]
        dense = _plain.compared(groups, config, against_others, dense, used)
    of = {group.key: (group, dense_GT) for group, dense_GT in zip(groups, dense, strict=True)}
    return [_plain.added(row, config.coef * _on(row, *of[row.group])) for row in rows]


def _on(row: TrainSequence, group: Group, dense_GT: Floats) -> Floats:
    """[T] of the row: 0 on the prompt."""
    rollout = group.rollouts[row.rollout]
    prompt = np.zeros(len(rollout.prompt_ids_T))
    return np.concatenate([prompt, dense_GT[row.rollout, : _length(rollout)]])


def rewards_to_go(group: Group) -> Floats:
    """[G, T], T the longest response: what each token and those after it earn; 0 past the end."""
    out_GT = np.zeros((len(group), max(map(_length, group.rollouts), default=0)))
    for g, rollout in enumerate(group.rollouts):
        for arrays in group.token_rewards.values():
            out_GT[g, : _length(rollout)] += np.cumsum(arrays[g][::-1])[::-1]
    return out_GT


def against_others(to_go: Sequence[Floats], used: Sequence[_plain.Bools]) -> list[Floats]:
    """Each group's [G, T] less the mean over the other used rollouts of the same token."""
    out = []
    for to_go_GT, used_G in zip(to_go, used, strict=True):
        others_G1 = (used_G.sum() - used_G)[:, None]
        safe_GT = np.where(used_G[:, None], to_go_GT, 0.0)  # those of unknown verdicts are NaN
        rest_GT = safe_GT.sum(0) - safe_GT
        out.append(to_go_GT - rest_GT / np.maximum(others_G1, 1))
    return out


def _length(rollout: Rollout) -> int:
    """Tokens of the response as its row has them."""
    return rollout.final.after + len(rollout.final.tokens)
