"""Oversampling: many are sampled, few of both kinds train, and all count in the baseline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import seam
from samplers.allocation import oversample
from tests.allocated import Steps, at_rates
from trainer import credit


def allocator(prompts: int, n: int, **fields: Any) -> oversample.Allocator:
    return oversample.Allocator(oversample.Config(**fields), prompts, n)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.05, 0.5, 1.0]), min_size=1, max_size=5),
    st.integers(2, 9), st.integers(0, 8), st.none() | st.integers(0, 9),
)  # fmt: skip
def test_both_kinds_are_kept(rates: list[float], n: int, more: int, order: int | None) -> None:
    says, samples = at_rates(rates, seed=more), n + more
    steps = Steps(allocator(3, n, samples=samples), says, order=order)
    groups = [*steps.step().groups, *steps.step().groups]
    assert [g.serial for g in groups] == list(range(6))
    for group in groups:
        assert len(group) == samples
        right_G = group.correct_GCA[:, 0, 0]
        assert group.kept_G is not None
        kept = right_G[group.kept_G]
        assert len(kept) == n
        assert kept.sum() == min(max(n // 2, n - (~right_G).sum()), right_G.sum())


def test_the_baseline_is_of_all_that_was_sampled() -> None:
    """One right of 16; 4 train: leave-one-out over 16, on the rows of 4."""
    out = Steps(allocator(1, 4, samples=16), lambda d, i: i == 9).step()
    (group,) = out.groups
    right_G = group.correct_GCA[:, 0, 0].astype(float)
    module, config = seam.resolve("trainer.algorithms", "rloo")
    rewarded = replace(group, rewards={"correct": right_G[:, None, None]})
    rows = module.sequences([rewarded], config)
    (worth_G,) = credit.rloo([right_G])
    assert [row.rollout for row in rows] == [0, 1, 2, 9]
    for row in rows:
        assert row.advantages_T[row.mask_T] == pytest.approx(worth_G[row.rollout])


def test_each_mode_keeps_its_share() -> None:
    ours = allocator(1, 4, samples=12)
    ours.apart = True
    (group,) = Steps(ours, lambda d, i: i in (8, 9), modes=("a", "b")).step().groups
    assert group.kept_G is not None
    assert np.flatnonzero(group.kept_G).tolist() == [0, 1, 8, 9]


def test_what_it_measures_and_what_is_unknown() -> None:
    ours = allocator(3, 4, samples=8)
    steps = Steps(ours, lambda d, i: [None, i == 0, True][d])
    out = steps.step()
    assert [g.serial for g in out.groups] == [1, 2]
    assert [g.serial for g in out.discarded] == [0]
    assert ours.metrics() == {
        "allocation/informative_share": pytest.approx(1 / 3),
        "allocation/balance": pytest.approx(5 / 8),
    }
    assert ours.state_dict() == {}


def test_sizes() -> None:
    assert oversample.sizes(oversample.Config(), 32, 8) == (8, 64)
    with pytest.raises(ValueError, match=r"samples=4: rollouts_per_prompt=8 are to train; .*=8 or"):
        allocator(2, 8, samples=4)
    with pytest.raises(
        ValueError, match=r"rollouts_per_prompt=1: .* set rollouts_per_prompt=2 or more"
    ):
        allocator(2, 1)
