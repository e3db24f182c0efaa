"""Which answer wins a vote, over all subsets at once, in closed form.

Let k of N samples be drawn, n of which give a certain answer. It wins with v votes where every
other answer has fewer, and gets 1/(t + 1) where t others have v too. As 1/(t + 1) is the integral
of y^t over y in 0..1, its share of all C(N, k) subsets is a sum over v of

    C(n, v) integral [x^(k - v)] (1 + x)^a prod_j (sum_(i < v) C(n_j, i) x^i + y C(n_j, v) x^v)

over a samples without an answer and the other answers j of n_j samples. The integrand is a
polynomial in y, of degree (k - v) / v at most: Gauss-Legendre nodes integrate it exactly. The
coefficient is read off by a Fourier transform on the circle |x| = k / (N - k), where the terms of
that power are largest, so that what cancels is of the size of rounding.

Shape suffixes: U different sizes of answers, R pairs of v and y, X points on the circle.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from samplers.selection._subsets import Floats, Ints

Complex = NDArray[np.complex128]


class _Grid(NamedTuple):
    votes_R: Ints
    node_R: Floats
    weight_R: Floats
    x_X: Complex
    read_RX: Complex
    """Log of what a function on the circle is multiplied by: then it sums to the coefficient."""


def bears(n: int, k: int) -> bool:
    """Whether this may be asked: some hundred samples, and powers in the range of doubles."""
    return k < n <= 256 and n * math.log1p(k / (n - k)) < 600


def shares(sizes_U: Ints, counts_U: Ints, n: int, k: int) -> Floats:
    """[U]: of C(n, k) subsets, the share won by one answer of each size; ties are shared evenly.

    Args:
        sizes_U: the different numbers of samples of an answer, each 1 or more.
        counts_U: how many answers have that size.
    """
    grid = _grid(n, k)
    logs_URX = np.stack([_log_factor(int(size), n, k) for size in sizes_U])
    silent = n - int(sizes_U @ counts_U)
    others_UU = counts_U - np.eye(len(sizes_U))  # all answers but the one that wins
    flat = others_UU @ logs_URX.reshape(len(sizes_U), -1)
    read_RX = grid.read_RX + silent * np.log1p(grid.x_X)
    at_UR = np.exp(flat.reshape(logs_URX.shape) + read_RX).real.sum(axis=-1)
    ways_UR = np.stack([_ways(int(size), n, k) for size in sizes_U])
    share_U: Floats = np.clip((ways_UR * grid.weight_R * at_UR).sum(axis=1), 0.0, 1.0)
    return share_U


@lru_cache(maxsize=32)
def _grid(n: int, k: int) -> _Grid:
    votes, nodes, weights = [], [], []
    for v in range(1, k + 1):
        y, w = np.polynomial.legendre.leggauss((k - v) // v // 2 + 1)
        votes += [v] * len(y)
        nodes += [*(y + 1) / 2]
        weights += [*w / 2]
    votes_R = np.array(votes)
    points = n + 1 + n % 2  # odd: no point lies at -radius, where 1 + x may be 0
    half = points // 2 + 1  # the rest are their conjugates
    x_X = k / (n - k) * np.exp(2j * np.pi * np.arange(half) / points)
    twice_X = np.where(np.arange(half) == 0, 1, 2) / points
    read_RX = np.log(twice_X) - (k - votes_R[:, None]) * np.log(x_X) - math.log(math.comb(n, k))
    return _Grid(votes_R, np.array(nodes), np.array(weights), x_X, read_RX)


@lru_cache(maxsize=4096)
def _ways(size: int, n: int, k: int) -> Floats:
    votes_R = _grid(n, k).votes_R
    return np.array([math.comb(size, int(v)) for v in votes_R], dtype=np.float64)


@lru_cache(maxsize=512)
def _log_factor(size: int, n: int, k: int) -> Complex:
    """[R, X]: log of the factor of an answer of that size. Zeros would be at single points."""
    grid = _grid(n, k)
    binomials = np.array([math.comb(size, i) for i in range(size + 1)], dtype=np.float64)
    terms = binomials[:, None] * grid.x_X ** np.arange(size + 1)[:, None]
    below = np.concatenate([np.zeros((1, len(grid.x_X))), np.cumsum(terms, axis=0)])
    fewer_RX = below[np.minimum(grid.votes_R, size + 1)]
    equal_RX = np.where((grid.votes_R <= size)[:, None], terms[np.minimum(grid.votes_R, size)], 0)
    factor_RX = fewer_RX + grid.node_R[:, None] * equal_RX
    logs: Complex = np.log(np.where(factor_RX == 0, 1e-300, factor_RX))
    return logs
