"""RAFT (Dong et al. 2023, 2304.06767): learn from accepted rollouts only; advantage max(r, 0).

With `loss: {name: ce}` a rollout is imitated as much as it was worth; `on_policy_sft` imitates
what is right and short enough, all of it alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from samplers.seam import Component
from samplers.types import Group
from trainer import credit
from trainer.algorithms import _plain
from trainer.types import TrainSequence


class Config(Component):
    only_accepted: bool = True
    """Rollouts of reward <= 0 leave the denominators of the loss too; False as in GVM's code."""
    mask_truncated: bool = False
    """Do not train on rollouts that hit the length limit."""


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """max(reward, 0) for every token of a rollout."""
    plain = _plain.Config(mask_truncated=config.mask_truncated)
    out = _plain.sequences(groups, credit.raft(_plain.rewards(groups)), plain)
    return [row for row in out if row.advantages_T.any() or not config.only_accepted]
