"""short-m@k (Hassid et al. 2025, arXiv:2505.17813): the m thoughts that end first vote.

k thoughts are sampled side by side; when m have ended the others are stopped, and never answer.
Of answers with as many votes the one of the shortest thought is returned. m = 1: whoever is first.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from samplers.seam import Component
from samplers.selection.base import Floats, Pool, by_answer, evenly


class Config(Component):
    """How many are waited for."""

    m: int = Field(default=3, ge=1)
    """Thoughts that vote; the paper's two are 1 and 3. Where fewer are sampled, all vote."""


def enough(config: Config) -> int:
    """Thoughts that have to end."""
    return config.m


def chosen(config: Config, pool: Pool) -> Floats:
    """[P, K]: the shortest thought among those of the most frequent answers of the first m.

    A thought that ended without an answer is one of the m and abstains. Of more than m, those that
    are not first count as stopped; which of equal length are first is said by their order here.
    """
    answer_PK, think_PK = pool.answer_PK, pool.think_PK
    if answer_PK.shape[1] > config.m:
        late = think_PK.argsort(axis=1, kind="stable")[:, config.m :]
        answer_PK = answer_PK.copy()
        np.put_along_axis(answer_PK, late, -1, axis=1)
    votes_PK = by_answer(answer_PK, np.ones(answer_PK.shape))
    votes_PK = np.where(answer_PK < 0, -1, votes_PK)
    won_PK = (votes_PK == votes_PK.max(axis=1, keepdims=True)) & (answer_PK >= 0)
    length_PK = np.where(won_PK, think_PK, np.iinfo(np.int64).max)
    return evenly(won_PK & (length_PK == length_PK.min(axis=1, keepdims=True)))
