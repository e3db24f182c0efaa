"""Best-of-Majority (Di et al. 2025, arXiv:2510.03199): the best score among frequent answers.

An answer must be given by a share `tau` of all samples to be a candidate; of these the sample with
the highest score is returned. The paper submits the k best candidates; here it is the one best.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from samplers.seam import Component
from samplers.selection.base import Floats, Pool, by_answer, evenly, ranked

NEEDS = "score"


class Config(Component):
    """What counts as frequent."""

    tau: float = Field(default=0.25, ge=0, le=1)
    """Share of the K samples that must give an answer, those without one counted. The default is
    ours. With 1 / tau samples or fewer every answer passes, and it is best-of-n."""


def chosen(config: Config, pool: Pool) -> Floats:
    """[P, K]; where no answer is frequent enough, the most frequent ones are the candidates."""
    votes_PK = by_answer(pool.answer_PK, np.ones(pool.answer_PK.shape))
    votes_PK = np.where(pool.answer_PK < 0, -1, votes_PK)
    wanted = config.tau * pool.answer_PK.shape[1] - 1e-9  # 0.28 * 25 is 7, whatever floats say
    least_P1 = np.minimum(votes_PK.max(axis=1, keepdims=True), wanted)
    kept_PK = (votes_PK >= least_P1) & (pool.answer_PK >= 0)
    score_PK = np.where(kept_PK, ranked(pool), -np.inf)
    return evenly(kept_PK & (score_PK == score_PK.max(axis=1, keepdims=True)))
