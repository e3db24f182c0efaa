"""What the group methods share: one reward per rollout, one advantage for all its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from samplers.seam import Component
from samplers.types import Group
from trainer import rows
from trainer.types import TrainSequence

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Config(Component):
    """How truncated rollouts are treated (DAPO's overlong filtering). Both default to no."""

    mask_truncated: bool = False
    """Do not train on rollouts that hit the length limit; they still count in the group."""
    exclude_truncated_from_stats: bool = False
    """Leave them out of the group's mean and deviation; they are still compared with these."""


def rewards(groups: Sequence[Group]) -> list[Floats]:
    """[G] per group: components summed at the final answer, per-token ones over their tokens.

    NaN where the verdict is unknown.
    """
    out = []
    for group in groups:
        total_G = group.total_GCA[:, -1, 0].copy()
        for arrays in group.token_rewards.values():
            total_G += [array_T.sum() for array_T in arrays]
        if group.verdicts:
            total_G[~group.known_GCA[:, -1, 0]] = np.nan
        out.append(total_G)
    return out


def counted(groups: Sequence[Group], config: Config) -> list[Bools]:
    """[G] per group: which rollouts the statistics use, whether kept or not."""
    out = []
    for group in groups:
        whole_G = np.array([not rollout.truncated for rollout in group.rollouts])
        out.append(whole_G | (not config.exclude_truncated_from_stats))
    return out


def sequences(
    groups: Sequence[Group], advantages: Iterable[Floats], config: Config
) -> list[TrainSequence]:
    """Rows of the kept rollouts; each trained token carries its rollout's advantage.

    A masked truncated rollout stays as a row that trains no token: it counts where a loss is
    averaged over all rows (drgrpo), and nowhere else.
    """
    out = []
    for group, advantages_G in zip(groups, advantages, strict=True):
        for row in rows.rows(group):
            mask_T = row.mask_T
            if config.mask_truncated and group.rollouts[row.rollout].truncated:
                mask_T = np.zeros_like(mask_T)
            advantages_T = np.where(mask_T, advantages_G[row.rollout], 0.0).astype(np.float32)
            out.append(replace(row, mask_T=mask_T, advantages_T=advantages_T))
    return out
