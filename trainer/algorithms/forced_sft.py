"""GRPO, and the right ones among forced answers are imitated: the control for nested budgets.

A model that was never cut answers badly behind a forced end marker, so any method that trains
there gains at small budgets, whatever it credits. This one learns to answer there and nothing else
from it: a rollout's thought and its own answer get GRPO's advantage of the final reward, as `grpo`
would give them on the same rollouts. A forced answer, one to a thought that was cut, that is right
gets the advantage `weight`; wrong and unknown ones are not trained on. With one update a batch the
gradient of a constant positive advantage is that of cross-entropy.

What was sampled at cuts beyond the end of a thought, beside the final answer, is not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from samplers.facts import CUT_CREDIT, CUTS, PROBES, TOKEN_REWARDS, TREES
from samplers.types import Group
from trainer import rows
from trainer.algorithms import _plain, brpo, grpo
from trainer.types import TrainSequence

Floats = _plain.Floats


class Config(grpo.Config):
    weight: float = Field(0.25, ge=0)
    """Advantage of a right forced answer; GRPO's are about 1. 0: none is trained on."""
    rows: Literal["tree", "multi"] = "tree"
    """One training row a rollout, its answers branches of the thought under an attention mask; or a
    plain row for every answer, for attention kernels without masks. The gradients are the same."""


def provides(config: Config) -> set[str]:
    return {CUT_CREDIT, TREES} if config.rows == "tree" else {CUT_CREDIT}


def requires(config: Config) -> dict[str, str]:
    return {CUTS: "it imitates what was answered at them", **_plain.requires(config)}


def refuses(config: Config) -> dict[str, str]:
    out = brpo.refuses(brpo.Config(rows=config.rows))
    del out[TOKEN_REWARDS]  # of the final answer, and so is the reward here
    return {PROBES: "nothing is sampled there that could be imitated", **out}


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """GRPO's rows, with the right forced answers as branches."""
    advantages = _plain.advantages(groups, config, grpo.formula(config))
    trees = [
        _credited(group, int(g), advantages_G[g], config)
        for group, advantages_G in zip(groups, advantages, strict=True)
        for g in np.flatnonzero(rows.trainable(group))
    ]
    return trees if config.rows == "tree" else [row for t in trees for row in rows.branches(t)]


def _credited(group: Group, g: int, advantage: float, config: Config) -> TrainSequence:
    """Tree row of rollout g; what has no advantage (NaN) is not trained on."""
    rollout, row = group.rollouts[g], rows.tree_row(group, g)
    own = np.nan if config.mask_truncated and rollout.truncated else advantage
    answers_CA = imitated(group, g, config.weight)
    answers_CA[-1, 0] = own
    runs = [len(answer.tokens) for cut in rollout.answers for answer in cut]
    advantages_T = np.concatenate(
        [
            np.zeros(len(rollout.prompt_ids_T)),
            np.full(rollout.final.after, own),
            np.repeat(answers_CA.reshape(-1), runs),
        ]
    )
    mask_T = row.mask_T & ~np.isnan(advantages_T)
    advantages_T = np.where(mask_T, advantages_T, 0.0).astype(np.float32)
    return replace(row, mask_T=mask_T, advantages_T=advantages_T)


def imitated(group: Group, g: int, weight: float) -> Floats:
    """[C, A]: `weight` where a forced answer of rollout g is right, NaN elsewhere."""
    rollout = group.rollouts[g]
    right_CA = (group.correct_GCA & group.known_GCA)[g]
    after_C = np.array([cut[0].after for cut in rollout.answers])
    forced_C = ~(rollout.ended & (after_C == len(rollout.thought)))
    return np.where(right_CA & forced_C[:, None], weight or np.nan, np.nan)
