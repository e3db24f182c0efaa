"""Dense rewards: every token gets what is still to come, and nothing that has been."""

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
from trainer import rehearsal
from trainer.config import resolve
from trainer.types import TrainSequence

PROMPT = 2  # tokens, of made rollouts


def group(rewards: Sequence[float], dense: Sequence[Sequence[float]], **fields: Any) -> Group:
    """Rollout g thinks g + 1 tokens and answers one forced and one sampled token."""
    arrays = tuple(np.array(values, dtype=float) for values in dense)
    one = made.group(rewards, token_rewards={"rep": arrays}, **fields)
    for rollout, values in zip(one.rollouts, arrays, strict=True):
        assert len(values) == rollout.response_tokens
    return one


def rows_of(groups: list[Group], name: str = "dense", **settings: Any) -> list[TrainSequence]:
    module, config = seam.resolve("trainer.algorithms", {"name": name, **settings})
    found: list[TrainSequence] = module.sequences(groups, config)
    return found


def test_by_hand() -> None:
    one = group([1.0, 0.0], [[-1.0, 0.0, -2.0], [0.0, -3.0, 0.0, 0.0]])
    first, second = rows_of([one], std="none")
    # the forced token before the last has a reward that the thought can still avoid
    assert first.advantages_T.tolist() == [0, 0, 0.5 - 3, 0, 0.5 - 2]
    assert second.advantages_T.tolist() == [0, 0, -0.5 - 3, -0.5 - 3, 0, -0.5]
    half, _ = rows_of([one], std="none", coef=0.5)
    assert half.advantages_T.tolist() == [0, 0, 0.5 - 1.5, 0, 0.5 - 1]


def test_without_token_rewards_it_is_grpo() -> None:
    groups = [group([1.0, 0.0, 0.0], [[0] * 3, [0] * 4, [0] * 5])]
    for settings in ({}, {"std": "batch"}, {"exclude_truncated_from_stats": True}):
        for a, b in zip(
            rows_of(groups, **settings), rows_of(groups, "grpo", **settings), strict=True
        ):
            assert np.array_equal(a.advantages_T, b.advantages_T)


@given(seed=st.integers(0, 1000), n=st.integers(1, 5), baseline=st.sampled_from(["none", "others"]))
def test_against_sums_token_by_token(seed: int, n: int, baseline: str) -> None:
    rng = np.random.default_rng(seed)
    dense = [rng.normal(size=g + 3).round(2) for g in range(n)]
    one = group([1.0] * n, [d.tolist() for d in dense])
    for g, row in enumerate(rows_of([one], baseline=baseline)):
        for t in np.flatnonzero(row.mask_T):
            at = t - PROMPT
            want = sum(dense[g][at:])
            if baseline == "others" and n > 1:
                want -= np.mean([sum(dense[j][at:]) for j in range(n) if j != g])
            assert row.advantages_T[t] == pytest.approx(want, abs=1e-5)


def test_others_that_are_unknown_set_no_baseline() -> None:
    dense = [[-1.0, 0, 0], [0, -1.0, 0, 0], [-9.0, 0, 0, 0, 0]]
    first, second = rows_of([group([1.0, 1.0, np.nan], dense)], baseline="others")
    alone = rows_of([group([1.0, 1.0], dense[:2])], baseline="others")
    assert np.array_equal(first.advantages_T, alone[0].advantages_T)
    assert np.array_equal(second.advantages_T, alone[1].advantages_T)
    dense[2] = [np.nan] * 5  # as shapers leave those of unknown verdicts
    for row, want in zip(
        rows_of([group([1.0, 1.0, np.nan], dense)], baseline="others"), alone, strict=True
    ):
        assert np.array_equal(row.advantages_T, want.advantages_T)


def test_truncated_others_set_none_where_they_are_excluded() -> None:
    dense = [[-1.0, 0, 0], [0, -1.0, 0, 0], [-9.0, 0, 0, 0, 0]]
    cut = made.rollout(2, (11, 12, 13), finish="length")
    whole = [made.rollout(g, range(11, 12 + g)) for g in range(2)]
    one = group([1.0, 1.0, 1.0], dense, rollouts=(*whole, cut))
    settings = {"baseline": "others", "exclude_truncated_from_stats": True}
    first, _, third = rows_of([one], **settings)
    assert first.advantages_T[PROMPT] == 0  # against the second alone
    assert third.advantages_T[PROMPT] == -8  # against both


def test_subgroups_are_each_others_baseline() -> None:
    dense = [[-1.0, 0, 0], [0, -1.0, 0, 0], [-9.0, 0, 0, 0, 0]]
    one = group([1.0, 1.0, 1.0], dense)
    marked = tuple(
        replace(r, plan=replace(r.plan, subgroup="ab"[g // 2])) for g, r in enumerate(one.rollouts)
    )
    first, second, third = rows_of(
        [replace(one, rollouts=marked)], baseline="others", within="subgroup"
    )
    assert first.advantages_T[PROMPT] == 0  # -1 of its own against -1 of the other
    assert second.advantages_T[PROMPT + 1] == -1
    assert third.advantages_T[PROMPT] == -9  # alone


def test_what_the_answer_did_not_see_is_not_to_go() -> None:
    """A final answer after two of three thinking tokens: neither row nor rewards have a third."""
    early = made.rollout(0, (11, 12, 13), answers=[[Answer(2, made.run((21, 22), 1), "x")]])
    one = made.group([1.0], rollouts=(early,))
    one = replace(one, token_rewards={"rep": (np.array([0.0, -7.0, 0, -1.0]),)})
    (row,) = rows_of([one])
    assert row.advantages_T.tolist() == [0, 0, -8, -8, 0, -1]


def test_it_says_that_it_needs_token_rewards() -> None:
    module, config = seam.resolve("trainer.algorithms", "dense")
    assert set(module.requires(config)) == {"token rewards"}
    assert rows_of([]) == []


def test_a_single_rollout_is_not_refused_where_tokens_are_rewarded() -> None:
    """The made-up thought of a rehearsal is too short to repeat itself; a real one is not."""
    recipe = {
        "name": "x",
        "model": {"path": "base/find"},
        "data": {"task": "find"},
        "rollout": {"max_tokens": 128},
        "rollouts_per_prompt": 1,
        "algorithm": "dense",
        "shaping": ["repetition_dense"],
    }
    (stage,) = resolve(recipe).stages
    rehearsal.check(stage, made.group([1.0]).prompt, None)
    (plain,) = resolve({**recipe, "algorithm": "grpo", "shaping": []}).stages
    with pytest.raises(ValueError, match="grpo compares the rollouts"):
        rehearsal.check(plain, made.group([1.0]).prompt, None)
