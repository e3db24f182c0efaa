"""A number of rollouts shared out among prompts in proportion, in whole numbers, within bounds.

Shape suffixes: N prompts, E edges (values of the factor c at which a prompt meets a bound).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def apportion(
    shares_N: Floats, total: int, least: int = 0, most: int | None = None, all_get: bool = False
) -> Counts:
    """[N] whole rollouts: `total` in proportion to the shares, within the bounds.

    Rounded half to even; what is then missing or too much goes, one each, to the entries that
    rounding has changed most. Without bounds that is the released code. They add up to `total`
    unless `most` or shares of 0 forbid it.

    Args:
        least: for prompts whose share is not 0, or all of them with `all_get`.
        most: None: no bound.
    """
    on_N = shares_N > 0
    if not all_get and least and on_N.sum() * least > total:
        by_share = np.argsort(-shares_N, kind="stable")
        on_N = np.isin(np.arange(len(shares_N)), by_share[: total // least])
        shares_N = np.where(on_N, shares_N, 0.0) / (shares_N[on_N].sum() or 1.0)
    low_N = np.where(on_N | all_get, float(least), 0.0)
    high_N = np.where(on_N, float(total if most is None else min(most, total)), low_N)
    real_N = bounded(shares_N, total, low_N, np.maximum(high_N, low_N))
    sizes_N: Counts = np.round(real_N).astype(np.int64)
    error = int(np.round(real_N.sum())) - int(sizes_N.sum())
    sign = int(np.sign(error))
    changed = np.argsort(-sign * (real_N - sizes_N), kind="stable")
    sizes_N[changed[: abs(error)]] += sign
    return sizes_N


def bounded(shares_N: Floats, total: int, low_N: Floats, high_N: Floats) -> Floats:
    """[N] clip(c * shares, low, high) that add up to `total`, or come nearest: the n that make
    sum(shares^2 / n) least within the bounds."""
    plain_N = shares_N * total
    if ((low_N <= plain_N) & (plain_N <= high_N)).all():
        return plain_N  # to the bit what rounding is to see
    on_N = shares_N > 0
    bounds, slopes = (low_N[on_N], high_N[on_N]), (shares_N[on_N], -shares_N[on_N])
    edges_E = np.concatenate([bound / shares_N[on_N] for bound in bounds])
    order_E = np.argsort(edges_E, kind="stable")
    edges_E, slope_E = edges_E[order_E], np.cumsum(np.concatenate(slopes)[order_E])
    # the sum as a function of c: piecewise linear, known at every c where an entry meets a bound
    sum_E = low_N.sum() + np.concatenate([[0.0], np.cumsum(slope_E[:-1] * np.diff(edges_E))])
    k = int(np.searchsorted(sum_E, total))
    if k == 0:
        return low_N
    if k == len(sum_E):
        return high_N
    c = edges_E[k - 1] + (total - sum_E[k - 1]) / slope_E[k - 1]
    return np.clip(c * shares_N, low_N, high_N)
