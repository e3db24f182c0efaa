"""GDPO: components keep their own scale's worth, gates never favour a wrong answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplers import seam
from samplers.types import Group
from tests import made
from trainer import credit

values = st.floats(-5, 5).map(lambda r: round(r, 2))


def group(right: Sequence[float], parts: Mapping[str, Sequence[float]], serial: int = 0) -> Group:
    base = made.group(right, serial=serial)
    named = {k: np.array(v, dtype=float).reshape(-1, 1, 1) for k, v in parts.items()}
    return replace(base, rewards={**base.rewards, **named})


def advantages(groups: Sequence[Group], **settings: Any) -> list[np.ndarray]:
    module, config = seam.resolve("trainer.algorithms", {"name": "gdpo", **settings})
    out = {g.serial: np.zeros(len(g)) for g in groups}
    for row in module.sequences(groups, config):
        out[row.group][row.rollout] = row.advantages_T[row.mask_T][0]
    return list(out.values())


def test_by_hand() -> None:
    """Two components of different scale; the batch's mean is 0 already."""
    one = group([1, 1, 0, 0], {"size": [100.0, 0.0, 0.0, 0.0]})
    two = group([1, 0, 0, 0], {"size": [0.0, 0.0, 50.0, 50.0]}, serial=1)
    expected = []
    for right, size in (((1, 1, 0, 0), (100, 0, 0, 0)), ((1, 0, 0, 0), (0, 0, 50, 50))):
        a, b = np.array(right, float), np.array(size, float)
        expected.append(
            (a - a.mean()) / (a.std(ddof=1) + 1e-4) + 0.5 * (b - b.mean()) / (b.std(ddof=1) + 1e-4)
        )
    raw = advantages([one, two], weights={"size": 0.5}, batch_normalize=False)
    assert np.concatenate(raw) == pytest.approx(np.concatenate(expected), abs=1e-6)
    flat = np.concatenate(expected)
    normal = advantages([one, two], weights={"size": 0.5})
    assert np.concatenate(normal) == pytest.approx(
        (flat - flat.mean()) / (flat.std(ddof=1) + 1e-4), abs=1e-6
    )


def test_with_one_component_it_is_grpo() -> None:
    one = group([1, 0, 0], {})
    (got,) = advantages([one], batch_normalize=False)
    (want,) = credit.grpo([np.array([1.0, 0, 0])], eps=1e-4)
    assert got == pytest.approx(want, abs=1e-6)


@given(
    parts=st.lists(st.tuples(st.booleans(), values), min_size=2, max_size=6),
    scale=st.floats(0.5, 100),
    shift=values,
)
def test_the_scale_of_a_component_does_not_matter(
    parts: list[tuple[bool, float]], scale: float, shift: float
) -> None:
    right = [float(r) for r, _ in parts]
    extra = np.array([v for _, v in parts])
    (one,) = advantages([group(right, {"x": extra.tolist()})], eps=0.0)
    (two,) = advantages([group(right, {"x": (extra * scale + shift).tolist()})], eps=0.0)
    assert one == pytest.approx(two, abs=1e-4)


@given(parts=st.lists(st.tuples(st.booleans(), values), min_size=2, max_size=6))
def test_a_gated_component_says_nothing_of_wrong_answers(parts: list[tuple[bool, float]]) -> None:
    right = [float(r) for r, _ in parts]
    one = group(right, {"x": [v for _, v in parts]})
    settings = {"gated": ["x"], "batch_normalize": False}
    (got,) = advantages([one], **settings)
    (alone,) = advantages([group(right, {})], batch_normalize=False)
    is_right = np.array(right) == 1
    assert got[~is_right] == pytest.approx(alone[~is_right], abs=1e-6)
    if is_right.sum() > 1:  # and compares the right ones with each other
        extra = np.array([v for _, v in parts])[is_right]
        (own,) = credit.grpo([extra], eps=1e-4)
        assert got[is_right] - alone[is_right] == pytest.approx(own, abs=1e-5)


def test_the_papers_gate_counts_wrong_answers_as_zero() -> None:
    one = group([1, 1, 0], {"short": [1.0, 0.0, 1.0]})
    (got,) = advantages([one], gated=["short"], gate="zero", batch_normalize=False)
    (a,) = credit.grpo([np.array([1.0, 1, 0])], eps=1e-4)
    (b,) = credit.grpo([np.array([1.0, 0, 0])], eps=1e-4)
    assert got == pytest.approx(a + b, abs=1e-6)


def test_priority_by_gate_where_a_sum_collapses() -> None:
    """A penalty of the right answers as large as the verdict: summed, right and wrong are alike."""
    one = group([1, 1, 0, 0], {"length": [-1.0, -0.9, 0.0, 0.0]})
    (got,) = advantages([one], gated=["length"], weights={"length": 0.5})
    assert got[1] > got[0] > got[2] == got[3]


def test_unknown_rollouts_leave_every_statistic() -> None:
    known = advantages([group([1, 0, 0], {"x": [0.5, 0.25, 0.0]})])
    unknown = advantages([group([1, 0, 0, np.nan], {"x": [0.5, 0.25, 0.0, 9.0]})])
    assert unknown[0][:3] == pytest.approx(known[0])
    assert unknown[0][3] == 0
    for gate in ("right", "zero"):
        settings = {"gated": ["x"], "gate": gate}
        (known_x,) = advantages([group([1, 1, 0], {"x": [0.5, 0.25, 0.0]})], **settings)
        (unknown_x,) = advantages(
            [group([1, 1, 0, np.nan], {"x": [0.5, 0.25, 0.0, 9.0]})], **settings
        )
        assert unknown_x == pytest.approx([*known_x, 0])


def test_a_reward_that_is_unknown_on_its_own_leaves_every_statistic_too() -> None:
    (known,) = advantages([group([1, 0, 0], {"x": [0.5, 0.25, 0.0]})])
    (unknown,) = advantages([group([1, 0, 0, 0], {"x": [0.5, 0.25, 0.0, np.nan]})])
    assert unknown == pytest.approx([*known, 0])


def test_truncated_rollouts_that_are_excluded_do_not_move_the_batch() -> None:
    """Two right answers stay without an advantage beside a group whose worst was cut off."""
    cut = made.group([1.0, 0.0, 0.0], serial=1)
    last = replace(cut.rollouts[2].final, tokens=made.run((21, 22), 1, "length"))
    rollouts = (*cut.rollouts[:2], replace(cut.rollouts[2], answers=((last,),)))
    groups = [group([1, 1], {}), replace(cut, rollouts=rollouts)]
    got = advantages(groups, exclude_truncated_from_stats=True)
    assert got[0].tolist() == [0, 0]
    assert got[1][0] > 0 > got[1][1] == got[1][2]


def test_groups_of_equal_rewards_and_of_one_get_nothing() -> None:
    got = advantages(
        [
            group([1, 1], {"x": [0.3, 0.3]}),
            group([1], {"x": [0.3]}, serial=1),
        ]
    )
    assert not np.concatenate(got).any()
    assert advantages([]) == []


def test_per_token_rewards_are_a_component_too() -> None:
    one = made.group([1.0, 1.0])
    one = replace(one, token_rewards={"rep": (np.array([-1.0, 0, 0]), np.zeros(4))})
    (got,) = advantages([one], batch_normalize=False)
    assert got[1] > 0 > got[0]


def test_a_name_that_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match="no reward component named lenght; there are correct, x"):
        advantages([group([1, 0], {"x": [0, 1]})], weights={"lenght": 2.0})
    with pytest.raises(ValueError, match="no reward component named y"):
        advantages([group([1, 0], {"x": [0, 1]})], gated=["y"])
