"""Rows: what is trained on, what a token follows, and which rollouts have no row at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rewards.verdict import Verdict
from samplers.types import Answer, Group
from tests import made
from trainer.rows import annotate, branches, plain_row, rows, supervised_row, tree_row


def ancestors(parent_T: np.ndarray, t: int) -> list[int]:
    """Tokens before t in its own branch, first to last."""
    path = []
    while parent_T[t] >= 0:
        t = int(parent_T[t])
        path.append(t)
    return path[::-1]


def nested() -> Group:
    """Thought 11..15; two answers after 2 tokens, two after all 5."""
    answers = [
        [Answer(2, made.run((21, 22, 23), forced=2), "a"), Answer(2, made.run((31, 32), 1), "b")],
        [Answer(5, made.run((41, 42)), "c"), Answer(5, made.run(()), None)],
    ]
    rollout = made.rollout(0, range(11, 16), answers)
    group = made.group([1.0], rollouts=(rollout,))
    known, unknown = Verdict(True, 1.0, "ok"), Verdict(False, 0.0, "timeout")
    return replace(group, verdicts=(((known, unknown), (known, known)),), rewards={})


def test_a_plain_row_is_prompt_thought_and_final_answer() -> None:
    (row,) = rows(made.group([1.0]))
    assert row.ids_T.tolist() == [1, 2, 11, 21, 22]
    assert row.plain
    assert row.mask_T.tolist() == [False, False, True, False, True]  # 21 was forced
    assert np.isnan(row.behaviour_T).tolist() == [True, True, False, True, False]
    assert row.behaviour_T[[2, 4]].tolist() == pytest.approx([-0.11, -0.22])
    assert not row.advantages_T.any()
    assert (row.prompt, row.group, row.rollout) == (7, 0, 0)
    assert row.ids_T.dtype == row.parent_T.dtype == row.versions_T.dtype == np.int32


def test_an_answer_that_saw_half_the_thought_follows_that_half() -> None:
    group = nested()
    early = replace(group.rollouts[0], answers=group.rollouts[0].answers[:1])
    row = plain_row(replace(group, rollouts=(early,)), 0)
    assert row.ids_T.tolist() == [1, 2, 11, 12, 21, 22, 23]
    assert row.plain


def test_versions_come_from_spans() -> None:
    rollout = made.rollout(0, range(11, 16))
    thought = replace(rollout.thought, spans=((0, 3), (2, 4), (4, 6)))
    row = plain_row(made.group([1.0], rollouts=(replace(rollout, thought=thought),)), 0)
    assert row.versions_T.tolist() == [-1, -1, 3, 3, 4, 4, 6, -1, 0]


def test_a_tree_row_holds_each_answer_once_and_each_follows_what_it_saw() -> None:
    row = tree_row(nested(), 0)
    assert row.ids_T.tolist() == [1, 2, 11, 12, 13, 14, 15, 21, 22, 23, 31, 32, 41, 42]
    seen = {int(row.ids_T[t]): row.ids_T[ancestors(row.parent_T, t)].tolist() for t in range(14)}
    assert seen[15] == [1, 2, 11, 12, 13, 14]
    assert seen[23] == [1, 2, 11, 12, 21, 22]
    assert seen[32] == [1, 2, 11, 12, 31]
    assert seen[42] == [1, 2, 11, 12, 13, 14, 15, 41]
    trained = row.ids_T[row.mask_T].tolist()
    assert trained == [11, 12, 13, 14, 15, 23, 41, 42]  # not 32: its verdict is unknown


def test_a_tree_of_one_answer_is_the_plain_row() -> None:
    group = made.group([1.0, 0.0])
    for g in range(2):
        plain, tree = plain_row(group, g), tree_row(group, g)
        assert tree.plain
        np.testing.assert_array_equal(tree.ids_T, plain.ids_T)
        np.testing.assert_array_equal(tree.mask_T, plain.mask_T)


def test_branches_train_every_token_of_a_tree_once_each_after_what_it_saw() -> None:
    tree = replace(tree_row(nested(), 0), old_T=np.arange(14, dtype=np.float32))
    found = [(row.ids_T.tolist(), row.ids_T[row.mask_T].tolist()) for row in branches(tree)]
    assert found == [
        ([1, 2, 11, 12, 13, 14, 15, 41, 42], [11, 12, 13, 14, 15, 41, 42]),
        ([1, 2, 11, 12, 21, 22, 23], [23]),  # the other answer there trains nothing: no row
    ]
    for row in branches(tree):
        assert row.plain
        at = np.searchsorted(tree.ids_T[:7], row.ids_T[:4])
        assert row.old_T is not None
        assert row.old_T[:4].tolist() == at.tolist()
    assert [row.ids_T.tolist() for row in branches(plain_row(nested(), 0))] == [
        plain_row(nested(), 0).ids_T.tolist()
    ]
    untrained = replace(tree, mask_T=np.zeros(14, bool))
    assert len(branches(untrained)) == 1  # it counts where a loss is averaged over all rollouts


def test_an_answer_without_a_thought_follows_the_prompt() -> None:
    answers = [[Answer(0, made.run((21, 22)), "a")], [Answer(0, made.run((31, 32)), "b")]]
    group = made.group([1.0], rollouts=(made.rollout(0, (), answers),))
    row = tree_row(replace(group, verdicts=()), 0)
    assert row.parent_T.tolist() == [-1, 0, 1, 2, 1, 4]


def test_unknown_verdicts_and_unkept_rollouts_have_no_row() -> None:
    group = made.group([1.0, np.nan, 0.0, 1.0], kept_G=np.array([True, True, False, True]))
    assert [row.rollout for row in rows(group)] == [0, 3]
    nan_reward = {"custom": np.array([1.0, np.nan]).reshape(2, 1, 1)}
    unscored = replace(made.group([1.0, 1.0]), rewards=nan_reward)
    assert [row.rollout for row in rows(unscored)] == [0]


def test_annotations_reach_the_rows_they_were_made_of() -> None:
    kept_G = np.array([False, True, True])
    groups = [made.group([1.0, np.nan, 0.0], kept_G=kept_G), made.group([0.0, 1.0], serial=1)]
    scored = [row for group in groups for row in rows(replace(group, kept_G=None))]
    scores = [np.full(len(row), i, np.float32) for i, row in enumerate(scored)]
    after = [row for group in annotate(groups, "old", scores) for row in rows(group)]
    assert [(row.group, row.rollout) for row in after] == [(0, 2), (1, 0), (1, 1)]
    for row, score in zip(after, scores[1:], strict=True):
        assert row.old_T is not None
        assert row.old_T.tolist() == score.tolist()
        assert row.ref_T is None


def test_a_supervised_row_imitates_its_target_only() -> None:
    row = supervised_row(np.array([1, 2], np.int32), np.array([3, 4, 5], np.int32), prompt=9)
    assert row.ids_T.tolist() == [1, 2, 3, 4, 5]
    assert row.mask_T.tolist() == [False, False, True, True, True]
    assert row.advantages_T.tolist() == [0, 0, 1, 1, 1]
    assert np.isnan(row.behaviour_T).all()
    assert row.plain
