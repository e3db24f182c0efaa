"""Best of n: the answer of the highest score, or (weighted) of the highest sum of scores.

Any scorer will do: a reward model, the model's own confidence. Weighted best-of-n adds up the
scores of equal answers (Li et al. 2023, arXiv:2206.02336), so that frequency counts too.
"""

from __future__ import annotations

import numpy as np

from samplers.seam import Component
from samplers.selection import _subsets
from samplers.selection.base import Floats, Pool, by_answer, evenly, ranked

NEEDS = "score"


class Config(Component):
    """Which score is compared."""

    weighted: bool = False
    """Compare the sum of the scores of equal answers, which must not be negative: sums of logprobs
    would punish what is frequent. False: each sample by its own score."""


def chosen(config: Config, pool: Pool) -> Floats:
    """[P, K]; a sample without a score is chosen only where none has one.

    Raises:
        ValueError: weighted, and a score is negative.
    """
    if not config.weighted:
        score_PK = ranked(pool)
        best_PK = score_PK == score_PK.max(axis=1, keepdims=True)
        return evenly(best_PK & (pool.answer_PK >= 0))
    score_PK = np.nan_to_num(pool.score_PK, nan=0.0)
    if score_PK.min(initial=0.0) < 0:
        raise ValueError(
            f"weighted: a score of {score_PK.min():.4g} cannot be summed with others; give scores "
            "of 0 or more (probabilities, not logprobs), or set weighted: false"
        )
    total_PK = by_answer(pool.answer_PK, score_PK)
    total_PK = np.where(pool.answer_PK < 0, -1.0, total_PK)
    won_PK = (total_PK == total_PK.max(axis=1, keepdims=True)) & (pool.answer_PK >= 0)
    best_PK = won_PK & (score_PK == by_answer(pool.answer_PK, score_PK, highest=True))
    return evenly(best_PK / np.maximum(by_answer(pool.answer_PK, best_PK), 1))


def chance(config: Config, samples: Pool, k: int) -> Floats | None:
    """[N], exact over all subsets of k; None where sums are compared.

    The best of the k is the one of rank i with C(N - 1 - i, k - 1) / C(N, k).
    """
    if config.weighted:
        return None
    answered = np.flatnonzero(samples.answer_PK[0] >= 0)
    score = ranked(samples)[0, answered]
    order = np.argsort(-score, kind="stable")
    first = _subsets.place(samples.answer_PK.shape[1], k, 1)[: len(answered)]
    out = np.zeros(samples.answer_PK.shape[1])
    out[answered[order]] = _subsets.over_ties(first, score[order])
    return out
