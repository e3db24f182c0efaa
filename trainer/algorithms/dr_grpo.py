"""Dr.GRPO (Liu et al. 2025, 2503.20783): reward minus group mean, no deviation.

Its other half is the loss: `loss: {aggregation: drgrpo, norm_length: ...}`, a constant length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from samplers.types import Group
from trainer import credit
from trainer.algorithms import _plain
from trainer.types import TrainSequence

requires = _plain.requires


class Config(_plain.Config):
    singleton: credit.Singleton = "zero"
    """A group of one: advantage 0 (TRL), or its raw reward (verl)."""


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """Reward - group mean for every token of a rollout."""
    formula = partial(credit.grpo, std="none", singleton=config.singleton)
    return _plain.sequences(groups, _plain.advantages(groups, config, formula), config)
