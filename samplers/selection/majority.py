"""Majority vote, or self-consistency (Wang et al. 2022, arXiv:2203.11171): the commonest answer.

Samples without an answer abstain. Answers that tie share evenly, as a random choice among them
would; implementations that take whichever came first score a tie by the order of the samples.
"""

from __future__ import annotations

import numpy as np

from samplers.seam import Component
from samplers.selection import _votes
from samplers.selection.base import Floats, Pool, by_answer, evenly


class Config(Component):
    """Nothing to set."""


def chosen(config: Config, pool: Pool) -> Floats:
    """[P, K]: evenly over the samples of the most frequent answers."""
    votes_PK = by_answer(pool.answer_PK, np.ones(pool.answer_PK.shape))
    votes_PK = np.where(pool.answer_PK < 0, -1, votes_PK)
    return evenly((votes_PK == votes_PK.max(axis=1, keepdims=True)) & (pool.answer_PK >= 0))


def chance(config: Config, samples: Pool, k: int) -> Floats | None:
    """[N], exact over all subsets of k; None of more samples than the closed form bears."""
    answer_N = samples.answer_PK[0]
    if not _votes.bears(len(answer_N), k):
        return None
    out = np.zeros(len(answer_N))
    voted_N = answer_N >= 0
    if not voted_N.any():
        return out
    _, which, size = np.unique(answer_N[voted_N], return_inverse=True, return_counts=True)
    sizes_U, of, counts_U = np.unique(size, return_inverse=True, return_counts=True)
    share_U = _votes.shares(sizes_U, counts_U, len(answer_N), k)
    out[voted_N] = (share_U / sizes_U)[of[which]]
    return out
