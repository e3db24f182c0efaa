"""Knapsack: solved exactly, bounds and total kept, a stated rule for each outcome, state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.allocation import knapsack
from samplers.allocation.knapsack import (
    Allocator,
    Config,
    evenly,
    information,
    mixed_chance,
    sizes_of,
    solve,
)
from tests import vectors
from tests.bench.knapsack import dynamic_programme
from trainer.config import resolve

NAN = float("nan")
PLAIN = Config(low=2, up=24)


def worth(sizes: Any, rates: Any) -> float:
    return float(information(sizes, rates).sum())


@vectors.each("knapsack_value")
def test_value_vectors(case: vectors.Case) -> None:
    n, p = case["inputs"]["N"], case["inputs"]["p"]
    got = {"value": float(information(n, p))}
    if n > 1:  # the raw expression at 1 is 0 as well
        got["prob_nonzero_gradient"] = float(mixed_chance(n, p))
    vectors.check(case, got)


def test_the_chance_of_a_mixed_group_is_precise_for_rare_outcomes() -> None:
    assert mixed_chance(3, 1e-12) == pytest.approx(3e-12, rel=1e-9)
    assert mixed_chance(3, 1 - 2.0**-40) == pytest.approx(3 * 2.0**-40, rel=1e-9)
    assert mixed_chance([0.5, 0, 1], 0.5).tolist() == [0, 0, 0]


@vectors.each("knapsack_allocation")
def test_allocation_vectors(case: vectors.Case) -> None:
    given_ = case["inputs"]
    rates, total = given_["success_rates"], given_["total"]
    got = solve(rates, total, given_["n_low"], given_["n_up"])
    assert got.sum() == total
    assert got.min() >= given_["n_low"]
    assert got.max() <= given_["n_up"]
    vectors.check(case, {"best_value": worth(got, np.array(rates))})
    if case["expected"]["n_optimal"] == 1:
        vectors.check(case, {"one_optimal_allocation": got})


@vectors.each("knapsack_refcode")
def test_not_worse_than_the_released_code(case: vectors.Case) -> None:
    given_, want = case["inputs"], case["expected"]
    rates, n = np.array(given_["success_rates"]), given_["n_default"]
    visited = np.array(given_["valid"], dtype=bool)
    config = Config(low=given_["min_n"], up=given_["max_n"])
    got = sizes_of(config, np.where(visited, rates, NAN)[:, None], n)
    assert got.sum() == n * len(rates)
    assert got.max() <= config.up
    assert (got[~visited] == n).all()
    if "budget" in want:
        theirs = np.array(want["budget"])
        assert worth(got[visited], rates[visited]) >= worth(theirs[visited], rates[visited]) - 1e-12
        never = visited & (rates == 0)
        # what they give to exploration, ours does to a rollout or two, which the others get
        assert got[never].sum() >= min(theirs[never].sum() - 2, never.sum() * config.up)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_as_good_as_exhaustive(data: st.DataObject) -> None:
    count, modes = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    low = data.draw(st.integers(modes, 4))
    up = low + data.draw(st.integers(0, 12))
    rate = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5, 0.125, 1e-9, NAN]))
    rates = np.array(data.draw(st.lists(st.lists(rate, min_size=modes, max_size=modes),
                                        min_size=count, max_size=count)))  # fmt: skip
    total = data.draw(st.integers(low * count, up * count))
    value = data.draw(st.sampled_from([information, mixed_chance]))

    def of(n: Any) -> Any:  # of one prompt: its modes share n
        return sum(np.nan_to_num(value(n / modes, p_N[:, None])) for p_N in rates.T)

    best, _ = dynamic_programme(of(np.arange(low, up + 1)), low, total)
    got = solve(rates, total, low, up, value)
    assert got.sum() == total
    assert got.min() >= low
    assert got.max() <= up
    assert of(got[:, None]).sum() == pytest.approx(best, abs=1e-12)


def test_bounds_of_each_prompt_hold() -> None:
    got = solve([0.5, 0.5, 0.1], 30, [2, 3, 2], [4, 20, 10])
    assert got.tolist() == [4, 16, 10]
    assert solve([0.5, 0.5], 100, 2, 5).tolist() == [5, 5]
    assert solve([0.3] * 3, 12, 2, 8).tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="total=5 cannot be divided"):
        solve([0.5] * 3, 5, 2, 8)


@given(
    room=st.lists(st.integers(0, 9), min_size=1, max_size=8).map(np.array),
    amount=st.integers(0, 40),
)
def test_evenly(room: np.ndarray, amount: int) -> None:
    got = evenly(room, amount)
    assert got.sum() == min(amount, room.sum())
    assert (got >= 0).all()
    assert (got <= room).all()
    filled = got < room
    if filled.any():
        assert got.max() - got[filled].min() <= 1


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_all_is_spent_within_bounds(data: st.DataObject) -> None:
    rollouts = data.draw(st.integers(2, 12))
    config = Config(
        low=data.draw(st.integers(1, rollouts)),
        up=data.draw(st.integers(rollouts, 30)),
        enough=data.draw(st.sampled_from([0.5, 0.9, 1.0])),
    )
    rate = st.sampled_from([NAN, 0.0, 1.0, 0.5, 0.25, 0.01])
    modes = data.draw(st.integers(1, 3))
    row = st.lists(rate, min_size=modes, max_size=modes)
    rates = np.array(data.draw(st.lists(row, min_size=1, max_size=12)))
    got = sizes_of(config, rates, rollouts)
    assert got.sum() == rollouts * len(rates)
    assert got.min() >= config.low
    assert got.max() <= config.up


def test_each_outcome_has_its_rule() -> None:
    """Visited: medium, rare, never solved twice, always solved; and one never visited."""
    rates = np.array([0.5, 0.05, 0.0, 0.0, 1.0, NAN])[:, None]
    scarce = sizes_of(Config(low=2, up=64), rates, 4)
    assert scarce[2:].tolist() == [2, 2, 2, 4]
    assert scarce[:2].tolist() == solve([0.5, 0.05], 14, 2, 64).tolist()
    plenty = sizes_of(Config(low=2, up=64), rates, 16)
    assert plenty[4:].tolist() == [2, 16]
    assert abs(plenty[2] - plenty[3]) <= 1
    assert plenty[2] > 2  # explored with what the others do not need
    assert plenty[0] >= 5  # which is 2 and log(1 - 0.9) / log(0.5)
    assert sizes_of(Config(low=2, up=64, enough=1.0), rates, 16)[2:].tolist() == [2, 2, 2, 16]


def test_what_nobody_needs_is_spent_evenly() -> None:
    solved = np.ones((4, 1))
    assert sizes_of(PLAIN, solved, 8).tolist() == [8] * 4
    assert sizes_of(PLAIN, np.zeros((3, 1)), 8).tolist() == [8] * 3
    got = sizes_of(PLAIN, np.array([0.0, 1.0, 1.0, 1.0])[:, None], 16)
    assert got.tolist() == [24, 14, 13, 13]  # never solved first, to its bound
    half = sizes_of(Config(low=2, up=10), np.array([0.5, 1.0, NAN])[:, None], 8)
    assert half.tolist() == [10, 4, 10]


def test_modes_add_up() -> None:
    both, one = [0.3, 0.3], [0.3, 1.0]
    got = sizes_of(Config(low=2, up=64), np.array([both, one, [1.0, 1.0]]), 8)
    assert got[0] > got[1] > got[2] == 2
    never = sizes_of(Config(low=2, up=64), np.array([[0.0, 1.0], [1.0, 1.0]]), 8)
    assert never.tolist() == [14, 2]
    thin = sizes_of(Config(low=1, up=64), np.array([[0.5, NAN, NAN], [1.0, 1.0, 1.0]]), 8)
    assert thin.tolist() == [13, 3]  # each mode is sampled
    once = sizes_of(Config(low=1, up=64), np.array([[0.5, NAN, NAN], [NAN] * 3]), 8)
    assert once.tolist() == [8, 8]


def falling(n: Any, p: Any) -> Any:
    return -n * p


def convex(n: Any, p: Any) -> Any:
    return n * n * p


def shapeless(n: Any, p: Any) -> Any:
    return 1.0


def diminishing(n: Any, p: Any) -> Any:
    """As good at p = 0.9 as elsewhere never."""
    return np.log(n) * (np.abs(p - 0.9) < 0.05)


def test_a_value_of_ones_own() -> None:
    config = Config(low=2, up=24, value="tests.test_knapsack:diminishing")
    got = sizes_of(config, np.array([0.9, 0.5, 0.3])[:, None], 8)
    assert got.tolist() == [20, 2, 2]
    mixed = sizes_of(Config(low=2, up=24, value="mixed"), np.array([0.9, 0.1])[:, None], 8)
    assert mixed.tolist() == [8, 8]  # the paper's value prefers the hard one
    assert sizes_of(PLAIN, np.array([0.9, 0.1])[:, None], 8).tolist() == [2, 14]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": 9, "up": 8}, "low=9 must not be above up=8"),
        ({"low": 0}, "low"),
        ({"value": "informative"}, "value='informative' is unknown; allowed: information, mixed"),
        ({"value": "tests.test_knapsack:absent"}, "cannot be imported"),
        ({"value": "tests.test_knapsack:convex"}, "must add no more than the one before"),
        ({"value": "tests.test_knapsack:falling"}, "it must not fall"),
        ({"value": "tests.test_knapsack:shapeless"}, "finite numbers, one for each n"),
    ],
)
def test_settings_are_refused_in_a_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_bounds_that_contradict_the_total_are_refused() -> None:
    with pytest.raises(ValueError, match="low=9 of each of 4 prompts is more than the 32 rollouts"):
        Allocator(Config(low=9), 4, 8)
    with pytest.raises(ValueError, match="up=7 of each of 4 prompts is less than the 32 rollouts"):
        Allocator(Config(low=2, up=7), 4, 8)
    assert knapsack.sizes(Config(), 4, 8) == (2, 26)
    assert knapsack.sizes(Config(), 64, 8) == (2, 128)


def test_it_needs_a_finite_pool() -> None:
    raw: dict[str, Any] = {
        "name": "x", "model": {"path": "base/find"}, "allocation": "knapsack",
        "data": {"task": "find"},
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"knapsack needs a finite pool.*data\.limit"):
        resolve(raw)
    resolve(raw | {"data": {"task": "find", "limit": 64}})


def test_prompts_do_not_count_alike_over_several_updates() -> None:
    raw: dict[str, Any] = {
        "name": "x", "model": {"path": "base/find"}, "data": {"task": "find", "limit": 64},
        "prompts_per_step": 4, "allocation": {"name": "knapsack", "weights": "prompts"},
    }  # fmt: skip
    resolve(raw)
    with pytest.raises(ValueError, match=r"several updates a batch: weights=prompts.*_batch=1"):
        resolve(raw | {"updates_per_batch": 2})
    resolve(raw | {"updates_per_batch": 2, "allocation": "knapsack"})
