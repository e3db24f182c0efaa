"""pass_rate_linear: a linear length penalty that is scaled by the group's pass rate.

R = r - mean(r) * weight * n / max(longest of the group, 1), so hard prompts are left alone and an
all-wrong group is not penalised at all. prime-rl's `GRPOAlgorithm`, which goes on with the plain
advantage R - mean(R) (here dr_grpo). Its penalties for prompt tokens (0.1) and turns (0.1) are the
same for all rollouts of a prompt with one turn, and cancel there: not offered.

A weight below 1 leaves right above wrong at any length. Wrong answers are penalised too, which
taught models to fail fast (prime-rl #3376): `gate: correct` leaves them alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from rewards.shaping import base
from rewards.shaping.base import Floats
from samplers.types import Group

requires = base.requires


class Config(base.Compared, base.Gated):
    weight: float = Field(0.25, gt=0, lt=1)
    """Penalty of the longest answer of a group that is all right."""


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group, in [-weight, 0] where scores are at most 1."""

    def formula(lengths_N: Floats, scores_N: Floats) -> Floats:
        return -penalties(scores_N, lengths_N, config.weight)

    parts = [base.compared(g, config, formula, base.scores(g)) for g in groups]
    return [base.added(g, p, config.gate) for g, p in zip(groups, parts, strict=True)], state


def penalties(rewards: Floats, costs: Floats, weight: float) -> Floats:
    """[N]: mean reward times the weighted shares of the largest cost (a length, or another)."""
    return rewards.mean() * weight * costs / max(costs.max(), 1.0)
