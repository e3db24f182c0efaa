"""Nested-cut credit: what comes after the first right cut, and nothing else, earns less."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_brpo import by_token, nested, scored_group
from trainer.algorithms import grpo, nested_cut
from trainer.algorithms.nested_cut import Config, boundary, sequences

NAN = np.nan


def test_thinking_after_the_first_right_cut_earns_its_share() -> None:
    rollouts = [nested(0, 6, (2, 4, 8)), nested(1, 6, (2, 4, 8)), nested(2, 6, (2, 4, 8))]
    scores = np.array([[0, 1, 1], [0, 0, 1], [1, 1, 0]], float)[..., None]
    group = scored_group(rollouts, scores)
    for share in (0.0, 0.5, -1.0):
        early, late, wrong = map(by_token, sequences([group], Config(share_after=share)))
        good = early[1001]
        assert good > 0
        assert [early[1001 + t] for t in range(6)] == pytest.approx([good] * 4 + [share * good] * 2)
        assert early[1007] == early[300] == early[301] == good  # the end marker and the answer
        assert set(late.values()) == {good}
        assert len(set(wrong.values())) == 1  # wrong in the end: GRPO's, though it was right once
        assert 101 not in early  # forced answers are not trained on


def test_a_thought_that_went_on_behind_the_final_answer_keeps_that_answers_credit() -> None:
    """Cut at 2 and at 4 of nine tokens: the row has four of them, then the answer."""
    rollouts = [nested(g, 9, (2, 4)) for g in range(2)]
    group = scored_group(rollouts, np.array([[1, 1], [0, 0]], float)[..., None])
    early, _ = map(by_token, sequences([group], Config()))
    good = early[1001]
    assert good > 0
    assert [early[1001 + t] for t in range(4)] == pytest.approx([good, good, 0, 0])
    assert early[201] == early[202] == good


def test_the_boundary_is_the_first_cut_with_half_of_its_known_answers_right() -> None:
    scores = [[0, 0, 0, 1], [1, 1, NAN, 0], [1, 1, 1, 1]]
    group = scored_group([nested(0, 9, (2, 4, 9), 4)], np.array([scores], float))
    assert boundary(group, 0) == 4
    never = scored_group([nested(0, 9, (2, 4, 9), 4)], np.zeros((1, 3, 4)))
    assert boundary(never, 0) == 10
    unknown = scored_group([nested(0, 9, (2, 9))], np.array([[[NAN], [1.0]]]))
    assert boundary(unknown, 0) == 10


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_it_is_grpo_with_some_credit_taken_and_no_sign_flipped(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    rollouts = [nested(g, int(rng.integers(0, 9)), (2, 4, 8)) for g in range(4)]
    group = scored_group(rollouts, rng.integers(0, 2, (4, 3, 1)).astype(float))
    group = replace(group, kept_G=np.array([True, False, True, True]))
    got, plain = sequences([group], Config(share_after=share)), grpo.sequences([group], Config())
    assert [row.rollout for row in got] == [0, 2, 3]
    for row, whole in zip(got, plain, strict=True):
        np.testing.assert_array_equal(row.mask_T, whole.mask_T)
        taken_T = whole.advantages_T - row.advantages_T
        assert (taken_T >= 0).all()
        assert (row.advantages_T * whole.advantages_T >= 0).all()
        assert not taken_T[whole.advantages_T < 0].any()
    same = sequences([group], Config(share_after=1.0))
    for row, whole in zip(same, plain, strict=True):
        np.testing.assert_array_equal(row.advantages_T, whole.advantages_T)


def test_it_needs_cuts_and_credits_them() -> None:
    assert nested_cut.provides(Config()) == {"credit at cuts"}
    assert set(nested_cut.requires(Config())) == {"nested cuts"}
    assert set(nested_cut.requires(Config(within="subgroup"))) == {"nested cuts", "subgroups"}
