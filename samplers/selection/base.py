"""What selections have in common: the samples they choose of, and what a choice is worth.

A selection is a file with a `Config` and a pure function

    chosen(config, pool) -> [P, K]   the probability that each sample's answer is the one returned

over P independent sets of K samples at once; ties are shared evenly, and a set without any answer
has a row of zeros. It may also have

    NEEDS = "score"                  where it reads `Pool.score_PK`
    enough(config) -> int            live: how many finished thoughts suffice; the others are ended
    expected(config, samples, right_N, k) -> Expected     a closed form over all subsets

Shape suffixes: N samples of a problem, K of them drawn, P such draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pool:
    """P sets of K samples each, every array [P, K]."""

    answer_PK: Ints
    """Equal numbers are equal answers; -1: no answer, which is never chosen."""
    think_PK: Ints
    """Tokens of the thought."""
    tokens_PK: Ints
    """Tokens of thought and answer, forced ones included."""
    score_PK: Floats
    """What a scorer says, higher is better; NaN where there is none."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Of k samples drawn without replacement from a problem's N."""

    accuracy: float
    """A set without any answer is wrong."""
    tokens: float
    """All that is generated, by what the method would have stopped where it stops."""
    latency: float
    """Tokens of the longest sample that had to be waited for: all run side by side."""
