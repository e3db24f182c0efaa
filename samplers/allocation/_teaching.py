"""Which groups can teach, and which of a group's rollouts do: pure functions of their verdicts.

Shape suffixes: G rollouts of a group, C cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samplers.allocation.base import rights, units
from samplers.types import Group

ABOVE = 0.7
"""Reinforce-Ada's code calls a rollout positive where its reward is above this."""


def mixed(metric_G: ArrayLike) -> bool:
    """Not all equal: with group baselines only such a group has a gradient."""
    metric_G = np.asarray(metric_G)
    return bool(metric_G.size and (metric_G != metric_G[0]).any())


def dynamic(groups: Sequence[ArrayLike]) -> list[int]:
    """Indices of the groups that DAPO's dynamic sampling keeps: mixed, or of one rollout.

    The metric is accuracy, never a shaped reward: shaping makes every group look informative.
    """
    return [i for i, metric_G in enumerate(groups) if mixed(metric_G) or np.size(metric_G) == 1]


def balanced(right_G: ArrayLike, n: int) -> NDArray[np.intp]:
    """Reinforce-Ada's down-sampling (Xiong et al. 2025): half right, half wrong, or the nearest.

    Args:
        right_G: 1 right, 0 wrong, NaN neither (an unknown verdict: never chosen).
        n: how many at most; n // 2 of them right where there are that many.

    Returns: indices of right ones, then of wrong ones, each the first in order of generation.
        Where one class is short the other fills up.
    """
    right_G = np.asarray(right_G, dtype=np.float64)
    right, wrong = np.flatnonzero(right_G == 1), np.flatnonzero(right_G == 0)
    first = min(n // 2, len(right))
    second = min(n - first, len(wrong))
    return np.concatenate([right[: n - second], wrong[:second]])


def classes(rights_GC: NDArray[np.float64], above: float = ABOVE) -> NDArray[np.float64]:
    """[G]: 1 right, 0 wrong, NaN unknown, at the cut that splits the rollouts most evenly.

    That is the cut at which a group teaches most; of equal ones the largest budget.

    Args:
        rights_GC: share of right answers of each rollout at each cut (`allocation.base.rights`).
        above: a rollout is right at a cut where its share is above this.
    """
    right_GC = np.where(np.isnan(rights_GC), np.nan, rights_GC > above)
    fewer_C = np.minimum((right_GC == 1).sum(axis=0), (right_GC == 0).sum(axis=0))
    at = len(fewer_C) - 1 - int(np.argmax(fewer_C[::-1]))
    return right_GC[:, at]


class Unit(NamedTuple):
    """Rollouts of a group that are compared with each other, U of them."""

    index_U: NDArray[np.intp]
    right_U: NDArray[np.float64]
    """As `classes` has it."""
    n: int
    """How many of them are to train."""


def split(group: Group, n: int, apart: bool, above: float = ABOVE) -> list[Unit]:
    """The group's units, and how the `n` rollouts that are to train are shared out: by the numbers
    that were sampled, and at least two each, as one alone has nothing to be compared with."""
    rights_GC = rights(group)
    members = list(units(group, apart).values())
    bounds = np.cumsum([0, *map(len, members)]) * n / len(group)
    shares = np.diff(np.rint(bounds).astype(int))
    return [
        Unit(mine, classes(rights_GC[mine], above), max(int(share), 2))
        for mine, share in zip(members, shares, strict=True)
    ]


def select(group: Group, n: int, apart: bool, above: float = ABOVE) -> NDArray[np.bool_]:
    """[G] for `Finish`: about `n` rollouts, right ones and wrong ones balanced in each unit."""
    kept_G = np.zeros(len(group), dtype=bool)
    for unit in split(group, n, apart, above):
        kept_G[unit.index_U[balanced(unit.right_U, unit.n)]] = True
    return kept_G
