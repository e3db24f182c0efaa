"""How well an announced number of thinking tokens is kept: measured with no hard cap above it.

Under a cap nothing can be exceeded, and a kept budget says nothing of the model. Shape suffixes:
M problems, S samples of a problem, N numbers that were announced. NaN samples are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.eval import statistics
from trainer.eval.statistics import Estimate, Floats

SLACK = 0.1
"""Of `violation10`: so much above the number is let pass."""
LEAK = 1.5
"""A leak above this is to be flagged."""


def kept(used_MS: ArrayLike, target: int) -> dict[str, Floats]:
    """Per problem, [M]:

    deviation    mean of |L - B| / B        violation    share of samples with L > B
    overshoot    mean of (L - B)+ / B       violation10  share of samples with L > 1.1 B
    utilisation  mean of L / B

    Of a target of 0 the relative ones are NaN.

    Args:
        used_MS: thinking tokens, NaN where there is no sample.
    """
    used_MS = np.asarray(used_MS, dtype=np.float64)
    known_MS = ~np.isnan(used_MS)
    scale = float(target) if target else float("nan")
    off_MS = used_MS - target
    each: Mapping[str, NDArray[np.float64]] = {
        "deviation": np.abs(off_MS) / scale,
        "violation": np.where(known_MS, off_MS > 0, np.nan),
        "violation10": np.where(known_MS, used_MS > target * (1 + SLACK), np.nan),
        "overshoot": np.maximum(off_MS, 0) / scale,
        "utilisation": used_MS / scale,
    }
    return {name: statistics.over_samples(values_MS) for name, values_MS in each.items()}


def rank_correlation(
    wanted_N: ArrayLike, used_NMS: ArrayLike, draws: int = 500, seed: int = 0
) -> Estimate:
    """Spearman between what was announced and used, over all samples, with a bootstrap over
    problems.

    Problems differ in length, so it is below 1 for a model that follows every number exactly on
    its scale; NaN where one number was announced, or all samples are alike.
    """
    used_NMS = np.asarray(used_NMS, dtype=np.float64)
    n, m, s = np.nonzero(~np.isnan(used_NMS))
    # As ranks already: each resample then only counts.
    wanted_V = np.unique(np.asarray(wanted_N)[n], return_inverse=True)[1]
    used_V = np.unique(used_NMS[n, m, s], return_inverse=True)[1]

    def statistic(index_DM: NDArray[np.intp]) -> Floats:
        rows = statistics.multiplicity(index_DM)
        return np.array([statistics.coded_spearman(wanted_V, used_V, row_M[m]) for row_M in rows])

    return statistics.bootstrap(statistic, used_NMS.shape[1], draws, seed)


def slope(wanted_N: ArrayLike, used_NMS: ArrayLike) -> Estimate:
    """Slope of log L on log B: 1 in proportion, 0 no response; mean over problems of each one's
    least squares, with a t interval.

    A number of 0 has no logarithm and is left out; a thought of no tokens counts as one.
    """
    wanted_N = np.asarray(wanted_N, dtype=np.float64)
    used_NMS = np.asarray(used_NMS, dtype=np.float64)[wanted_N > 0]
    x_N = np.log(wanted_N[wanted_N > 0])
    slopes_M = np.full(used_NMS.shape[1], np.nan)
    y_NMS = np.log(np.maximum(used_NMS, 1))
    for m in range(len(slopes_M)):
        n, s = np.nonzero(~np.isnan(y_NMS[:, m]))
        x, y = x_N[n], y_NMS[n, m, s]
        if len(set(x.tolist())) > 1:
            x = x - x.mean()
            slopes_M[m] = (x @ y) / (x @ x)
    return statistics.mean(slopes_M)


def leak(answer_M: ArrayLike, free_M: ArrayLike) -> Estimate:
    """Answer tokens where a budget or effort was asked for, over those where none was: reasoning
    that has moved behind the end marker (ThinkDial, arXiv:2508.18773). Above `LEAK` is a flag.

    Of total tokens the same ratio says whether anything was saved.
    """
    return statistics.ratio(answer_M, free_M)
