"""Reinforce-Ada: who leaves when, what is kept of it, and what it is worth."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.allocation import _teaching as teaching
from samplers.allocation import reinforce_ada
from samplers.types import Group
from tests import vectors
from tests.allocated import Says, Steps, at_rates
from trainer import credit

rate_lists = st.lists(st.sampled_from([0.0, 0.02, 0.3, 0.5, 0.9, 1.0]), min_size=1, max_size=6)


def allocator(prompts: int, n: int, **fields: Any) -> reinforce_ada.Allocator:
    return reinforce_ada.Allocator(reinforce_ada.Config(**fields), prompts, n)


def finished(group: Group) -> tuple[int, int, list[int]]:
    assert group.kept_G is not None
    return group.serial, len(group), np.flatnonzero(group.kept_G).tolist()


def always(*rights: Any) -> Says:
    return lambda draw, index: rights[index % len(rights)]


# -- against the released code --------------------------------------------------------------------


@vectors.each("reinforce_ada_selection")
def test_the_released_code(case: vectors.Case) -> None:
    given = case["inputs"]
    names, n, above = list(given["streams"]), given["n"], given["positive_threshold"]
    streams = {name: np.array(given["streams"][name]) > above for name in names}
    ours = allocator(
        len(names), n, exit=given["choice"], rounds=given["max_rounds"],
        per_round=given["round_repeat"],
    )  # fmt: skip
    steps = Steps(ours, lambda draw, index: bool(streams[names[draw]][index]))
    groups = dict(zip(names, steps.step().groups, strict=True))
    right = {name: g.correct_GCA[:, 0, 0].astype(float) for name, g in groups.items()}
    order = {name: teaching.balanced(right[name], n) for name in names}
    for name, group in groups.items():  # `kept_G` knows no order: it holds the same ones
        assert finished(group)[2] == sorted(order[name])
    std: credit.Std = "group" if given["norm_by_std"] else "none"
    worth = credit.grpo([right[name] for name in names], std=std)
    got = {
        "selected_indices": order,
        "pos_count": {name: right[name].sum() for name in names},
        "neg_count": {name: (1 - right[name]).sum() for name in names},
        "rounds_used": {name: len(groups[name]) // given["round_repeat"] for name in names},
        "active_per_round": [len(call) for call in steps.calls],
    }
    binary = all(r in (0, 1) for stream in given["streams"].values() for r in stream)
    if binary:  # the code takes the mean of binarised rewards from raw ones: not ours
        kept = zip(names, worth, strict=True)
        got["advantages"] = {name: worth_G[order[name]] for name, worth_G in kept}
    vectors.check(case, {key: _plain(value) for key, value in got.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


# -- selection ------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([1.0, 0.0, np.nan]), max_size=20), st.integers(2, 12))
def test_a_selection_is_as_balanced_as_it_can_be(rights: list[float], n: int) -> None:
    chosen = teaching.balanced(rights, n)
    right, wrong = rights.count(1.0), rights.count(0.0)
    assert len(set(chosen.tolist())) == len(chosen) == min(n, right + wrong)
    values = np.array(rights)[chosen]
    got = int((values == 1).sum())
    best = min(
        (k for k in range(len(chosen) + 1) if k <= right and len(chosen) - k <= wrong),
        key=lambda k: abs(k - n // 2),
    )
    assert got == best
    assert values.tolist() == sorted(values, reverse=True), "right ones first"
    for kind in (1.0, 0.0):  # the first of each kind
        mine = [i for i in chosen if rights[i] == kind]
        assert mine == [i for i, r in enumerate(rights) if r == kind][: len(mine)]


def test_classes_are_those_of_the_cut_that_splits_best() -> None:
    rights_GC = np.array([[0, 0, 1], [0, 1, 1], [0, 1, 1], [0, np.nan, 1]], dtype=float)
    assert np.array_equal(teaching.classes(rights_GC), [0, 1, 1, np.nan], equal_nan=True)
    alike_GC = np.array([[0, 1], [0, 1.0]])
    assert teaching.classes(alike_GC).tolist() == [1, 1], "of equal cuts the largest budget"
    shares_GC = np.array([[0.75], [0.5], [0.25]])
    assert teaching.classes(shares_GC).tolist() == [1, 0, 0]
    assert teaching.classes(shares_GC, above=0.4).tolist() == [1, 1, 0]


def test_nested_cuts_leave_when_one_cut_is_balanced() -> None:
    """Wrong at the small budget, right at the large one, mixed in between."""
    ours = allocator(1, 4, per_round=4)
    (group,) = Steps(ours, lambda d, i: [False, i % 2 == 0, True]).step().groups
    assert finished(group) == (0, 4, [0, 1, 2, 3])
    assert ours.metrics()["allocation/exited"] == 1
    final = allocator(1, 4, per_round=4)
    (group,) = Steps(final, lambda d, i: [False, True, True]).step().groups
    assert finished(group) == (0, 16, [0, 1, 2, 3])


def test_unknown_verdicts_are_neither_right_nor_wrong() -> None:
    """Two of four are unknown: another lot is needed, and none of them is chosen."""
    ours = allocator(1, 4, per_round=4)
    (group,) = Steps(ours, always(None, True, None, False)).step().groups
    assert finished(group) == (0, 8, [1, 3, 5, 7])
    out = Steps(allocator(1, 4, rounds=2, per_round=4), always(None)).step()
    assert not out.groups
    assert [len(g) for g in out.discarded] == [8]


# -- rounds ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    rate_lists, st.integers(2, 8), st.integers(1, 4), st.integers(1, 8), st.integers(0, 9),
    st.sampled_from(["balanced", "positive_focused"]), st.integers(1, 5),
)  # fmt: skip
def test_any_order_of_arrival_gives_the_same_groups(
    rates: list[float], n: int, rounds: int, per: int, order: int, exit: str, prompts: int
) -> None:
    says = at_rates(rates, seed=order)
    fields: dict[str, Any] = {
        "exit": exit,
        "rounds": rounds,
        "per_round": max(per, -(-n // rounds)),
    }
    found = []
    for arrival in (None, order):
        steps = Steps(allocator(prompts, n, **fields), says, order=arrival)
        groups = [g for _ in range(2) for g in steps.step().groups]
        found.append([finished(g) for g in groups])
    assert found[0] == found[1]
    assert [serial for serial, _, _ in found[0]] == list(range(2 * prompts))
    for serial, size, kept in found[0]:
        right = [says(serial, i) for i in range(size)]
        assert size % fields["per_round"] == 0
        assert size <= rounds * fields["per_round"]
        assert len(kept) == min(n, size)
        last = size - fields["per_round"]
        assert not _left(right[:last], n, exit), "it would have left before"
        assert _left(right, n, exit) or size == rounds * fields["per_round"]


def _left(right: list[bool], n: int, exit: str) -> bool:
    ones = sum(right)
    if exit == "positive_focused":
        return ones >= 1
    return ones >= n // 2 and len(right) - ones >= n - n // 2 and bool(right)


def test_a_prompt_is_asked_again_while_others_are_still_in_their_first_round() -> None:
    """With lots coming one by one nobody waits for the end of a round."""
    steps = Steps(allocator(6, 4, per_round=4), at_rates([0.0, 0.5], 1), order=3)
    steps.step()
    first = [next(i for i, call in enumerate(steps.calls) if d in call) for d in range(6)]
    again = [i for d in range(6) for i in [j for j, c in enumerate(steps.calls) if d in c][1:]]
    assert min(again) < max(first)


def test_modes_leave_and_are_selected_apart() -> None:
    """`low` is always wrong at first: the prompt stays although all of it is balanced."""
    ours = allocator(1, 4, per_round=4)
    ours.apart = True
    modes = ("high", "low")

    def says(draw: int, index: int) -> bool:
        return index % 4 == 0 if index % 2 == 0 else index == 7

    (group,) = Steps(ours, says, modes=modes).step().groups
    assert finished(group) == (0, 8, [0, 1, 2, 7])
    together = allocator(1, 2, per_round=4)
    (group,) = Steps(together, says, modes=modes).step().groups
    assert finished(group) == (0, 4, [0, 1])


def test_a_group_of_an_earlier_step_goes_on_where_it_was() -> None:
    """Chunked: two rollouts of draw 0 are done a step later, and it still has its other rounds."""
    late = {0: 1}
    steps = Steps(
        allocator(2, 4, rounds=2, per_round=4), lambda d, i: d == 1 and i % 2 == 0,
        goes_on=lambda job: job.group == 0 and steps.taken < late[0],
    )  # fmt: skip
    out = steps.step()
    assert [finished(g) for g in out.groups] == [(1, 4, [0, 1, 2, 3])]
    assert [g.serial for g in out.carried] == [0]
    out = steps.step()
    assert [finished(g)[:2] for g in out.groups] == [(0, 8), (2, 8), (3, 8)]


def test_what_it_measures() -> None:
    ours = allocator(3, 4, per_round=4)
    steps = Steps(ours, lambda d, i: [False, i % 2 == 0, i == 15][d])
    steps.step()
    assert ours.metrics() == {
        "allocation/rounds": pytest.approx((4 + 1 + 4) / 3),
        "allocation/exited": pytest.approx(1 / 3),
        "allocation/informative_share": pytest.approx(2 / 3),
    }
    assert json.loads(json.dumps(ours.state_dict())) == {}


@pytest.mark.parametrize(
    ("n", "fields", "words"),
    [
        (33, {}, r"rounds=4 of per_round=8 are 32 rollouts, and rollouts_per_prompt=33 "),
        (1, {}, r"rollouts_per_prompt=1: .* set rollouts_per_prompt=2 or more"),
    ],
)
def test_sizes_that_contradict_each_other(n: int, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        allocator(2, n, **fields)


def test_sizes() -> None:
    config = reinforce_ada.Config(per_round=8)
    assert reinforce_ada.sizes(config, 32, 4) == (4, 8)
    assert reinforce_ada.sizes(config, 32, 16) == (8, 16)


@pytest.mark.parametrize("per_round", [1, 3, 8])
@pytest.mark.parametrize("exits", ["balanced", "positive_focused"])
def test_the_smallest_group_that_trains(exits: Any, per_round: int) -> None:
    fields: dict[str, Any] = {"exit": exits, "per_round": per_round, "rounds": 8}
    ours = allocator(30, 5, **fields)
    steps = Steps(ours, at_rates([0.0, 0.2, 0.5, 0.9, 1.0], 3))
    trained = [len(finished(g)[2]) for _ in range(3) for g in steps.step().groups]
    assert min(trained) == reinforce_ada.trains(ours.config, 30, 5)
    assert reinforce_ada.trains(ours.config, 30, 5) == (
        5 if exits == "balanced" else min(per_round, 5)
    )
