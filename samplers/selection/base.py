"""What selections have in common: the samples they choose of, and what a choice is worth.

A selection is a file with a `Config` and a pure function

    chosen(config, pool) -> [P, K]   the probability that each sample's answer is the one returned

over P independent sets of K samples at once; ties are shared evenly, and a set without any answer
has a row of zeros. It may also have

    NEEDS = "score"                  where it reads `Pool.score_PK`
    enough(config) -> int            how many thoughts suffice: when so many have ended the others
                                     are stopped, and `chosen` sees those alone that ended
    chance(config, samples, k) -> [N] | None     closed form: the mean of `chosen` over all subsets
                                     of k, given to the samples; None where this config has none

Shape suffixes: N samples of a problem, K of them drawn, P such draws.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samplers import seam
from samplers.selection import _subsets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DRAWS = 2000
WORTH = 25
"""All subsets are gone through where they are at most so many times the draws: 50,000 of 2000."""
ALSO = {"maj": "majority", "cons": "majority", "bon": "best_of_n", "bom": "best_of_majority"}
"""Short names of papers."""


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

    def take(self, index_PK: Ints) -> Pool:
        """Sets drawn of the one set [1, N] that this is."""
        fields = (self.answer_PK, self.think_PK, self.tokens_PK, self.score_PK)
        return Pool(*(field[0][index_PK] for field in fields))


@dataclass(frozen=True, slots=True)
class Expected:
    """Of k samples drawn without replacement from a problem's N."""

    accuracy: float
    """A set without any answer is wrong; one whose returned answer has an unknown verdict is not
    counted, and NaN says that none was."""
    tokens: float
    """All that is generated, by what the method would have stopped where it stops."""
    latency: float
    """Tokens of the longest sample that had to be waited for: all run side by side."""


def resolve(spec: str | Mapping[str, Any]) -> tuple[ModuleType, Any]:
    """Module and config of 'majority', {'name': 'short_m', 'm': 1} or a user's 'my_pkg.my_file'.

    Names of papers are read too: 'short-3@8' and 'short-m@k' (short_m), 'best-of-n', 'maj@k',
    'bon', 'bom'; what follows '@' is dropped, since k is asked for apart.

    Raises:
        ValueError: no such selection, or a setting that it does not take.
    """
    name, settings = seam.split(spec)
    if "." not in name:
        name = name.partition("@")[0].replace("-", "_").lower()
        name = ALSO.get(name, name)
        if number := re.fullmatch(r"short_(\d+)", name):
            name, settings = "short_m", {"m": int(number[1]), **settings}
    return seam.told("samplers.selection", {"name": name, **settings})


def draws_for(problems: int) -> int:
    """Draws per problem at which their noise in the mean over 200 problems or more is below 0.0008.

    A draw's standard deviation is 0.5 at most, and the problems' errors are independent: 2000 up to
    200 problems, 400 from 1000 on.
    """
    return int(np.clip(400_000 // max(problems, 1), 400, DRAWS))


def expected(
    module: ModuleType,
    config: Any,
    samples: Pool,
    right_N: ArrayLike,
    k: int,
    draws: int = DRAWS,
    seed: int = 0,
) -> Expected:
    """Mean over subsets of k of a problem's N samples, drawn without replacement.

    By closed form where the selection has one, else over all subsets where they are at most
    `WORTH` times `draws`, else over `draws` random ones. With `enough`, subsets are those of the
    thoughts that end first, weighted by how likely they are the first of k; thoughts of equal
    length end in every order. Tokens are exact always, latency where nothing is stopped.

    Args:
        samples: one set, [1, N].
        right_N: 1 right, 0 wrong, NaN unknown: such a sample votes and costs like any other.

    Raises:
        ValueError: k is not in 1..N.
    """
    verdict_N = np.asarray(right_N, dtype=np.float64)
    n = len(verdict_N)
    assert samples.answer_PK.shape == (1, n), (samples.answer_PK.shape, n)
    if not 1 <= k <= n:
        raise ValueError(f"k: {k} is not in 1..{n}, the samples of a problem; lower k")
    m = min(module.enough(config), k) if hasattr(module, "enough") else k
    order = samples.think_PK[0].argsort(kind="stable")[None]
    samples, verdict_N = _numbered(samples.take(order)), verdict_N[order[0]]
    tokens, latency = _spent(samples, k, m)
    chance_N: Floats | None
    chance_N = module.chance(config, samples, k) if hasattr(module, "chance") else None
    if chance_N is None or latency is None:
        index_PM, weight_P = _first(samples, k, m, draws, seed)
        pool = samples.take(index_PM)
        if chance_N is None:
            weight_PM = module.chosen(config, pool) * weight_P[:, None]
            chance_N = np.bincount(index_PM.ravel(), weight_PM.ravel(), minlength=n).astype(float)
        if latency is None:
            latency = float(weight_P @ pool.tokens_PK.max(axis=1))
    return Expected(_accuracy(chance_N, verdict_N), tokens, latency)


def by_answer(answer_PK: Ints, value_PK: NDArray[Any], highest: bool = False) -> Floats:
    """[P, K]: for every sample the sum over all of its set with its answer, or the highest."""
    codes = answer_PK + 1
    width = int(codes.max(initial=0)) + 1
    if width > 4 * codes.size:  # numbers of answers that are far apart
        _, codes = np.unique(codes, return_inverse=True)
        width = int(codes.max()) + 1
    flat = (codes.reshape(answer_PK.shape) + width * np.arange(len(answer_PK))[:, None]).ravel()
    size = width * len(answer_PK)
    if highest:
        totals = np.full(size, -np.inf)
        np.maximum.at(totals, flat, value_PK.ravel())
    else:
        totals = np.bincount(flat, value_PK.ravel(), minlength=size).astype(np.float64)
    out: Floats = totals[flat].reshape(answer_PK.shape)
    return out


def evenly(mask_PK: NDArray[Any]) -> Floats:
    """Rows that sum to 1, in proportion to the mask; rows of zeros stay."""
    weights_PK = np.asarray(mask_PK, dtype=np.float64)
    out: Floats = weights_PK / np.maximum(weights_PK.sum(axis=1, keepdims=True), 1e-300)
    return out


def ranked(pool: Pool) -> Floats:
    """[P, K] scores to take the highest of: none is below all others, and no answer is apart."""
    known = (pool.answer_PK >= 0) & ~np.isnan(pool.score_PK)
    return np.where(known, pool.score_PK, -np.inf)


def _numbered(samples: Pool) -> Pool:
    """Answers as 0, 1, ..: tables over them stay small."""
    _, answer_N = np.unique(samples.answer_PK[0], return_inverse=True)
    shift = int((samples.answer_PK < 0).any())  # np.unique puts -1 first
    fields = (samples.think_PK, samples.tokens_PK, samples.score_PK)
    return Pool((answer_N - shift).astype(np.int64)[None], *fields)


def _spent(samples: Pool, k: int, m: int) -> tuple[float, float | None]:
    """Mean tokens and latency of k samples of which m must end; the samples ascend by thought.

    The m-th to end is of rank i with `place`; the others that ended are any of those before, and
    the rest have thought as long as the m-th. Latency, with answers, has no such form: None.
    """
    think_N, tokens_N = samples.think_PK[0], samples.tokens_PK[0]
    if m == k:
        return k * float(tokens_N.mean()), _subsets.largest(tokens_N, k)
    answer_N = _subsets.over_ties((tokens_N - think_N).astype(np.float64), think_N)
    before_N = np.cumsum(think_N + answer_N) - (think_N + answer_N)
    others_N = before_N / np.maximum(np.arange(len(think_N)), 1)
    spent_N = (m - 1) * others_N + (k - m + 1) * think_N + answer_N
    return float(_subsets.place(len(think_N), k, m) @ spent_N), None


def _first(samples: Pool, k: int, m: int, draws: int, seed: int) -> tuple[Ints, Floats]:
    """Subsets [P, m] of those that end first of k, and their weights [P]."""
    think_N = samples.think_PK[0]
    n = len(think_N)
    if math.comb(n, m) <= WORTH * draws:
        index = _subsets.all_of(n, m)
        if m < k:
            return index, _subsets.first_weights(think_N, m, k)
        return index, np.full(len(index), 1 / len(index))
    index = _subsets.drawn(n, k, draws, seed)
    if m < k:  # in random order, which decides between equal lengths
        first = think_N[index].argsort(axis=1, kind="stable")[:, :m]
        index = np.take_along_axis(index, first, axis=1)
    return index, np.full(len(index), 1 / len(index))


def _accuracy(chance_N: Floats, right_N: Floats) -> float:
    unknown_N = np.isnan(right_N)
    judged = 1.0 - float(chance_N[unknown_N].sum())
    if judged < 1e-12:
        return float("nan")
    return float(chance_N[~unknown_N] @ right_N[~unknown_N]) / judged
