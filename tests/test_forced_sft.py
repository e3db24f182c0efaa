"""forced_sft: GRPO on thoughts and own answers, imitation of right forced ones, nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.types import Group
from tests.test_brpo import NESTED, by_token, nested, scored_group
from trainer.algorithms import forced_sft, grpo
from trainer.algorithms.forced_sft import Config, sequences
from trainer.config import resolve

NAN = np.nan


def drawn(seed: int, per_cut: int = 1) -> Group:
    """Four rollouts, the last of them forced to its final answer; some verdicts are unknown."""
    rng = np.random.default_rng(seed)
    rollouts = [nested(g, int(rng.integers(0, 9)), (2, 4, 8), per_cut) for g in range(3)]
    rollouts.append(nested(3, 8, (2, 4, 8), per_cut, "length", closed=False))
    scores = rng.integers(0, 2, (4, 3, per_cut)).astype(float)
    scores[rng.random(scores.shape) < 0.1] = NAN
    return scored_group(rollouts, scores)


def test_right_forced_answers_get_the_weight_and_no_other_does() -> None:
    rollouts = [nested(0, 6, (2, 4, 8)), nested(1, 3, (2, 4, 8)), nested(2, 6, (2, 4, 8))]
    scores = np.array([[1, 0, 1], [0, 1, 0], [NAN, 1, 1]], float)[..., None]
    first, second, third = map(by_token, sequences([scored_group(rollouts, scores)], Config()))
    assert (first[101], first[102]) == (0.25, 0.25)
    assert 100 not in first  # the end marker was forced
    assert not {201, 202} & first.keys()  # wrong
    # the second thought ended before its cuts at 4 and 8: what is there is its own, and one counts
    assert not {200, 201} & second.keys()
    assert second[300] == second[301] == second[1001] < 0
    assert not {101, 102} & third.keys()  # unknown
    assert third[201] == third[202] == 0.25


def test_where_a_thought_is_cut_at_the_limit_the_final_answer_stays_grpos() -> None:
    rollouts = [nested(g, 4, (2, 4), 2, "length", closed=False) for g in range(2)]
    group = scored_group(rollouts, np.array([[[0, 0], [1, 1]], [[0, 0], [0, 0]]], float))
    whole, _ = map(by_token, sequences([group], Config(weight=0.5)))
    assert whole[201] == whole[1001] == pytest.approx(2**-0.5, rel=1e-4)
    assert whole[211] == 0.5  # the other answer at the limit: forced, and right
    untrained, _ = map(by_token, sequences([group], Config(weight=0)))
    assert untrained == {id: whole[id] for id in whole if id != 211 and id != 212}


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), per_cut=st.integers(1, 2), data=st.data())
def test_thoughts_and_final_answers_are_those_of_grpo(
    seed: int, per_cut: int, data: st.DataObject
) -> None:
    group = replace(drawn(seed, per_cut), kept_G=np.array([True, False, True, True]))
    masks = data.draw(st.booleans())
    more: dict[str, Any] = {"std": data.draw(st.sampled_from(["group", "none", "centred"]))}
    more["mask_truncated"] = masks
    got, plain = sequences([group], Config(**more)), grpo.sequences([group], grpo.Config(**more))
    assert [row.rollout for row in got] == [row.rollout for row in plain]
    for row, whole in zip(got, plain, strict=True):
        ours, theirs = by_token(row), by_token(whole)
        assert {id: ours[id] for id in theirs} == theirs
        assert {ours[id] for id in ours.keys() - theirs.keys()} <= {0.25}
        right = group.correct_GCA & group.known_GCA
        assert len(ours.keys() - theirs.keys()) <= 2 * right[row.rollout].sum()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), per_cut=st.integers(1, 2))
def test_the_order_of_rollouts_and_the_form_of_rows_are_nothing(seed: int, per_cut: int) -> None:
    group = drawn(seed, per_cut)
    order = np.random.default_rng(seed).permutation(len(group))
    rollouts, verdicts = ([x[i] for i in order] for x in (group.rollouts, group.verdicts))
    rewards = {name: values[order] for name, values in group.rewards.items()}
    other = replace(group, rollouts=tuple(rollouts), verdicts=tuple(verdicts), rewards=rewards)
    one = {row.rollout: by_token(row) for row in sequences([group], Config())}
    two = {int(order[row.rollout]): by_token(row) for row in sequences([other], Config())}
    assert one.keys() == two.keys()
    branched: dict[int, dict[int, float]] = {g: {} for g in one}
    for row in sequences([group], Config(rows="multi")):
        assert not branched[row.rollout].keys() & by_token(row).keys(), "trained twice"
        branched[row.rollout] |= by_token(row)
    for g, tokens in one.items():
        assert two[g] == pytest.approx(tokens, abs=1e-6)
        assert branched[g] == tokens


@pytest.mark.parametrize(
    ("form", "others", "reason"),
    [
        ("tree", {}, None),
        ("multi", {}, None),
        ("tree", {"budget": "unlimited"}, "needs nested cuts"),
        ("tree", {"budget": {**NESTED["budget"], "probe": "{answer}"}}, "go with probes"),
        ("tree", {"model": {"path": "base/find", "attention": "flash_attention_2"}}, "rows=multi"),
        ("multi", {"loss": {"name": "gspo"}}, "does not go with loss gspo.*rows=tree"),
        ("tree", {"shaping": ["repetition_dense"]}, None),
    ],
)
def test_what_does_not_go_together_is_refused(form: str, others: dict, reason: str | None) -> None:
    recipe = {"name": "x", **NESTED, **others, "algorithm": {"name": "forced_sft", "rows": form}}
    if reason is None:
        assert resolve(recipe).stages
        return
    with pytest.raises(ValueError, match=reason):
        resolve(recipe)


def test_what_it_says_of_itself() -> None:
    assert forced_sft.provides(Config(rows="multi")) == {"credit at cuts"}
    assert set(forced_sft.requires(Config(within="subgroup"))) == {"nested cuts", "subgroups"}
