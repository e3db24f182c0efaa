"""Subsets of N samples, drawn without replacement: which ones, and how ranks fall in them.

Every weight is a ratio of binomials in whole numbers, so nothing overflows. Shape suffixes as in
base.py; P subsets. Arrays that are kept between calls are read-only.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Array = TypeVar("Array", bound=NDArray[Any])


@lru_cache(maxsize=64)
def all_of(n: int, k: int) -> Ints:
    """Every k of 0 .. n - 1, ascending, [C(n, k), k]."""
    flat = itertools.chain.from_iterable(itertools.combinations(range(n), k))
    return _kept(np.fromiter(flat, dtype=np.int64).reshape(-1, k))


@lru_cache(maxsize=64)
def drawn(n: int, k: int, draws: int, seed: int) -> Ints:
    """Random ones in random order, [draws, k]. All problems share them: their samples come in an
    order that means nothing, so the noise of one problem says nothing of another's."""
    random = np.random.default_rng([seed, n, k]).random((draws, n))
    return _kept(random.argsort(axis=1)[:, :k].astype(np.int64))


@lru_cache(maxsize=1024)
def place(n: int, k: int, m: int) -> Floats:
    """[n]: how likely the one of rank i, from 0, is the m-th of k. Sums to 1."""
    total = math.comb(n, k)
    return _kept(
        np.array([math.comb(i, m - 1) * math.comb(n - 1 - i, k - m) / total for i in range(n)])
    )


def largest(values_N: NDArray[np.generic], k: int) -> float:
    """Mean over all subsets of k of their largest value."""
    return float(np.sort(values_N) @ place(len(values_N), k, k))


def over_ties(values_N: Floats, key_N: NDArray[np.generic]) -> Floats:
    """Each value replaced by the mean over those of equal key; `key_N` is sorted."""
    starts = np.flatnonzero(np.append(True, key_N[1:] != key_N[:-1]))
    if len(starts) >= len(key_N):
        return values_N
    counts = np.diff(np.append(starts, len(key_N)))
    means: Floats = np.repeat(np.add.reduceat(values_N, starts) / counts, counts)
    return means


def first_weights(ascending_N: NDArray[np.generic], m: int, k: int) -> Floats:
    """[C(N, m)], of `all_of(N, m)`: how likely those are the first m of k drawn. Sums to 1.

    Ranks are by `ascending_N`; where equal values are on both sides of the m-th place, every order
    of them is as likely.
    """
    n = len(ascending_N)
    index_PM = all_of(n, m)
    first_N = np.searchsorted(ascending_N, ascending_N, side="left")
    end_N = np.searchsorted(ascending_N, ascending_N, side="right")
    last_P = index_PM[:, -1]
    # Of the subset, how many tie with its last.
    inside_P = (index_PM >= first_N[last_P][:, None]).sum(axis=1)
    table = np.zeros((n, m + 1))
    for i in range(n):
        ties, longer = int(end_N[i] - first_N[i]), int(n - end_N[i])
        for s in range(1, min(ties, m) + 1):
            table[i, s] = _first(n, k, m, longer, ties, s)
    weights: Floats = table[last_P, inside_P]
    return weights


@lru_cache(maxsize=65536)
def _first(n: int, k: int, m: int, longer: int, ties: int, s: int) -> float:
    """As `first_weights`, of one subset: s of its members tie with its last, as `ties` in all do;
    u more of these are drawn and must come after the s."""
    ways = sum(
        math.comb(ties - s, u) * math.comb(longer, k - m - u) / math.comb(s + u, s)
        for u in range(min(ties - s, k - m) + 1)
    )
    return ways / math.comb(n, k)


def _kept(array: Array) -> Array:
    array.setflags(write=False)
    return array
