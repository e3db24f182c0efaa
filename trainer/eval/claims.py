"""Claims about two models, and about several tasks. The unit is the problem, as in statistics.py.

A model is called more efficient only where it is not worse by more than a margin stated beforehand
and surely cheaper: both `not_worse` and `cheaper`. Shape suffixes: M problems, K tests or tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from trainer.eval import statistics
from trainer.eval.statistics import Estimate, Floats

Sides = Literal[1, 2]


@dataclass(frozen=True, slots=True)
class Bound:
    """A value, how bad it may be, and whether that is good enough."""

    value: float
    bound: float
    """NaN of fewer than two problems: nothing is claimed then."""
    limit: float
    holds: bool
    confidence: float
    """Chance that the true value is on the good side of `bound`."""


def not_worse(
    a_M: ArrayLike, b_M: ArrayLike, margin: float = 0.01, confidence: float = 0.95, sides: Sides = 2
) -> Bound:
    """Non-inferiority of a: the lower bound of the mean paired difference a - b is above -margin.

    Where no problem differs at all the bound still allows for those that were not drawn, about
    3.7 / M of them: a margin of a point needs 368 problems then.

    Args:
        a_M, b_M: accuracies of the same problems; problems with a NaN are left out.
        margin: the loss that is still called none, 0.01 being a point of accuracy.
        sides: 2 takes the lower end of the two-sided interval (for 95%, a one-sided test at 2.5%,
            as is usual in trials); 1 the one-sided bound (5%).

    Raises:
        ValueError: a negative margin.
    """
    if margin < 0:
        raise ValueError(f"margin: {margin}; a loss that is still accepted, 0 or more")
    wide = confidence if sides == 2 else 2 * confidence - 1
    off_M = np.asarray(a_M, dtype=np.float64) - np.asarray(b_M, dtype=np.float64)
    difference = statistics.mean(off_M, wide, statistics.CHANGE)
    holds = difference.low >= -margin  # False of NaN
    return Bound(difference.value, difference.low, -margin, bool(holds), (1 + wide) / 2)


def cheaper(
    a_M: ArrayLike,
    b_M: ArrayLike,
    limit: float = 1.0,
    confidence: float = 0.95,
    sides: Sides = 2,
) -> Bound:
    """The upper bound of sum(a) / sum(b) is below `limit`: a costs less on the same problems.

    By the t interval of the paired ratio (`statistics.ratio`). `sides` as in `not_worse`.

    Args:
        a_M, b_M: mean tokens of each problem.
    """
    wide = confidence if sides == 2 else 2 * confidence - 1
    share = statistics.ratio(a_M, b_M, confidence=wide)
    return Bound(share.value, share.high, limit, bool(share.high < limit), (1 + wide) / 2)


def holm(p_K: ArrayLike) -> Floats:
    """P-values adjusted for being several (Holm 1979): reject where below the level.

    NaN is no test: it stays, and does not count.
    """
    p_K = np.asarray(p_K, dtype=np.float64)
    out = np.full(p_K.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p_K))
    order = tested[np.argsort(p_K[tested], kind="stable")]
    scaled = p_K[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return out


def macro(
    values_K: Sequence[float],
    errors_K: Sequence[float],
    counts_K: Sequence[int],
    confidence: float = 0.95,
) -> Estimate:
    """Mean over tasks, every task as heavy: standard error sqrt(sum SE^2) / K.

    The t interval has Satterthwaite's degrees of freedom (Biometrics 2, 1946). It is one for these
    tasks: nothing is said of tasks that were not run.

    Args:
        errors_K: population errors of the values; one that is NaN leaves the interval open.
        counts_K: problems of each task.
    """
    value = float(np.mean(values_K)) if len(values_K) else float("nan")
    problems = int(np.sum(counts_K))
    squares = np.asarray(errors_K, dtype=np.float64) ** 2
    if not len(values_K) or np.isnan(squares).any():
        return Estimate(value, float("nan"), float("nan"), problems)
    if not squares.any():
        return Estimate(value, value, value, problems)
    from scipy import stats

    parts = squares**2 / np.maximum(np.asarray(counts_K) - 1, 1)
    freedom = squares.sum() ** 2 / parts.sum()
    half = stats.t.ppf(0.5 + confidence / 2, freedom) * np.sqrt(squares.sum()) / len(values_K)
    return Estimate(value, float(value - half), float(value + half), problems)
