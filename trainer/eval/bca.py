"""Which percentiles of the resamples make a bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BLOCK = 2_000_000
"""Units held at once."""


def widened(edges: Floats, units: int) -> Floats:
    """Those at which the interval of a mean is as wide as t's (expanded percentiles: Hesterberg
    2015, The American Statistician 69): plain ones take the normal's, and divide by M not M - 1."""
    from scipy import stats

    wide: Floats = stats.norm.cdf(stats.t.ppf(edges, units - 1) * np.sqrt(units / (units - 1)))
    return wide


def corrected(
    edges: Floats,
    value: float,
    resampled: Floats,
    statistic: Callable[[NDArray[np.intp]], Floats],
    units: int,
) -> Floats:
    """Bias-corrected and accelerated (Efron 1987, JASA 82); `edges` where it cannot be said.

    The acceleration is that of leaving out each unit in turn.
    """
    from scipy import stats

    below = ((resampled < value).mean() + (resampled <= value).mean()) / 2
    each = np.arange(units - 1)
    rows = np.array_split(np.arange(units), units * units // BLOCK + 1)
    left_out = np.concatenate([statistic(each + (each >= row[:, None])) for row in rows])
    if not 0 < below < 1 or not np.isfinite(left_out).all():
        return edges
    off = left_out.mean() - left_out
    spread = (off**2).sum() ** 1.5
    acceleration = (off**3).sum() / (6 * spread) if spread else 0.0
    bias = stats.norm.ppf(below)
    at = bias + stats.norm.ppf(edges)
    moved: Floats = stats.norm.cdf(bias + at / (1 - acceleration * at))
    return moved
