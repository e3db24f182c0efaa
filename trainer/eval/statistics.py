"""Estimators of evaluation: intervals, tests, pass@k, ratios, any-time accuracy.

The unit of inference is the problem: samples of one problem are averaged first, and only problems
are counted (M below). Shape suffixes: M problems, S samples of a problem, J budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.eval import bca

Floats = NDArray[np.float64]
Prior = Literal["equal", "uniform", "log", "linear", "final"]
Method = Literal["percentile", "bca"]
BLOCK = 2_000_000
"""Drawn problems held at once."""
SHARE, CHANGE = (0.0, 1.0), (-1.0, 1.0)
"""Where shares lie, and differences of two: `within` of `mean`."""
SAME = 1e-9
"""Values that differ by less are equal but for rounding."""
EXACT_FLIPS = 12
"""Up to this many units all 2^M sign flips are enumerated."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval; `low` and `high` are NaN where one unit says nothing of spread."""

    value: float
    low: float
    high: float
    n: int
    """Units (problems, or seeds) behind it."""

    @property
    def half_width(self) -> float:
        """Of its longer side: what "+-" may stand before."""
        return max(self.high - self.value, self.value - self.low)


@dataclass(frozen=True, slots=True)
class Comparison:
    """a - b over the same units, with two p-values of 'no difference'."""

    difference: Estimate
    p_t: float
    p_flip: float


def mean(
    values_M: ArrayLike, confidence: float = 0.95, within: tuple[float, float] | None = None
) -> Estimate:
    """Mean over problems with a t interval of M - 1 degrees of freedom; NaN units are left out.

    Args:
        within: what every value lies between, (0, 1) of a share. Where all problems agree there is
            no spread; the interval then allows for those, up to 1 - (alpha / 2)^(1 / M) of all,
            that were not drawn and may lie anywhere in it (Clopper and Pearson's, of 0 or 1).
    """
    kept = _finite(values_M)
    if not kept.size:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    centre = float(kept.mean())
    if kept.size == 1:
        return Estimate(centre, float("nan"), float("nan"), 1)
    if within is not None and np.ptp(kept) < SAME:
        unlike = 1 - ((1 - confidence) / 2) ** (1 / kept.size)
        low, high = (centre + unlike * (edge - centre) for edge in within)
        return Estimate(centre, float(low), float(high), int(kept.size))
    error = kept.std(ddof=1) / np.sqrt(kept.size)
    from scipy import stats  # here, so that reading a recipe stays quick

    half = float(stats.t.ppf(0.5 + confidence / 2, kept.size - 1) * error)
    return Estimate(centre, centre - half, centre + half, int(kept.size))


def over_samples(values: ArrayLike) -> Floats:
    """Mean over the samples of [M, S] or [M, S, J], unknown ones (NaN) apart; NaN of none."""
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known, values, 0).sum(axis=1) / known.sum(axis=1)
    return mean


def fixed_set_error(correct_MS: ArrayLike) -> float:
    """Standard error of the mean over these very problems: sampling noise alone.

    (1/M) sqrt(sum_i p_i (1 - p_i) / (n_i - 1)); NaN samples (unknown verdicts) are left out.

    Raises:
        ValueError: a problem has fewer than two samples.
    """
    correct_MS = np.asarray(correct_MS, dtype=np.float64)
    counts_M = (~np.isnan(correct_MS)).sum(axis=1)
    if counts_M.min(initial=2) < 2:
        raise ValueError("samples: the fixed-set error needs at least 2 samples of every problem")
    rates_M = np.nanmean(correct_MS, axis=1)
    return float(np.sqrt((rates_M * (1 - rates_M) / (counts_M - 1)).sum()) / len(rates_M))


def population_error(values_M: ArrayLike) -> float:
    """Standard error of the mean as an estimate for all problems of the kind: sd / sqrt(M).

    It holds the sampling noise too, and does not go to 0 with more samples; NaN units are left out,
    and of fewer than two nothing is said (NaN).
    """
    kept = _finite(values_M)
    return float(kept.std(ddof=1) / np.sqrt(kept.size)) if kept.size > 1 else float("nan")


def pass_at_k(samples: ArrayLike, correct: ArrayLike, k: int) -> Floats:
    """P(at least one of k samples drawn without replacement is right), per problem.

    1 - C(n - c, k) / C(n, k), unbiased (Chen et al. 2021, arXiv:2107.03374).

    Raises:
        ValueError: k is not in 1..n.
    """
    n, c = np.broadcast_arrays(np.asarray(samples), np.asarray(correct))
    if k < 1 or n.min() < k:
        raise ValueError(f"k: {k} is not in 1..{n.min()}, the samples of a problem; lower k")
    # C(n - c, k) / C(n, k) as k draws that all miss: no overflow, and 0 where k > n - c.
    drawn = np.arange(k)
    misses = np.maximum((n - c)[..., None] - drawn, 0) / (n[..., None] - drawn)
    return 1.0 - misses.prod(axis=-1)


def pass_at(correct_MS: ArrayLike, k: int) -> Floats:
    """pass@k per problem of samples that are right, wrong or unknown (NaN); NaN where too few are
    known.

    Raises:
        ValueError: k is not in 1..S.
    """
    correct_MS = np.asarray(correct_MS, dtype=np.float64)
    if not 1 <= k <= correct_MS.shape[1]:
        most = correct_MS.shape[1]
        raise ValueError(f"k: {k} is not in 1..{most}, the samples of a problem; lower k")
    known_M = (~np.isnan(correct_MS)).sum(axis=1)
    out = np.full(len(correct_MS), np.nan)
    enough = known_M >= k
    if enough.any():
        out[enough] = pass_at_k(known_M[enough], np.nansum(correct_MS[enough], axis=1), k)
    return out


def paired(a_M: ArrayLike, b_M: ArrayLike, seed: int = 0) -> Comparison:
    """a - b over the same problems (or seeds): t interval, t test and sign-flip test."""
    differences_M = _finite(np.asarray(a_M, dtype=np.float64) - np.asarray(b_M, dtype=np.float64))
    difference = mean(differences_M)
    return Comparison(difference, paired_t(differences_M), sign_flip(differences_M, seed=seed))


def paired_t(differences_M: ArrayLike) -> float:
    """Two-sided p of the paired t test; NaN with fewer than two units, 1 where all are zero."""
    d_M = np.asarray(differences_M, dtype=np.float64)
    if d_M.size < 2:
        return float("nan")
    error = d_M.std(ddof=1) / np.sqrt(d_M.size)
    if error == 0:
        return 1.0 if d_M[0] == 0 else 0.0
    from scipy import stats

    return float(2 * stats.t.sf(abs(d_M.mean() / error), d_M.size - 1))


def sign_flip(differences_M: ArrayLike, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the sign-flip permutation test of the mean difference.

    Exact (every flip) up to `EXACT_FLIPS` units, else `draws` random flips with the +1 rule, so
    that p is never 0. With M units p cannot be below 2^(1-M).
    """
    d_M = np.asarray(differences_M, dtype=np.float64)
    if not d_M.size:
        return float("nan")
    observed = abs(d_M.sum()) - 1e-12 * np.abs(d_M).sum()  # equal sums differ by rounding
    if d_M.size <= EXACT_FLIPS:
        bits = np.arange(2**d_M.size)[:, None] >> np.arange(d_M.size) & 1
        return float((np.abs((1 - 2 * bits) @ d_M) >= observed).mean())
    rng, hits = np.random.default_rng(seed), 0
    for block in np.array_split(np.arange(draws), max(1, draws * d_M.size // BLOCK)):
        signs = rng.integers(0, 2, (len(block), d_M.size)) * 2 - 1
        hits += int((np.abs(signs @ d_M) >= observed).sum())
    return (1 + hits) / (1 + draws)


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], Floats],
    units: int,
    draws: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    method: Method = "percentile",
) -> Estimate:
    """Bootstrap over problems.

    `statistic` maps indices [draws, M] to values [draws]; it is called with the identity too.
    'percentile' takes those that make it as wide as a t interval (`bca.widened`). 'bca' corrects
    them for bias and skew instead; the plain percentiles where it cannot.
    """
    value = float(statistic(np.arange(units)[None])[0])
    if units < 2:
        return Estimate(value, float("nan"), float("nan"), units)
    rng = np.random.default_rng(seed)
    blocks = np.array_split(np.arange(draws), max(1, draws * units // BLOCK))
    resampled = np.concatenate(
        [statistic(rng.integers(0, units, (len(block), units))) for block in blocks]
    )
    edges = np.array([0.5 - confidence / 2, 0.5 + confidence / 2])
    if method == "percentile":
        edges = bca.widened(edges, units)
    else:
        edges = bca.corrected(edges, value, resampled, statistic, units)
    # Ratios may be infinite in a resample: an order statistic stays one, interpolation gives NaN.
    low, high = np.quantile(resampled, edges, method="inverted_cdf")
    return Estimate(value, float(low), float(high), units)


def by_influence(
    value: float, influence_M: ArrayLike, confidence: float = 0.95, positive: bool = False
) -> Estimate:
    """t interval of a smooth function of means over problems (delta method).

    Args:
        influence_M: how much each problem moves it: the sum over means of slope times value.
        positive: the function is above 0 and the influence is on its logarithm: the interval is
            then one of factors, and never below 0.
    """
    influence = np.asarray(influence_M, dtype=np.float64)
    spread = mean(influence - influence.mean(), confidence) if len(influence) else mean([])
    half = spread.half_width
    low, high = (
        (value * np.exp(-half), value * np.exp(half)) if positive else (value - half, value + half)
    )
    return Estimate(value, float(low), float(high), len(influence))


def ratio(
    above_M: ArrayLike,
    below_M: ArrayLike,
    draws: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    method: Literal["t"] | Method = "t",
) -> Estimate:
    """Ratio of sums over problems; those with a NaN are left out.

    't' is an interval of factors, by the influence of each problem on the log of the ratio: where
    the truth was known it covered best (tests/bench/coverage.py). The others are bootstraps. Where
    a sum is 0 there is no interval.
    """
    above, below = known_of(above_M, below_M)
    if not len(above):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    if method == "t":
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(above.sum() / below.sum())
            return by_influence(
                value, above / above.mean() - below / below.mean(), confidence, True
            )

    def statistic(index: NDArray[np.intp]) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return above[index].sum(axis=1) / below[index].sum(axis=1)

    return bootstrap(statistic, len(above), draws, seed, confidence, method)


def known_of(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    """Of two arrays over the same problems, those of which all numbers of both are known."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    known = ~np.isnan(a + b).reshape(len(a), -1).any(axis=1)
    return a[known], b[known]


def quantile(values_MS: ArrayLike, q: float, confidence: float = 0.95) -> Estimate:
    """Quantile of all samples, NaN apart.

    The interval is that of the share of samples up to it, a ratio of sums over problems, read off
    the same samples (Woodruff 1952, JASA 47); of the shares with and without those that equal it
    the one that is less sure.
    """
    values_MS = np.asarray(values_MS, dtype=np.float64)
    flat = values_MS[~np.isnan(values_MS)]
    if not flat.size:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    value = float(np.quantile(flat, q))
    count_M = (~np.isnan(values_MS)).sum(axis=1)
    half = 0.0
    for below_M in ((values_MS < value).sum(axis=1), (values_MS <= value).sum(axis=1)):
        influence_M = (below_M - below_M.sum() / count_M.sum() * count_M) / count_M.mean()
        half = max(half, mean(influence_M, confidence).half_width)
    if len(values_MS) < 2:
        return Estimate(value, float("nan"), float("nan"), len(values_MS))
    low, high = np.quantile(flat, np.clip([q - half, q + half], 0, 1))
    return Estimate(value, float(low), float(high), len(values_MS))


def deviation(values_MS: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Standard deviation of all samples, NaN apart; t of each problem's influence on its log."""
    values_MS = np.asarray(values_MS, dtype=np.float64)
    known_MS = ~np.isnan(values_MS)
    if not known_MS.any():
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    off_MS = np.where(known_MS, values_MS - values_MS[known_MS].mean(), 0)
    square_M, count_M = (off_MS**2).sum(axis=1), known_MS.sum(axis=1)
    with np.errstate(invalid="ignore"):
        influence_M = (square_M / square_M.mean() - count_M / count_M.mean()) / 2
    value = float(np.sqrt(square_M.sum() / count_M.sum()))
    return by_influence(value, influence_M, confidence, positive=True)


def multiplicity(index_DM: NDArray[np.intp]) -> Floats:
    """[D, M]: how often each problem is in each resample."""
    draws, units = index_DM.shape
    flat = (index_DM + units * np.arange(draws)[:, None]).ravel()
    return np.bincount(flat, minlength=draws * units).reshape(draws, units).astype(np.float64)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation; ties share their mean rank; NaN where one of both is constant."""
    a_V, b_V = (np.unique(np.ravel(v), return_inverse=True)[1] for v in (a, b))
    return coded_spearman(a_V, b_V, np.ones(len(a_V)))


def ranks(values: ArrayLike) -> Floats:
    """From 1; equal values share the mean of their ranks."""
    place_V = np.unique(np.ravel(values), return_inverse=True)[1]
    return mean_ranks(place_V, np.ones(len(place_V)))


def coded_spearman(a_V: NDArray[np.intp], b_V: NDArray[np.intp], times_V: Floats) -> float:
    """`spearman` of values that are places in a sorted list, each pair there so many times."""
    x, y = (mean_ranks(v, times_V) for v in (a_V, b_V))
    total = times_V.sum()
    x, y = x - times_V @ x / total, y - times_V @ y / total
    scale = np.sqrt((times_V @ x**2) * (times_V @ y**2))
    return float((times_V * x) @ y / scale) if scale else float("nan")


def mean_ranks(place_V: NDArray[np.intp], times_V: Floats) -> Floats:
    """`ranks` of such values."""
    counts = np.bincount(place_V, times_V)
    mean: Floats = (np.cumsum(counts) - (counts - 1) / 2)[place_V]
    return mean


def prior_weights(budgets: Sequence[int], prior: Prior) -> Floats:
    """Weight of each budget, [J], summing to 1.

    equal: 1/J. uniform, log: the trapezoid rule over the span of the grid, in B or in log2 B (a
    budget of 0 then sits one octave below the smallest other one). linear: in proportion to B.
    final: the largest alone.

    Raises:
        ValueError: unknown prior, or budgets that do not ascend.
    """
    grid = np.asarray(budgets, dtype=np.float64)
    if not grid.size or (np.diff(grid) <= 0).any() or grid[0] < 0:
        raise ValueError(f"budgets: {list(budgets)} must be ascending numbers of 0 or more")
    if prior not in get_args(Prior):
        raise ValueError(f"prior: '{prior}' is not one of {', '.join(get_args(Prior))}")
    if prior == "equal":
        return np.full(grid.size, 1 / grid.size)
    if prior == "final" or grid.size == 1:
        return np.eye(grid.size)[-1]
    if prior == "linear":
        return grid / grid.sum()
    if prior == "log":
        positive = grid[grid > 0]
        grid = np.log2(np.maximum(grid, positive[0] / 2))
    gaps = np.diff(grid)
    weights = np.append(gaps, 0) + np.append(0, gaps)
    return weights / weights.sum()


def under_caps(lengths: ArrayLike, cap: int) -> Floats:
    """Share of the caps 1 .. `cap` that a thought of each length stays within."""
    kept: Floats = np.maximum(cap + 1 - np.maximum(np.asarray(lengths), 1), 0) / cap
    return kept


def anytime(accuracy_J: ArrayLike, budgets: Sequence[int], prior: Prior = "equal") -> Floats:
    """Any-time accuracy: sum_j P_j acc(b_j) over the last axis (Qi et al., arXiv:2505.13438)."""
    return np.asarray(accuracy_J, dtype=np.float64) @ prior_weights(budgets, prior)


def _finite(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]
