"""GRPO (Shao et al. 2024, 2402.03300): reward standardised within the rollouts of a prompt.

DLER (2510.15110) is this with `std: centred`, under a budget that is a hard cap.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pydantic import Field

from samplers.types import Group
from trainer import credit
from trainer.algorithms import _plain
from trainer.types import TrainSequence

requires = _plain.requires


class Config(_plain.Config):
    std: credit.Std = "group"
    """Divide by the deviation of the group, of all rewards of the batch (TRL), of all of them
    less their group means (`centred`: DLER, REINFORCE++-baseline), or not at all."""
    eps: float = Field(1e-6, ge=0)
    """Added to the deviation (verl 1e-6, TRL 1e-4)."""
    singleton: credit.Singleton = "zero"
    """A group of one: advantage 0 (TRL), or its raw reward (verl)."""


def formula(config: Config) -> partial[list[_plain.Floats]]:
    """(rewards, counted) -> advantages, as `config` has it."""
    return partial(credit.grpo, std=config.std, eps=config.eps, singleton=config.singleton)


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """(reward - group mean) / (deviation + eps) for every token of a rollout."""
    advantages = _plain.advantages(groups, config, formula(config))
    return _plain.sequences(groups, advantages, config)
