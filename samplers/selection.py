"""Which groups can teach: pure functions of their metrics, one array of numbers per group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def mixed(metric_G: ArrayLike) -> bool:
    """Not all equal: with group baselines only such a group has a gradient."""
    metric_G = np.asarray(metric_G)
    return bool(metric_G.size and (metric_G != metric_G[0]).any())


def dynamic(groups: Sequence[ArrayLike]) -> list[int]:
    """Indices of the groups that DAPO's dynamic sampling keeps: mixed, or of one rollout.

    The metric is accuracy, never a shaped reward: shaping makes every group look informative.
    """
    return [i for i, metric_G in enumerate(groups) if mixed(metric_G) or np.size(metric_G) == 1]
