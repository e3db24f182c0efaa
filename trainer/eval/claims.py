"""Claims about two models. The unit is the problem, as in statistics.py.

A model is called more efficient only where it is not worse by more than a margin stated beforehand
and surely cheaper: both `not_worse` and `cheaper`. Shape suffix: M problems.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from trainer.eval import statistics

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
    difference = statistics.mean(off_M, wide)
    holds = difference.low >= -margin  # False of NaN
    return Bound(difference.value, difference.low, -margin, bool(holds), (1 + wide) / 2)


def cheaper(
    a_M: ArrayLike,
    b_M: ArrayLike,
    limit: float = 1.0,
    confidence: float = 0.95,
    sides: Sides = 2,
    draws: int = 10_000,
    seed: int = 0,
) -> Bound:
    """The upper bound of sum(a) / sum(b) is below `limit`: a costs less on the same problems.

    BCa bootstrap over problems, both models resampled together. `sides` as in `not_worse`.

    Args:
        a_M, b_M: mean tokens of each problem.
    """
    wide = confidence if sides == 2 else 2 * confidence - 1
    share = statistics.ratio(a_M, b_M, draws, seed, wide, "bca")
    return Bound(share.value, share.high, limit, bool(share.high < limit), (1 + wide) / 2)
