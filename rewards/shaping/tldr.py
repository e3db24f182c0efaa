"""tldr: the length reward of Kimi with a weight of each level; approximate.

"Making Small Language Models Efficient Reasoners: Intervention, Supervision, Reinforcement"
(Zhang et al. 2025) trains short, medium and long levels with a length-regularised GRPO whose
formula is not confirmed. This is ours in its place: R = [right] + level * lambda (see kimi),
lambda within the rollouts of the level. As kimi it punishes long wrong answers more than short
ones; `gate: correct` leaves wrong ones alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from rewards.shaping import base, kimi
from rewards.shaping.base import Floats
from samplers.facts import MODES
from samplers.types import Group


class Config(base.Compared, base.Gated):
    within: Literal["group", "subgroup"] = "subgroup"
    """Lengths are compared within the rollouts of one level."""
    levels: Mapping[str, float] = Field(
        {"short": 1.0, "medium": 0.5, "long": 0.0, "low": 1.0, "high": 0.0, "none": 0.0}
    )
    """Weight of the length reward at each level, which is a mode of the budget policy (ours)."""


def requires(config: Config) -> Mapping[str, str]:
    return {MODES: "its levels are named modes", **base.requires(config)}


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group. Raises ValueError for a mode without a level."""
    out = []
    for group in groups:
        level_G11 = base.by_mode(group, config.levels, "tldr.levels")
        part_GCA = level_G11 * base.compared(group, config, kimi.rewards)
        out.append(base.added(group, part_GCA, config.gate))
    return out, state
