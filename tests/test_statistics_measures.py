"""Risk: a scalar of efficiency, adherence or over-thinking is not what its formula says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from trainer.eval import adherence, efficiency, statistics, thinking

Floats = NDArray[np.float64]
NAN = float("nan")


def edges_of(units: int) -> list[float]:
    """Percentiles of a bootstrap that is as wide as a t interval."""
    away = scipy_stats.t.ppf(0.975, units - 1) * math.sqrt(units / (units - 1))
    return [float(scipy_stats.norm.cdf(z)) for z in (-away, away)]


# Efficiency


def test_scalars_by_hand() -> None:
    accuracy, tokens = [1.0, 0.5, NAN, 0.0], [100.0, 300.0, 50.0, 500.0]
    assert efficiency.tokens_per_solve(accuracy, tokens).value == pytest.approx(900 / 1.5)
    assert efficiency.e3(accuracy, tokens).value == pytest.approx(0.5**2 / 300)
    ock = efficiency.ockscore(accuracy, tokens)
    assert ock.value == pytest.approx(50 - 10 * math.log(300 / 10_000 + 1))
    assert ock.n == 3


def test_intervals_of_scalars_agree_with_a_bootstrap() -> None:
    rng = np.random.default_rng(9)
    p = rng.beta(2, 1, 300)
    accuracy, tokens = rng.binomial(8, p) / 8, 300 + 2000 * (1 - p) * rng.lognormal(0, 0.3, 300)

    def drawn(formula: object) -> statistics.Estimate:
        def statistic(index: NDArray[np.intp]) -> Floats:
            return formula(accuracy[index].mean(axis=1), tokens[index].mean(axis=1))  # type: ignore[operator, no-any-return]

        return statistics.bootstrap(statistic, 300, 4000)

    for ours, other in (
        (efficiency.e3(accuracy, tokens), drawn(lambda a, t: a**2 / t)),
        (
            efficiency.ockscore(accuracy, tokens),
            drawn(lambda a, t: 100 * a - 10 * np.log1p(t / 1e4)),
        ),
        (efficiency.tokens_per_solve(accuracy, tokens), drawn(lambda a, t: t / a)),
    ):
        assert ours.value == pytest.approx(other.value)
        assert (ours.low, ours.high) == pytest.approx((other.low, other.high), rel=0.03)


def test_scalars_of_nothing_and_of_nothing_solved() -> None:
    for scalar in (efficiency.e3, efficiency.ockscore, efficiency.tokens_per_solve):
        assert scalar([NAN], [3.0]).n == 0
        assert math.isnan(scalar([NAN], [3.0]).value)
    unsolved = efficiency.e3([0.0, 0.0], [10.0, 20.0])
    assert unsolved.value == 0
    assert efficiency.tokens_per_solve([0.0], [10.0]).value == math.inf


def test_cost_of_pass_and_its_frontier() -> None:
    costs = efficiency.cost_of_pass([0.5, 0.0, NAN, 1.0], [10.0, 10.0, 10.0, 7.0])
    assert costs == pytest.approx([20, math.inf, NAN, 7], nan_ok=True)
    human = np.full(4, 15.0)
    assert efficiency.frontier([costs, human]) == pytest.approx([15, 15, 15, 7])
    assert efficiency.typical(costs).value == 20  # of 7, 20 and infinity
    assert efficiency.typical([1.0, math.inf, math.inf]).value == math.inf
    assert efficiency.typical([]).n == 0


@given(
    arrays.arrays(np.float64, (5, 4), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    arrays.arrays(np.float64, (5, 4), elements=st.integers(1, 9).map(float)),
    st.sampled_from([0.0, 0.05, 0.2]),
)
@settings(max_examples=60, deadline=None)
def test_compression_is_the_cheapest_budget_that_passes(
    accuracy: Floats, tokens: Floats, drop: float
) -> None:
    def brute(rows: list[int]) -> float:
        a, t = accuracy[rows].mean(axis=0), tokens[rows].mean(axis=0)
        return 1 - min(t[j] for j in range(4) if a[j] >= a[-1] - drop - 1e-9) / t[-1]

    found = efficiency.compression(accuracy, tokens, drop, draws=50, seed=3)
    assert found.value == pytest.approx(brute([0, 1, 2, 3, 4]))
    index = np.random.default_rng(3).integers(0, 5, (50, 5)).tolist()
    low, high = np.quantile([brute(r) for r in index], edges_of(5), method="inverted_cdf")
    assert (found.low, found.high) == pytest.approx((low, high))


def test_badge_says_both_readings_of_a_drop() -> None:
    accuracy = {"high": 0.60, "medium": 0.53, "low": 0.51}
    tokens = {"high": 1000.0, "medium": 500.0, "low": 300.0}
    found = efficiency.badge(accuracy, tokens)
    medium, low = found["medium"], found["low"]
    assert (medium.saved, medium.drop) == pytest.approx((0.5, 0.07))
    assert medium.relative_drop == pytest.approx(0.07 / 0.6)
    assert (medium.absolute, medium.relative) == (True, False)
    assert (low.saved, low.absolute, low.relative) == (pytest.approx(0.7), False, False)
    assert list(efficiency.badge({"high": 1.0, "none": 0.1}, {"high": 9.0, "none": 1.0})) == []
    with pytest.raises(ValueError, match="full: 'high' is none of the modes run: low"):
        efficiency.badge({"low": 1.0}, {"low": 1.0})


# Adherence


def test_kept_by_hand() -> None:
    found = adherence.kept([[100.0, 110.0, 50.0], [NAN, 120.0, 100.0]], 100)
    assert found["deviation"] == pytest.approx([0.2, 0.1])
    assert found["violation"] == pytest.approx([1 / 3, 0.5])
    assert found["violation10"] == pytest.approx([0, 0.5])  # 110 is within 10%
    assert found["overshoot"] == pytest.approx([0.1 / 3, 0.1])
    assert found["utilisation"] == pytest.approx([260 / 300, 1.1])
    nothing = adherence.kept([[0.0, 3.0]], 0)
    assert nothing["violation"] == pytest.approx([0.5])
    assert np.isnan([nothing["deviation"], nothing["overshoot"], nothing["utilisation"]]).all()


def test_rank_correlation_is_scipys_and_its_resamples_are_of_problems() -> None:
    rng = np.random.default_rng(2)
    wanted = np.array([8.0, 16.0, 32.0])
    used = np.round(wanted[:, None, None] * rng.lognormal(0, 1, (3, 6, 4)))
    used[1, 2, 3] = NAN
    flat = np.broadcast_to(wanted[:, None, None], used.shape)
    known = ~np.isnan(used)
    found = adherence.rank_correlation(wanted, used, draws=30, seed=1)
    assert found.value == pytest.approx(scipy_stats.spearmanr(flat[known], used[known]).statistic)
    drawn = []
    for index in np.random.default_rng(1).integers(0, 6, (30, 6)):
        a, b = flat[:, index].ravel(), used[:, index].ravel()
        drawn.append(scipy_stats.spearmanr(a[~np.isnan(b)], b[~np.isnan(b)]).statistic)
    low, high = np.quantile(drawn, edges_of(6), method="inverted_cdf")
    assert (found.low, found.high) == pytest.approx((low, high))
    assert math.isnan(adherence.rank_correlation([8.0], used[:1]).value)


def test_slope_is_least_squares_on_logarithms() -> None:
    rng = np.random.default_rng(5)
    wanted = np.array([0.0, 8.0, 16.0, 64.0])
    used = np.round(wanted[:, None, None] * rng.lognormal(0, 0.5, (4, 5, 3)))
    used[2, 0, 1] = NAN
    used[1, 1, 0] = 0.0  # counts as one token
    each = []
    for m in range(5):
        x = np.repeat(np.log(wanted[1:]), 3)
        y = np.log(np.maximum(used[1:, m].ravel(), 1))
        each.append(scipy_stats.linregress(x[~np.isnan(y)], y[~np.isnan(y)]).slope)
    found = adherence.slope(wanted, used)
    assert (found.value, found.low) == pytest.approx(
        (statistics.mean(each).value, statistics.mean(each).low)
    )
    exact = np.repeat(np.array([4.0, 16.0])[:, None, None], 3, axis=1)
    assert adherence.slope([4.0, 16.0], exact).value == pytest.approx(1)
    assert math.isnan(adherence.slope([4.0], exact[:1]).value)


def test_leak_is_a_ratio_of_sums() -> None:
    assert adherence.leak([30.0, 10.0], [10.0, 10.0]).value == 2


# Over-thinking and under-thinking, by loops over samples


verdicts = arrays.arrays(np.float64, (2, 3, 4), elements=st.sampled_from([0.0, 1.0, 1.0, NAN]))
lengths = arrays.arrays(np.int64, (2, 3), elements=st.integers(0, 40))
GRID = np.array([0, 8, 16])


def think_of(length_MS: NDArray[np.int64]) -> Floats:
    """Tokens at the cuts 0, 8 and 16 and in the end."""
    return np.concatenate(
        [np.minimum(length_MS[..., None], GRID), length_MS[..., None]], axis=-1
    ).astype(float)


def mean_of(values: list[float]) -> float:
    return float(np.mean(values)) if values else NAN


@given(verdicts, lengths)
@settings(max_examples=150, deadline=None)
def test_over_and_under_thinking_are_their_definitions(
    correct: Floats, length: NDArray[np.int64]
) -> None:
    think = think_of(length)
    harm, waste = thinking.harm(correct), thinking.waste(correct, think)
    left = thinking.left_right(correct, think)
    for m in range(2):
        harmed, wasted, left_over = [], [], []
        for s in range(3):
            row, spent, end = correct[m, s].tolist(), think[m, s].tolist(), correct[m, s, -1]
            if end == end:
                harmed.append(float(end == 0 and 1.0 in row[:-1]))
            if end == 1:
                stable = next(j for j in range(4) if all(v == 1 for v in row[j:]))
                wasted.append(1 - spent[stable] / spent[-1] if spent[-1] else 0.0)
            if end == 0:
                first = next((j for j in range(4) if row[j] == 1), None)
                unused = 0.0 if first is None or not spent[-1] else 1 - spent[first] / spent[-1]
                left_over.append(unused)
        assert harm[m] == pytest.approx(mean_of(harmed), nan_ok=True)
        assert waste[m] == pytest.approx(mean_of(wasted), nan_ok=True)
        assert left[m] == pytest.approx(mean_of(left_over), nan_ok=True)


@given(verdicts, arrays.arrays(np.bool_, (2, 3, 4)))
@settings(max_examples=150, deadline=None)
def test_left_early_is_a_natural_stop_that_more_thought_would_have_mended(
    correct: Floats, forced: NDArray[np.bool_]
) -> None:
    found = thinking.left_early(correct, forced)
    for m in range(2):
        known = [[v for v in correct[m, :, j] if v == v] for j in range(4)]
        if not all(known):
            assert math.isnan(found[m])
            continue
        early = any(
            any(correct[m, s, j] == 0 and not forced[m, s, j] for s in range(3))
            and np.mean(known[later]) - np.mean(known[j]) >= 0.5 - 1e-9
            for j in range(4)
            for later in range(j + 1, 4)
        )
        assert found[m] == float(early)


def test_a_thought_of_no_tokens_wastes_nothing() -> None:
    assert thinking.waste([[[1.0, 1.0]]], [[[0.0, 0.0]]]) == pytest.approx([0])
