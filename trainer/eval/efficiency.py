"""What right answers cost: scalars over accuracy and tokens, with intervals over problems.

Shape suffixes: M problems, J columns, the full run last; A models or ways of asking. Accuracies are
fractions. Problems with a NaN are left out of both numbers. Intervals are over whole problems, so
that accuracy and tokens stay paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.eval import statistics
from trainer.eval.statistics import Estimate, Floats

SCALE, WEIGHT = 10_000, 10
"""OckScore's: tokens that cost ln 2 of `WEIGHT` points."""
NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)
MODES: Mapping[str, tuple[float, float]] = {"medium": (0.5, 0.10), "low": (0.75, 0.15)}
"""ThinkDial's (arXiv:2508.18773): mode -> (least share of tokens saved, accuracy drop below)."""


def tokens_per_solve(accuracy_M: ArrayLike, tokens_M: ArrayLike) -> Estimate:
    """sum T / sum A: tokens paid per right answer, finite as soon as anything is solved."""
    return statistics.ratio(tokens_M, accuracy_M)


def e3(accuracy_M: ArrayLike, tokens_M: ArrayLike) -> Estimate:
    """A * (A / T) = A^2 / T of the means, per token (Plan-and-Budget, arXiv:2505.16122)."""
    accuracy, tokens = statistics.known_of(accuracy_M, tokens_M)
    if not len(accuracy):
        return NOTHING
    a, t = float(accuracy.mean()), float(tokens.mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        influence_M = 2 * accuracy / np.float64(a) - tokens / np.float64(t)
        return statistics.by_influence(float(np.float64(a) ** 2 / t), influence_M, positive=True)


def ockscore(accuracy_M: ArrayLike, tokens_M: ArrayLike) -> Estimate:
    """100 A - 10 ln(1 + T / 10^4), as OckBench's code computes it (arXiv:2511.05722).

    Its page prints log(T / 10^4), without the 1 that keeps short answers from infinite scores. The
    tokens are ours, thought and answer; OckBench's total counts the prompt as well.
    """
    accuracy, tokens = statistics.known_of(accuracy_M, tokens_M)
    if not len(accuracy):
        return NOTHING
    value = 100 * accuracy.mean() - WEIGHT * np.log1p(tokens.mean() / SCALE)
    influence_M = 100 * accuracy - WEIGHT * tokens / (SCALE + tokens.mean())
    return statistics.by_influence(float(value), influence_M)


def cost_of_pass(accuracy_M: ArrayLike, cost_M: ArrayLike) -> Floats:
    """Expected cost until a right answer, cost / p of each problem (arXiv:2504.13359).

    Infinite where no sample is right: say the solved share beside it. Plugging in an estimate of p
    overstates the cost of problems that are hardly ever solved, less with more samples.
    """
    p_M, cost = np.asarray(accuracy_M, dtype=np.float64), np.asarray(cost_M, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p_M > 0, cost / p_M, np.where(np.isnan(p_M + cost), np.nan, np.inf))


def frontier(costs_AM: ArrayLike) -> Floats:
    """Cost of pass of each problem by whoever solves it cheapest, a human if one is a row."""
    costs_AM = np.asarray(costs_AM, dtype=np.float64)
    cheapest_M: Floats = np.where(np.isnan(costs_AM), np.inf, costs_AM).min(axis=0)
    return cheapest_M


def typical(cost_M: ArrayLike, draws: int = 2000, seed: int = 0) -> Estimate:
    """Median over problems, which infinite costs leave finite while half are solved."""
    cost = np.asarray(cost_M, dtype=np.float64)
    cost = cost[~np.isnan(cost)]
    if not len(cost):
        return NOTHING

    def statistic(index: NDArray[np.intp]) -> Floats:
        return np.quantile(cost[index], 0.5, axis=1, method="inverted_cdf")

    return statistics.bootstrap(statistic, len(cost), draws, seed)


def compression(
    accuracy_MJ: ArrayLike, tokens_MJ: ArrayLike, drop: float, draws: int = 2000, seed: int = 0
) -> Estimate:
    """CR(drop) = 1 - min{T_j : A_j >= A_full - drop} / T_full: tokens that can be saved.

    Which budget passes is decided again in every resample. Of many budgets a lucky one may pass:
    what it claims is proven on other problems, or by `claims.not_worse` at one budget.

    Args:
        drop: in accuracy, 0.01 a point.
    """
    accuracy, tokens = statistics.known_of(accuracy_MJ, tokens_MJ)
    if not len(accuracy):
        return NOTHING

    def statistic(index: NDArray[np.intp]) -> Floats:
        times_DM = statistics.multiplicity(index) / len(accuracy)
        a_DJ, t_DJ = times_DM @ accuracy, times_DM @ tokens
        passes_DJ = a_DJ >= a_DJ[:, -1:] - drop - 1e-12
        least_D = np.where(passes_DJ, t_DJ, np.inf).min(axis=1)
        with np.errstate(invalid="ignore"):
            return 1 - least_D / t_DJ[:, -1]

    return statistics.bootstrap(statistic, len(accuracy), draws, seed)


@dataclass(frozen=True, slots=True)
class Badge:
    """One mode against the full one."""

    saved: float
    """Share of the full mode's tokens."""
    drop: float
    """In accuracy, absolute."""
    relative_drop: float
    """Over the full mode's accuracy."""
    wanted: float
    allowed: float
    absolute: bool
    """Saves at least `wanted`, and the absolute drop is below `allowed`."""
    relative: bool
    """The same of the relative drop: never easier, since accuracy is at most 1."""


def badge(
    accuracy: Mapping[str, float], tokens: Mapping[str, float], full: str = "high"
) -> dict[str, Badge]:
    """ThinkDial's thresholds of the modes that were run: half the tokens for less than 10%, a
    quarter for less than 15%.

    The paper says 'performance degradation' in percent and not of what: both readings are given.

    Raises:
        ValueError: the full mode was not run.
    """
    if full not in accuracy:
        raise ValueError(f"full: '{full}' is none of the modes run: {', '.join(accuracy)}")
    out = {}
    for mode in (m for m in MODES if m in accuracy and m != full):
        wanted, allowed = MODES[mode]
        saved = 1 - tokens[mode] / tokens[full] if tokens[full] else float("nan")
        drop = accuracy[full] - accuracy[mode]
        relative = drop / accuracy[full] if accuracy[full] else float("nan")
        enough = saved >= wanted
        out[mode] = Badge(
            saved,
            drop,
            relative,
            wanted,
            allowed,
            bool(enough and drop < allowed),
            bool(enough and relative < allowed),
        )
    return out


ACT_WEIGHTS: Mapping[str, float] = {"high": 1.0, "medium": 0.5, "low": 0.5}
"""Share of accuracy in a mode's ACT score; what is left is that of tokens saved."""


def act(
    accuracy: Mapping[str, float],
    cost: Mapping[str, float],
    base_accuracy: float,
    base_cost: float,
    weights: Mapping[str, float] = ACT_WEIGHTS,
) -> tuple[float, dict[str, float]]:
    """ThinkDial's ACT score (arXiv:2508.18773, eqs. 6 and 7): the mean over modes, and each mode's.

    w acc / acc_base + (1 - w) (1 - cost / cost_base), a fraction; the base must be right at times.

    Args:
        accuracy, cost: per mode; cost in mean tokens.
    """
    each = {
        mode: weights[mode] * accuracy[mode] / base_accuracy
        + (1 - weights[mode]) * (1 - cost[mode] / base_cost)
        for mode in accuracy
    }
    return sum(each.values()) / len(each), each
