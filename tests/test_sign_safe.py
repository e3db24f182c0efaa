"""Length terms after the baseline: no sign flips, equal lengths mean nothing, wrong ones neither.

DDCA against its published formula, and every sign-safe form against random groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplers import seam
from samplers.types import Answer, Group
from tests import made
from trainer import credit

SAFE = [
    ("ddca", {"sign": "clip"}),
    ("ddca", {"sign": "largest"}),
    ("qglas", {}),
]
forms = pytest.mark.parametrize(("name", "settings"), SAFE, ids=str)
bases = st.sampled_from(["grpo", "dr_grpo", "rloo"])
rollouts = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0, 1.0, 1.0, np.nan]), st.integers(1, 40)),
    min_size=1,
    max_size=8,
)


def group(right: Sequence[float], lengths: Sequence[int], serial: int = 0) -> Group:
    """Thoughts of these lengths; each answer is one forced and one sampled token."""
    made_ = [made.rollout(g, [11] * n, group=serial) for g, n in enumerate(lengths)]
    return made.group(right, rollouts=tuple(made_), serial=serial)


def advantages(name: str, groups: Sequence[Group], **settings: Any) -> list[np.ndarray]:
    """[G] per group; 0 where the verdict is unknown (no row)."""
    module, config = seam.resolve("trainer.algorithms", {"name": name, **settings})
    out = {g.serial: np.zeros(len(g)) for g in groups}
    for row in module.sequences(groups, config):
        out[row.group][row.rollout] = row.advantages_T[row.mask_T][0]
    return list(out.values())


def quality(base: credit.Form, right: Sequence[float]) -> np.ndarray:
    return credit.FORMS[base]([np.array(right)])[0].astype(np.float32)


@forms
@given(drawn=rollouts, base=bases, weight=st.floats(0, 50))
def test_no_sign_ever_flips(
    name: str,
    settings: dict[str, Any],
    drawn: list[tuple[float, int]],
    base: credit.Form,
    weight: float,
) -> None:
    right, lengths = map(list, zip(*drawn, strict=True))
    strength = {"beta" if name == "ddca" else "weight": weight}
    (got,) = advantages(name, [group(right, lengths)], base=base, **settings, **strength)
    want = quality(base, right)
    is_right = np.array(right) == 1
    assert np.array_equal(got[~is_right], want[~is_right])  # wrong, unknown: untouched
    assert (got[is_right] >= 0).all()
    assert (got * want >= 0).all()


@forms
@given(
    drawn=st.lists(
        st.tuples(st.booleans(), st.integers(-3, 3), st.integers(1, 40)), min_size=2, max_size=8
    ),
    base=bases,
    weight=st.floats(0, 50),
)
def test_nor_with_graded_rewards_under_which_right_may_be_below_the_mean(
    name: str,
    settings: dict[str, Any],
    drawn: list[tuple[bool, int, int]],
    base: credit.Form,
    weight: float,
) -> None:
    right, rewards, lengths = (np.array(column, dtype=float) for column in zip(*drawn, strict=True))
    one = group(right.tolist(), lengths.astype(int).tolist())
    one = replace(one, rewards={"correct": rewards.reshape(-1, 1, 1)})
    strength = {"beta" if name == "ddca" else "weight": weight}
    (got,) = advantages(name, [one], base=base, **settings, **strength)
    want = quality(base, rewards.tolist())
    assert (got * want >= 0).all()
    assert (got[want == 0] >= 0).all()
    assert np.array_equal(got[right == 0], want[right == 0])


def test_a_right_rollout_below_the_mean_does_not_bind_the_weight() -> None:
    """Its advantage is negative at any weight; those of the others decide."""
    one = group([1, 1, 1, 0], [5, 40, 60, 8])
    graded = np.array([1.0, 1.0, 0.2, 0.9]).reshape(-1, 1, 1)
    (got,) = advantages(
        "ddca",
        [replace(one, rewards={"correct": graded})],
        base="dr_grpo",
        beta=9.0,
        sign="largest",
    )
    assert got[0] > 0.225
    assert got[1] == pytest.approx(0, abs=1e-6)
    assert got[2] < 0


@forms
@given(
    right=st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=8),
    length=st.integers(1, 40),
    base=bases,
)
def test_equal_lengths_give_no_preference(
    name: str, settings: dict[str, Any], right: list[float], length: int, base: credit.Form
) -> None:
    lengths = [length if r else 3 * length for r in right]  # those of wrong answers do not matter
    (got,) = advantages(name, [group(right, lengths)], base=base, **settings)
    assert np.array_equal(got, quality(base, right))


@pytest.mark.parametrize(("name", "settings"), [*SAFE, ("ddca", {"sign": "free"})], ids=str)
@given(drawn=rollouts, base=bases)
def test_of_two_right_rollouts_the_shorter_never_gets_less(
    name: str, settings: dict[str, Any], drawn: list[tuple[float, int]], base: credit.Form
) -> None:
    right, lengths = map(list, zip(*drawn, strict=True))
    (got,) = advantages(name, [group(right, lengths)], base=base, **settings)
    at = np.flatnonzero(np.array(right) == 1)
    ordered = at[np.argsort(np.array(lengths)[at], kind="stable")]
    assert (np.diff(got[ordered]) <= 1e-6).all()


@given(drawn=rollouts, base=bases, weight=st.floats(0, 5))
def test_qglas_only_ever_adds(
    drawn: list[tuple[float, int]], base: credit.Form, weight: float
) -> None:
    right, lengths = map(list, zip(*drawn, strict=True))
    (got,) = advantages("qglas", [group(right, lengths)], base=base, weight=weight)
    gain = got - quality(base, right)
    assert (gain >= 0).all()
    assert (gain <= weight + 1e-6).all()


def test_qglas_by_hand() -> None:
    one = group([1, 1, 1, 0], [7, 17, 27, 2])  # responses of 8, 18, 28 tokens: mean 18
    (got,) = advantages("qglas", [one], base="dr_grpo", weight=0.5, c=1.0)
    assert got == pytest.approx([0.25 + 0.5 * 10 / 18, 0.25, 0.25, -0.75])
    (capped,) = advantages("qglas", [one], base="dr_grpo", weight=0.5, c=0.25)
    assert capped[0] == pytest.approx(0.25 + 0.5)


def ddca_by_the_book(
    right: np.ndarray, lengths: np.ndarray, beta: float, leave_one_out: bool, dynamic: bool
) -> np.ndarray:
    """The paper, one rollout at a time."""
    n = len(right)
    at = [i for i in range(n) if right[i]]
    mean, std = np.mean(lengths[at]), np.std(lengths[at])
    score = {i: 1 / (1 + np.exp(-(lengths[i] - mean) / (std + 1e-8))) for i in at}
    out = np.zeros(n)
    for i in range(n):
        rest = [j for j in range(n) if j != i] if leave_one_out else list(range(n))
        out[i] = right[i] - np.mean([float(right[j]) for j in rest])
        others = [j for j in at if j != i or not leave_one_out]
        if i in score and others:
            term = score[i] - np.mean([score[j] for j in others])
            out[i] -= beta * term * (len(at) / n if dynamic else 1)
    return out


@given(
    drawn=st.lists(st.tuples(st.booleans(), st.integers(1, 40)), min_size=2, max_size=8).filter(
        lambda drawn: any(right for right, _ in drawn)
    ),
    leave_one_out=st.booleans(),
    dynamic=st.booleans(),
)
def test_ddca_left_free_is_the_published_formula(
    drawn: list[tuple[bool, int]], leave_one_out: bool, dynamic: bool
) -> None:
    right, lengths = (np.array(x) for x in zip(*drawn, strict=True))
    (got,) = advantages(
        "ddca",
        [group(right.astype(float).tolist(), lengths.tolist())],
        base="rloo" if leave_one_out else "dr_grpo",
        beta=0.7,
        by_pass_rate=dynamic,
        sign="free",
    )
    want = ddca_by_the_book(right, lengths + 1.0, 0.7, leave_one_out, dynamic)  # one answer token
    assert got == pytest.approx(want, abs=1e-5)


def test_the_largest_weight_is_that_and_no_more() -> None:
    one = group([1, 1, 1, 0], [5, 10, 60, 8])
    (small,) = advantages("ddca", [one], base="dr_grpo", beta=0.1, sign="largest")
    (free,) = advantages("ddca", [one], base="dr_grpo", beta=0.1, sign="free")
    assert small == pytest.approx(free)  # nothing was in danger
    (large,) = advantages("ddca", [one], base="dr_grpo", beta=100.0, sign="largest")
    assert large[2] == pytest.approx(0, abs=1e-6)  # the longest stands just at 0
    assert large[0] > large[1] > 0
    assert large[:3].mean() == pytest.approx(0.25)  # a weight for all, so the mean stays


def test_where_all_are_right_the_forms_differ_as_they_say() -> None:
    one = group([1, 1, 1], [5, 10, 60])
    (clip,) = advantages("ddca", [one])
    assert clip[0] > clip[1] > 0 == clip[2]
    (largest,) = advantages("ddca", [one], sign="largest")
    assert largest.tolist() == [0, 0, 0]
    (free,) = advantages("ddca", [one], sign="free")
    assert free[0] > 0 > free[2]
    (qglas,) = advantages("qglas", [one])
    assert qglas.tolist() == [0, 0, 0]


def test_the_thought_alone_may_be_what_is_short() -> None:
    """Two thoughts of like length with answers of different length: only the response tells."""
    rollouts_ = [made.rollout(0, [11] * 9), made.rollout(1, [11] * 9)]
    answer = Answer(9, made.run((21, 22, 23, 24, 25), forced=1), "x")
    rollouts_[1] = made.rollout(1, [11] * 9, answers=[[answer]])
    one = made.group([1.0, 1.0], rollouts=tuple(rollouts_))
    for name in ("ddca", "qglas"):
        (think,) = advantages(name, [one], length="think", base="dr_grpo")
        assert think.tolist() == [0, 0]
    (response,) = advantages("ddca", [one], length="response", sign="free")
    assert response[0] > 0 > response[1]


@pytest.mark.parametrize("name", ["ddca", "qglas"])
def test_who_is_not_counted_sets_no_length(name: str) -> None:
    """A cut-off right rollout, and one whose reward is unknown, do not say what is short."""
    one = group([1, 1, 0], [5, 9, 8])
    (alone,) = advantages(name, [one])
    cut = made.rollout(3, [11] * 30, finish="length")
    with_cut = made.group([1, 1, 0, 1], rollouts=(*one.rollouts, cut))
    (got,) = advantages(name, [with_cut], exclude_truncated_from_stats=True)
    assert got[:3] == pytest.approx(alone)
    unsaid = made.group([1, 1, 0, 1], rollouts=(*one.rollouts, made.rollout(3, [11] * 30)))
    shaped = np.array([0, 0, 0, np.nan]).reshape(-1, 1, 1)
    unsaid = replace(unsaid, rewards={**unsaid.rewards, "x": shaped})
    (got,) = advantages(name, [unsaid])
    assert got == pytest.approx([*alone, 0])


@pytest.mark.parametrize("name", ["ddca", "qglas"])
def test_thoughts_are_counted_where_there_are_markers(name: str) -> None:
    module, config = seam.resolve("trainer.algorithms", {"name": name, "length": "think"})
    assert set(module.requires(config)) == {"thinking markers"}


def test_modes_are_compared_within_themselves() -> None:
    one = group([1, 1, 1, 1], [5, 9, 30, 50])
    marked = tuple(
        replace(r, plan=replace(r.plan, subgroup="low" if g < 2 else "high"))
        for g, r in enumerate(one.rollouts)
    )
    together = replace(one, rollouts=marked)
    (got,) = advantages("ddca", [together], sign="free", within="subgroup")
    (low,) = advantages("ddca", [group([1, 1], [5, 9])], sign="free")
    (high,) = advantages("ddca", [group([1, 1], [30, 50])], sign="free")
    assert got == pytest.approx([*low, *high])
