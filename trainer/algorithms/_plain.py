"""What the group methods share: one reward per rollout, one advantage for all its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rewards.shaping import base
from samplers.seam import Component
from samplers.types import Group
from trainer import rows
from trainer.types import TrainSequence

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
requires = base.requires


class Config(Component):
    """Who is compared with whom. Truncated rollouts: DAPO's overlong filtering, off by default."""

    within: Literal["group", "subgroup"] = "group"
    """Compare a rollout with all of its prompt, or with those of its mode or budget alone."""
    mask_truncated: bool = False
    """Do not train on rollouts that hit the length limit; they still count in the group."""
    exclude_truncated_from_stats: bool = False
    """Leave them out of the group's mean and deviation; they are still compared with these."""


def components(group: Group) -> dict[str, Floats]:
    """[G] per reward component at the final answer, per-token ones summed.

    All are NaN where the verdict is unknown, or any of them.
    """
    out = {name: values_GCA[:, -1, 0].copy() for name, values_GCA in group.rewards.items()}
    for name, arrays in group.token_rewards.items():
        out[name] = np.array([array_T.sum() for array_T in arrays], dtype=np.float64)
    unknown_G = np.isnan(np.sum(list(out.values()), axis=0))
    if group.verdicts:
        unknown_G = unknown_G | ~group.known_GCA[:, -1, 0]
    for values_G in out.values():
        values_G[unknown_G] = np.nan
    return out


def rewards(groups: Sequence[Group]) -> list[Floats]:
    """[G] per group: the components' sum; NaN where the verdict is unknown."""
    return [np.sum(list(components(group).values()), axis=0) for group in groups]


def right(groups: Sequence[Group]) -> list[Bools]:
    """[G] per group: the final answer is known to be right."""
    return [(group.correct_GCA & group.known_GCA)[:, -1, 0] for group in groups]


def counted(groups: Sequence[Group], config: Config) -> list[Bools]:
    """[G] per group: which rollouts the statistics use, whether kept or not."""
    out = []
    for group in groups:
        whole_G = np.array([not rollout.truncated for rollout in group.rollouts])
        out.append(whole_G | (not config.exclude_truncated_from_stats))
    return out


def advantages(
    groups: Sequence[Group], config: Config, formula: Callable[..., list[Floats]], *more: Any
) -> list[Floats]:
    """[G] per group: formula(rewards, counted, *more), where `more` are lists like these."""
    return compared(groups, config, formula, rewards(groups), counted(groups, config), *more)


def compared(
    groups: Sequence[Group], config: Config, formula: Callable[..., list[Floats]], *columns: Any
) -> list[Floats]:
    """formula(*columns), each a list of one [G, ...] array per group, or per subgroup (`within`).

    The result has the shape of the first column.
    """
    if config.within == "group":
        return formula(*columns)
    parts = [
        (g, members_G) for g, group in enumerate(groups) for members_G in group.subgroups.values()
    ]
    found = formula(*([column[g][members_G] for g, members_G in parts] for column in columns))
    out = [np.zeros_like(values) for values in columns[0]]
    for (g, members_G), advantages_S in zip(parts, found, strict=True):
        out[g][members_G] = advantages_S
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


def added(row: TrainSequence, values_T: Floats) -> TrainSequence:
    """The row with `values_T` added to the advantages of its trained tokens."""
    advantages_T = np.where(row.mask_T, row.advantages_T + values_T, 0.0).astype(np.float32)
    return replace(row, advantages_T=advantages_T)
