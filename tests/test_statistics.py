"""Risk: an interval or a test that says more, or less, than the data do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy import stats as scipy_stats

from tests import vectors
from trainer.eval import efficiency, statistics


def test_t_interval_covers_when_samples_of_a_problem_are_alike() -> None:
    """Problems with U-shaped success rates: t covers 95%, counting samples as units does not."""
    rng = np.random.default_rng(11)
    problems, samples, runs = 30, 8, 3000
    rates = rng.beta(0.3, 0.3, (runs, problems))  # mean 0.5
    outcomes = rng.random((runs, problems, samples)) < rates[..., None]
    t_hits = naive_hits = 0
    for outcome in outcomes:
        estimate = statistics.mean(outcome.mean(axis=1))
        t_hits += estimate.low <= 0.5 <= estimate.high
        p = outcome.mean()
        naive_hits += abs(p - 0.5) <= 1.96 * np.sqrt(p * (1 - p) / outcome.size)
    assert 0.93 < t_hits / runs < 0.965
    assert naive_hits / runs < 0.75


def test_mean_of_few_units() -> None:
    one = statistics.mean([0.25, np.nan])
    assert one.value == 0.25
    assert one.n == 1
    assert np.isnan([one.low, one.high]).all()
    none = statistics.mean([])
    assert none.n == 0
    assert np.isnan(none.value)
    low, high = scipy_stats.t.interval(0.95, 2, loc=2.0, scale=1 / np.sqrt(3))
    three = statistics.mean([1.0, 2.0, 3.0])
    assert (three.low, three.high) == pytest.approx((low, high))


def test_fixed_set_error_is_the_spread_over_repeated_sampling() -> None:
    rng = np.random.default_rng(5)
    rates = rng.beta(0.4, 0.4, 20)
    repeats = (rng.random((4000, 20, 6)) < rates[:, None]).astype(float)
    estimated = np.mean([statistics.fixed_set_error(r) ** 2 for r in repeats])
    assert estimated == pytest.approx(repeats.mean(axis=(1, 2)).var(), rel=0.08)
    with pytest.raises(ValueError, match="samples"):
        statistics.fixed_set_error(np.ones((3, 1)))


@given(st.integers(1, 8), st.data())
@settings(max_examples=60, deadline=None)
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    outcomes = [i < c for i in range(n)]
    brute = np.mean([any(subset) for subset in itertools.combinations(outcomes, k)])
    assert statistics.pass_at_k([n], [c], k)[0] == pytest.approx(brute)


def test_pass_at_k_refuses_more_than_was_sampled() -> None:
    with pytest.raises(ValueError, match=r"k: 5 is not in 1\.\.4"):
        statistics.pass_at_k([8, 4], [1, 1], 5)


def test_paired_t_is_scipys_and_ignores_what_problems_share() -> None:
    rng = np.random.default_rng(3)
    shared = rng.random(40) * 10
    a, b = shared + rng.normal(0.1, 0.2, 40), shared
    result = statistics.paired(a, b)
    assert result.p_t == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)
    assert result.difference.high - result.difference.low < 0.3
    assert statistics.paired_t([0.0, 0.0]) == 1.0
    assert np.isnan(statistics.paired_t([1.0]))


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=7), st.sampled_from([1, 3, 10]))
@example([7, 3, 3, -12, -13, 3, 13, -4], 10)  # sums that are equal but for rounding
@settings(max_examples=100, deadline=None)
def test_sign_flip_is_exact_for_few_units(values: list[int], parts: int) -> None:
    flips = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    brute = np.mean([f >= abs(sum(values)) for f in flips])
    assert statistics.sign_flip(np.array(values) / parts) == pytest.approx(brute)


def test_sign_flip_keeps_its_level_and_has_power() -> None:
    rng = np.random.default_rng(8)
    null = [statistics.sign_flip(rng.standard_t(3, 25), 400, seed=i) for i in range(600)]
    assert 0.03 < np.mean(np.array(null) <= 0.05) < 0.075
    assert statistics.sign_flip(rng.normal(1.0, 1.0, 60)) < 0.001


def test_ratio_interval_covers_and_survives_unsolved_resamples() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for run in range(300):
        difficulty = rng.random(80)
        tokens, solved = 20 + 60 * difficulty, (rng.random(80) > difficulty).astype(float)
        estimate = statistics.ratio(tokens, solved, draws=400, seed=run)
        hits += estimate.low <= 50 / 0.5 <= estimate.high
    assert 0.90 < hits / 300 < 0.985
    rare = statistics.ratio([10.0] * 5, [0, 0, 0, 0, 1.0], method="percentile")
    assert rare.value == 50
    assert rare.high == np.inf
    assert statistics.ratio([10.0, 10.0], [0.0, 0.0]).value == np.inf


def test_quantile_resamples_problems_not_samples() -> None:
    """Ten copies of a sample add nothing: the interval is that of the problems."""
    values = np.random.default_rng(4).normal(size=(30, 1))
    single = statistics.quantile(values, 0.5)
    copies = statistics.quantile(np.repeat(values, 11, axis=1), 0.5)
    assert copies.value == pytest.approx(single.value, abs=0.1)
    assert copies.half_width > 0.7 * single.half_width


def test_priors_by_hand() -> None:
    weights = statistics.prior_weights
    assert weights([8, 16, 32], "equal") == pytest.approx([1 / 3] * 3)
    assert weights([0, 4, 8], "uniform") == pytest.approx([0.25, 0.5, 0.25])
    assert weights([0, 8, 16, 32], "log") == pytest.approx([1 / 6, 1 / 3, 1 / 3, 1 / 6])
    assert weights([10, 30], "linear") == pytest.approx([0.25, 0.75])
    assert weights([10, 30], "final") == pytest.approx([0, 1])
    curve = [0.2, 0.6, 0.8]
    area = integrate.trapezoid(curve, [0, 10, 30]) / 30
    assert statistics.anytime(curve, [0, 10, 30], "uniform") == pytest.approx(area)
    with pytest.raises(ValueError, match="ascending"):
        weights([16, 8], "equal")
    with pytest.raises(ValueError, match="equal, uniform, log"):
        weights([8], "cubic")  # type: ignore[arg-type]


@given(
    st.lists(st.integers(0, 4096), min_size=1, max_size=9, unique=True).map(sorted),
    st.sampled_from(["equal", "uniform", "log", "linear", "final"]),
)
def test_priors_are_distributions(budgets: list[int], prior: statistics.Prior) -> None:
    if prior == "linear" and sum(budgets) == 0:
        budgets = [0, 1]
    weights = statistics.prior_weights(budgets, prior)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert statistics.anytime(np.full(len(budgets), 0.7), budgets, prior) == pytest.approx(0.7)


@vectors.each("thinkdial_act_score")
def test_act_score_of_the_vectors(case: vectors.Case) -> None:
    given = case["inputs"]
    act, modes = efficiency.act(given["acc"], given["cost"], given["base_acc"], given["base_cost"])
    vectors.check(case, {"act": act, "per_mode": modes})
