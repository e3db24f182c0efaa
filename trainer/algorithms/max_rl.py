"""Max-RL, as in prime-rl: centred reward over the group mean; rare successes weigh more."""

from __future__ import annotations

from collections.abc import Sequence

from samplers.types import Group
from trainer import credit
from trainer.algorithms import _plain
from trainer.types import TrainSequence

requires = _plain.requires


class Config(_plain.Config):
    pass


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """(reward - group mean) / group mean for every token of a rollout."""
    advantages = _plain.advantages(groups, config, credit.max_rl)
    return _plain.sequences(groups, advantages, config)
