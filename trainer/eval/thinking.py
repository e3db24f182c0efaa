"""Thinking past the answer, and stopping short of it: read off the cuts of a trace.

Shape suffixes: M problems, S samples of a problem, J columns: ascending budgets, and last the uncut
run. Verdicts are 1, 0, or NaN (unknown, or no sample): a sample counts where the verdicts that a
measure reads are known. Each measure is [M], NaN where a problem has no sample to speak of.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.eval import statistics
from trainer.eval.statistics import Floats

RISE = 0.5


def harm(correct_MSJ: ArrayLike) -> Floats:
    """Share of samples that were right at an earlier budget and are wrong in the end.

    It is what thinking on has cost: as `overthink_count` of AnytimeReasoner (arXiv:2505.13438).
    """
    correct = np.asarray(correct_MSJ, dtype=np.float64)
    known_MS = ~np.isnan(correct[..., -1])
    lost_MS = (correct[..., :-1] == 1).any(axis=2) & (correct[..., -1] == 0)
    return statistics.over_samples(np.where(known_MS, lost_MS, np.nan))


def waste(correct_MSJ: ArrayLike, think_MSJ: ArrayLike) -> Floats:
    """Mean over right samples of 1 - b / L, b the tokens at the first cut from which on every
    answer is right: thought that changed nothing. Only as fine as the grid of budgets.

    Args:
        think_MSJ: thinking tokens at each column, at most those of the last.
    """
    correct = np.asarray(correct_MSJ, dtype=np.float64)
    think = np.asarray(think_MSJ, dtype=np.float64)
    right_MS = correct[..., -1] == 1
    stable_MSJ = np.flip(np.logical_and.accumulate(np.flip(correct == 1, axis=2), axis=2), axis=2)
    return statistics.over_samples(np.where(right_MS, _unused(stable_MSJ, think), np.nan))


def left_early(correct_MSJ: ArrayLike, forced_MSJ: ArrayLike, rise: float = RISE) -> Floats:
    """1 where at some budget a sample stopped by itself and was wrong, while at a larger one the
    problem's accuracy is higher by `rise`: it was given up too early; 0 elsewhere.

    Their mean is a share of all problems. Accuracies are noisy: 8 samples or more.

    Args:
        forced_MSJ: the thought was cut there.
    """
    correct = np.asarray(correct_MSJ, dtype=np.float64)
    gave_up_MJ = ((correct == 0) & ~np.asarray(forced_MSJ, dtype=bool)).any(axis=1)
    rates_MJ = statistics.over_samples(correct)
    known_M = ~np.isnan(rates_MJ).any(axis=1)
    ahead_MJ = np.flip(np.maximum.accumulate(np.flip(rates_MJ, axis=1), axis=1), axis=1)
    rises_MJ = ahead_MJ - rates_MJ >= rise - 1e-12
    return np.where(known_M, (gave_up_MJ & rises_MJ).any(axis=1), np.nan)


def left_right(correct_MSJ: ArrayLike, think_MSJ: ArrayLike) -> Floats:
    """Mean over wrong samples of 1 - b / L, b the tokens at the first cut with a right answer, and
    0 where none was right: thought after a right idea was left (xi_UT of Wang et al. 2025,
    arXiv:2501.18585, with cuts in place of thoughts).
    """
    correct = np.asarray(correct_MSJ, dtype=np.float64)
    think = np.asarray(think_MSJ, dtype=np.float64)
    wrong_MS = correct[..., -1] == 0
    return statistics.over_samples(np.where(wrong_MS, _unused(correct == 1, think), np.nan))


def _unused(hit_MSJ: NDArray[np.bool_], think_MSJ: Floats) -> Floats:
    """[M, S]: 1 - tokens at the first hit / those of the last column; 0 of no hit, or no tokens."""
    first_MS1 = hit_MSJ.argmax(axis=2)[..., None]
    spent_MS = np.take_along_axis(think_MSJ, first_MS1, axis=2)[..., 0]
    whole_MS = think_MSJ[..., -1]
    some_MS = hit_MSJ.any(axis=2) & (whole_MS > 0)
    share_MS = 1 - spent_MS / np.where(whole_MS > 0, whole_MS, 1)
    return np.where(some_MS, np.maximum(share_MS, 0.0), 0.0)
