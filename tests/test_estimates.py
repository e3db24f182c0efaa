"""Estimates of success rates: each kind by its definition, units, cuts, growth, exact state."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.verdict import Verdict
from samplers.allocation import _estimates
from samplers.allocation._estimates import Estimates, SuccessRates, even_cut
from samplers.allocation.base import rights
from samplers.types import Group, Prompt
from tests import made

NAN = float("nan")
KINDS: list[dict[str, Any]] = [
    {"estimate": "last"},
    {"estimate": "cumulative"},
    {"estimate": "ema", "momentum": 0.5},
    {"estimate": "beta", "momentum": 0.5, "prior": (1.0, 3.0)},
    {"estimate": "beta", "momentum": 1.0},
]


def group(index: int, rewards: Sequence[float], modes: Sequence[str] = ()) -> Group:
    """Rollouts of prompt `index`: 1 right, 0 wrong, NaN unknown; of these modes if any."""
    found = made.group(rewards)
    rollouts = found.rollouts
    if modes:
        rollouts = tuple(
            replace(r, plan=replace(r.plan, subgroup=mode))
            for r, mode in zip(rollouts, modes, strict=True)
        )
    prompt = Prompt(index, str(index), (), "", "", "exact")
    return replace(found, prompt=prompt, rollouts=rollouts)


def nested(verdicts: Sequence[Sequence[Sequence[int]]]) -> Group:
    """[rollout][cut][answer] of 1 right, 0 wrong, -1 unknown."""
    said = tuple(
        tuple(tuple(Verdict(a == 1, 0.0, "error" if a < 0 else "ok") for a in c) for c in r)
        for r in verdicts
    )
    return replace(made.group([0.0] * len(said)), verdicts=said)


def expected(settings: dict[str, Any], visits: Sequence[tuple[float, float]]) -> float:
    """The definition, over a prompt's visits of (right, count)."""
    if not visits:
        return NAN
    kind, m = settings["estimate"], settings.get("momentum", 0.7)
    if kind == "last":
        return visits[-1][0] / visits[-1][1]
    if kind == "cumulative":
        return sum(r for r, _ in visits) / sum(n for _, n in visits)
    if kind == "ema":
        rate = visits[0][0] / visits[0][1]
        for right, n in visits[1:]:
            rate = m * rate + (1 - m) * right / n
        return rate
    a, b = settings.get("prior", (1.0, 1.0))
    kept = [m ** (len(visits) - 1 - i) for i in range(len(visits))]
    right = sum(k * r for k, (r, _) in zip(kept, visits, strict=True))
    return (a + right) / (a + b + sum(k * n for k, (_, n) in zip(kept, visits, strict=True)))


steps = st.lists(
    st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.sampled_from([0.0, 1.0, NAN]), min_size=1)),
        max_size=4,
    ),
    max_size=6,
)


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: f"{s['estimate']}{s.get('momentum', '')}")
@given(steps=steps)
def test_each_kind_is_its_definition(
    settings: dict[str, Any], steps: list[list[tuple[int, list[float]]]]
) -> None:
    rates = SuccessRates(Estimates(**settings))
    visits: dict[int, list[tuple[float, float]]] = {i: [] for i in range(4)}
    for step in steps:
        rates.update([group(index, rewards) for index, rewards in step])
        for index in range(4):  # groups of one prompt in a step are one visit
            seen = [r for i, rewards in step if i == index for r in rewards if r == r]
            if seen:
                visits[index].append((sum(seen), len(seen)))
    want = [expected(settings, visits[i]) for i in range(4)]
    np.testing.assert_allclose(rates.rates(range(4)), want, rtol=1e-5)


def test_a_beta_estimate_is_never_certain() -> None:
    rates = SuccessRates(Estimates(estimate="beta"))
    for _ in range(50):
        rates.update([group(0, [0.0] * 64), group(1, [1.0] * 64)])
    low, high = rates.rates([0, 1])
    assert 0 < low < 0.02
    assert 0.98 < high < 1


def test_unknown_verdicts_are_no_visit() -> None:
    rates = SuccessRates(Estimates())
    rates.update([group(0, [NAN, NAN]), group(1, [1.0, NAN])])
    np.testing.assert_array_equal(rates.rates([0, 1, 10**9]), [NAN, 1.0, NAN])


def test_modes_have_rates_of_their_own() -> None:
    rates = SuccessRates(Estimates())
    rates.update([group(3, [1, 0, 1, 1], ["low", "low", "high", "high"])], apart=True)
    assert sorted(rates.units(apart=True)) == ["high", "low"]
    rates.update([group(5, [0, 0], ["low", "low"])], apart=True)
    np.testing.assert_array_equal(rates.rates([3, 5], "low"), [0.5, 0.0])
    np.testing.assert_array_equal(rates.rates([3, 5], "high"), [1.0, NAN])
    np.testing.assert_array_equal(rates.rates([3, 5]), [NAN, NAN])
    assert rates.units() == [""]


def test_without_subgroups_apart_changes_nothing() -> None:
    rates = SuccessRates(Estimates())
    rates.update([group(0, [1, 0])], apart=True)
    assert rates.units(apart=True) == [""]
    assert rates.rates([0]).tolist() == [0.5]


def test_units_of_long_ago_are_forgotten() -> None:
    rates, many = SuccessRates(Estimates()), _estimates.MOST_UNITS + 5
    for i in range(many):
        rates.update([group(0, [1, 0, 1], [str(i), str(i), "always"])], apart=True)
    kept = rates.state_dict()["units"]
    assert len(kept) == _estimates.MOST_UNITS
    assert {"always", str(many - 1)} < set(kept)
    assert "0" not in kept
    modes = [f"mode {i}" for i in range(many)]
    rates.update([group(0, [1] * many, modes)], apart=True)
    assert rates.state_dict()["units"] == modes, "all in use are kept, however many"


def test_units_in_use_are_those_of_the_last_update_that_had_any() -> None:
    rates = SuccessRates(Estimates())
    rates.update([group(0, [1, 0], ["512", "1024"])], apart=True)
    rates.update([group(0, [1], ["256"]), group(1, [0, NAN], ["512", "1024"])], apart=True)
    assert rates.units(apart=True) == ["256", "512"]
    rates.update([group(0, [NAN], ["128"])], apart=True)
    rates.update([], apart=True)
    assert rates.units(apart=True) == ["256", "512"]
    np.testing.assert_array_equal(rates.rates([0, 1], "1024"), [0.0, NAN])  # still known
    rates.update([group(1, [1, 1, 0], ["1024"] * 3)], apart=True)
    assert rates.units(apart=True) == ["1024"]
    rates.update([group(1, [1, 1, 0])])  # another stage's, not apart
    assert rates.units(apart=True) == rates.units() == [""]


@pytest.mark.parametrize(
    ("verdicts", "want"),
    [
        ([[[0], [1], [1]], [[0], [0], [1]]], (1.0, 2)),  # the mean over cuts is the same, 1/2,
        ([[[0], [1]], [[0], [1]]], (2.0, 2)),  # where nothing is mixed: the largest budget then
        ([[[0], [0]], [[0], [0]]], (0.0, 2)),
        ([[[1], [-1]], [[0], [-1]]], (1.0, 2)),
        ([[[1], [-1]], [[-1], [-1]]], (1.0, 1)),
        ([[[-1], [-1]]], (0.0, 0)),
        ([[[1, 0]], [[1, 1]], [[0, -1]]], (1.5, 3)),
    ],
)
def test_the_most_even_cut_decides(verdicts: Any, want: tuple[float, int]) -> None:
    assert even_cut(rights(nested(verdicts))) == want


def test_state_is_exact_and_a_snapshot() -> None:
    rng = np.random.default_rng(0)
    for settings in KINDS:
        rates, apart = SuccessRates(Estimates(**settings)), settings["estimate"] == "cumulative"
        modes = ["low", "high", "low"] if apart else ()
        seen = [
            [group(int(i), rng.integers(0, 2, 3), modes) for i in rng.integers(0, 3000, 5)]
            for _ in range(40)
        ]
        for step in seen[:20]:
            rates.update(step, apart)
        state = rates.state_dict()
        before = rates.rates(range(3000), rates.units(apart)[0])
        words = {k: v for k, v in state.items() if not isinstance(v, np.ndarray)}
        again = SuccessRates(Estimates(**settings))
        again.load_state_dict({**state, **json.loads(json.dumps(words))})
        for step in seen[20:]:
            rates.update(step, apart)
            again.update(step, apart)
        assert rates.units(apart) == again.units(apart)
        for unit in rates.units(apart):
            ours, theirs = rates.rates(range(4000), unit), again.rates(range(4000), unit)
            np.testing.assert_array_equal(ours, theirs)
        loaded = SuccessRates(Estimates(**settings))
        loaded.load_state_dict(state)  # what was learned since has not moved it
        np.testing.assert_array_equal(loaded.rates(range(3000), loaded.units(apart)[0]), before)


def test_another_kind_goes_on_from_a_state() -> None:
    last = SuccessRates(Estimates())
    last.update([group(2, [1, 0, 0, 0])])
    ema = SuccessRates(Estimates(estimate="ema", momentum=0.5))
    ema.load_state_dict(last.state_dict())
    ema.update([group(2, [1, 1])])
    assert ema.rates([2])[0] == pytest.approx(0.625)


def test_memory_is_eight_bytes_a_prompt_for_each_unit() -> None:
    size = 10**6
    rates = SuccessRates(Estimates())
    rates.update([group(size - 1, [1, 0])])
    assert sum(rates.state_dict()[name].nbytes for name in ("right", "count")) == 8 * size
    rates.update([group(0, [1, 0], ["low", "high"])], apart=True)
    assert sum(rates.state_dict()[name].nbytes for name in ("right", "count")) == 24 * size


def test_settings_without_sense_are_refused_or_told() -> None:
    with pytest.raises(ValueError, match="momentum=1 with estimate=ema"):
        Estimates(estimate="ema", momentum=1)
    with pytest.raises(ValueError, match="prior"):
        Estimates(estimate="beta", prior=(0, 1))
    with pytest.warns(UserWarning, match="momentum has no effect with estimate: last"):
        Estimates(momentum=0.5)
    with pytest.warns(UserWarning, match="prior has no effect"):
        Estimates(estimate="ema", prior=(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Estimates(**Estimates(estimate="beta", prior=(2, 2)).model_dump())
        Estimates(**Estimates().model_dump())
