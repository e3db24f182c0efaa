"""RLOO (Ahmadian et al. 2024, 2402.14740): reward minus the mean of the other rollouts."""

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
    """A group of one: advantage 0, or its raw reward (verl)."""


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """Reward - mean of the others for every token of a rollout."""
    formula = partial(credit.rloo, singleton=config.singleton)
    return _plain.sequences(groups, _plain.advantages(groups, config, formula), config)
