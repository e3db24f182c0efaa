"""BRPO: the published numbers, and what they must be where published code stops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.verdict import Verdict
from samplers.types import Answer, Finish, Group, Plan, Rollout
from tests import made
from tests.vectors import Case, check, each
from trainer.algorithms import brpo
from trainer.algorithms.brpo import Config, answering, sequences, thinking
from trainer.config import resolve
from trainer.types import TrainSequence

PROMPT = 2
"""Tokens of the prompts that `made` makes."""


def by_prompt(inputs: dict[str, Any], name: str = "summary_scores") -> list[np.ndarray]:
    """The rows of each prompt, [G, S, A]; of ids alone."""
    values = np.array(inputs[name], dtype=float)
    return list(values.reshape(-1, inputs["G"], inputs["S"], values.shape[1] // inputs["S"]))


def flat(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.reshape(len(part), -1) for part in parts])


@each("brpo_thinking_advantage")
def test_thinking_vectors(case: Case) -> None:
    inputs = case["inputs"]
    found = []
    for scores_GSA in by_prompt(inputs):
        prior_GS = np.tile(inputs["budget_probs"], (inputs["G"], 1))
        found.append(thinking(scores_GSA, prior_GS, inputs["variance_reduction"]))
    names = {
        "segment_advantage": "advantages_GS",
        "V1": "v1_GS",
        "V2": "v2_GS",
        "Return": "returns_GS",
    }
    check(case, {key: flat([getattr(f, name) for f in found]) for key, name in names.items()})


@each("brpo_summary_advantage")
def test_answer_vectors(case: Case) -> None:
    inputs = case["inputs"]
    each_prompt = zip(by_prompt(inputs), by_prompt(inputs, "split_id"), strict=True)
    got = [answering(r, split[..., 0], inputs["summary_method"]) for r, split in each_prompt]
    check(case, {"summary_advantage": np.nan_to_num(flat(got))})  # NaN: not trained on


@each("brpo_token_assembly")
def test_token_vectors(case: Case) -> None:
    """A vector's tree is a tree row of ours without its prompt."""
    inputs = case["inputs"]
    G, S = inputs["G"], inputs["S"]
    scores = np.array(inputs["summary_scores"], dtype=float)
    token_advantage, trainable = [], []
    for first in range(0, len(scores), G):
        rollouts = [
            _of_bounds(g, inputs["segment_bounds"][first + g], S, inputs["budget_probs"])
            for g in range(G)
        ]
        group = scored_group(rollouts, scores[first : first + G].reshape(G, S, -1))
        for row in sequences([group], Config()):
            token_advantage.append(row.advantages_T[PROMPT:])
            trainable.append(row.mask_T[PROMPT:].astype(int))
    got = {"token_advantage": token_advantage, "trainable": trainable}
    check(case, {key: [values.tolist() for values in rows] for key, rows in got.items()})
    assert [len(row) for row in trainable] == inputs["tree_lengths"]


def _of_bounds(g: int, bounds: list[list[int]], cuts: int, prior: list[float]) -> Rollout:
    """[cot_start, cot_end, insert_start, summary_start, summary_end] of each answer."""
    answers = [
        Answer(end, made.run(range(start + 1, stop + 1), forced=begin - start), "x")
        for _, end, start, begin, stop in bounds
    ]
    per_cut = len(answers) // cuts
    nested = [answers[i : i + per_cut] for i in range(0, len(answers), per_cut)]
    thought = range(1, max(end for _, end, *_ in bounds) + 1)
    rollout = made.rollout(g, thought, nested)
    return replace(rollout, plan=replace(rollout.plan, weights=tuple(prior)))


def scored_group(rollouts: list[Rollout], scores_GSA: np.ndarray, serial: int = 0) -> Group:
    """NaN is an unknown verdict."""
    verdicts = tuple(
        tuple(
            tuple(
                Verdict(r > 0.5, 0.0, "error") if np.isnan(r) else Verdict(r > 0.5, r, "ok")
                for r in cut
            )
            for cut in rollout
        )
        for rollout in scores_GSA
    )
    group = made.group([0.0], serial, rollouts=tuple(rollouts))
    return replace(group, verdicts=verdicts, rewards={"correct": scores_GSA})


# -- a group of nested rollouts ------------------------------------------------------------------


def nested(
    index: int,
    length: int,
    cuts: tuple[int, ...],
    per_cut: int = 1,
    finish: Finish = "stop",
    closed: bool = True,
    weights: tuple[float, ...] = (),
) -> Rollout:
    """As the rollout code makes one: `length` thinking tokens, forced closes where it was cut.

    Ids say where they are: thought 1000.., answers 100 x cut + 10 x number + position.
    """
    seen = length + closed
    thought = replace(made.run(range(1001, 1001 + seen)), finish=finish)
    answers = []
    for c, cut in enumerate(cuts):
        after = seen if closed and cut >= length else min(cut, length)
        forced = int(not (closed and cut >= length))
        ids = [100 * (c + 1) + 10 * a + np.arange(2 + forced) for a in range(per_cut)]
        answers.append([Answer(after, made.run(i, forced), "x") for i in ids])
    plan = Plan(64, think=cuts[-1], cuts=cuts, answers_per_cut=per_cut, weights=weights)
    return replace(made.rollout(index, (), answers), thought=thought, closed=closed, plan=plan)


def by_token(row: TrainSequence) -> dict[int, float]:
    return dict(zip(row.ids_T[row.mask_T].tolist(), row.advantages_T[row.mask_T], strict=True))


def test_each_token_gets_the_advantage_of_the_segment_that_holds_it() -> None:
    """Two rollouts cut at places of their own; the second ends between its cuts."""
    group = scored_group(
        [nested(0, 6, (2, 4, 6), finish="length", closed=False), nested(1, 3, (1, 5, 6))],
        np.array([[0, 1, 1], [0, 0, 1]], float)[..., None],
    )
    found = thinking(group.total_GCA, np.full((2, 3), 1 / 3)).advantages_GS
    first, second = map(by_token, sequences([group], Config()))
    assert [first[1001 + t] for t in range(6)] == pytest.approx(np.repeat(found[0], 2), rel=1e-6)
    # one token before its first cut; two and the end marker before the second, where it collapses
    wanted = found[1][[0, 1, 1, 1]]
    assert [second[1001 + t] for t in range(4)] == pytest.approx(wanted, rel=1e-6)
    assert 100 not in first  # the forced end marker
    assert 101 in first
    assert {200, 201, 300, 301} <= second.keys()  # its own answers: nothing of them was forced


def test_an_eos_inside_the_thought_is_worth_nothing_from_there_on() -> None:
    rollouts = [nested(0, 3, (2, 4, 6), closed=False), nested(1, 3, (2, 4, 6))]
    group = scored_group(rollouts, np.ones((2, 3, 1)))
    assert brpo.scores(group, Config())[..., 0].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert brpo.scores(group, Config(ended_by_eos="close")).all()
    cut = scored_group([nested(0, 6, (2, 4, 6), finish="length", closed=False)], np.ones((1, 3, 1)))
    assert brpo.scores(cut, Config()).all()


def test_the_weight_of_answers_is_that_of_forced_ones() -> None:
    rollouts = [nested(0, 3, (2, 4), 2), nested(1, 4, (2, 4), 2, "length", closed=False)]
    group = scored_group(rollouts, np.array([[[1, 0], [1, 0]], [[0, 1], [1, 0]]], float))
    whole = [by_token(row) for row in sequences([group], Config())]
    assert whole[0][101] == whole[0][201] == 0.5
    quarter = [by_token(row) for row in sequences([group], Config(answer_weight=0.25))]
    assert quarter[0][101] == 0.125
    assert quarter[0][201] == 0.5  # the answer to a thought that ended by itself
    assert quarter[1][201] == 0.125
    untrained = [by_token(row) for row in sequences([group], Config(answer_weight=0))]
    assert {id for id in untrained[0] if id < 1000} == {200, 201, 210, 211}
    assert min(untrained[1]) > 1000
    for row, other in zip(whole, untrained, strict=True):
        assert {id: other[id] for id in other if id > 1000} == {i: row[i] for i in row if i > 1000}


def test_probes_and_summaries_that_are_left_out_are_not_trained_on() -> None:
    rollout = nested(0, 6, (2, 4), finish="length", closed=False)
    probe = Answer(2, made.run((100, 101), forced=2), None, probability=0.3)
    probed = replace(rollout, answers=((probe,), rollout.answers[1]))
    group = scored_group([probed, replace(probed, index=1)], np.array([[[0.3], [1]], [[0.1], [0]]]))
    for row in sequences([group], Config()):
        assert {id for id in by_token(row) if id < 1000} == {201, 202}
    group = scored_group(
        [rollout, replace(rollout, index=1)], np.array([[[1], [1]], [[0], [0]]], float)
    )
    for summary, ids in (("none", set()), ("grpo", {201, 202})):
        for row in sequences([group], Config(summary=summary)):
            assert {id for id in by_token(row) if id < 1000} == ids


def shaped_group(rng: np.random.Generator) -> tuple[Group, np.ndarray]:
    """Four rollouts with what a shaper adds, [G, S, A]."""
    rollouts = [nested(g, 2 + 2 * g, (2, 4, 8), 2) for g in range(4)]
    group = scored_group(rollouts, rng.integers(0, 2, (4, 3, 2)).astype(float))
    extra = rng.normal(size=(4, 3, 2))
    return replace(group, rewards={**group.rewards, "length": extra}), extra


def test_shaping_counts_where_it_is_asked_to() -> None:
    group, extra = shaped_group(np.random.default_rng(1))
    correct, prior = group.rewards["correct"], np.full((4, 3), 1 / 3)
    last = np.zeros_like(extra)
    last[:, -1] = extra[:, -1]
    own = extra[:, -1].mean(axis=1)
    want = {
        "cuts": thinking(correct + extra, prior).advantages_GS,
        "final": thinking(correct + last, prior).advantages_GS,
        "rollout": thinking(correct, prior).advantages_GS + (own - own.mean())[:, None],
    }
    everywhere = sequences([group], Config())
    for where, advantages in want.items():
        found = sequences([group], Config(shaping=where))
        for g, (row, plain) in enumerate(zip(found, everywhere, strict=True)):
            tokens, answers = by_token(row), by_token(plain)
            assert tokens[1001] == pytest.approx(advantages[g, 0], rel=1e-5)
            assert {i: tokens[i] for i in tokens if i < 1000} == {
                i: answers[i] for i in answers if i < 1000
            }
    bare = replace(group, rewards={"correct": correct})
    for where in want:
        for row, plain in zip(
            sequences([bare], Config(shaping=where)), sequences([bare], Config()), strict=True
        ):
            np.testing.assert_allclose(row.advantages_T, plain.advantages_T, atol=1e-6)


# -- what is unknown, kept, alone ----------------------------------------------------------------


def test_unknown_answers_leave_every_mean() -> None:
    """One answer of two unknown at a cut: as if it had been one. Both: the rollout is not there."""
    scores = np.array([[[1, 0], [1, np.nan]], [[1, 1], [0, 0]], [[np.nan, np.nan], [1, 1]]])
    prior = np.full((3, 2), 0.5)
    found = thinking(scores, prior)
    halves = np.array([[[0.5], [1]], [[1], [0]]])
    np.testing.assert_allclose(found.advantages_GS[:2], thinking(halves, prior[:2]).advantages_GS)
    assert np.isnan(found.advantages_GS[2]).all()
    got = answering(scores, np.tile([0, 1], (3, 1)))
    assert got[0].ravel().tolist() == pytest.approx([0.5, -0.5, 0.0, np.nan], nan_ok=True)
    rollouts = [nested(g, 6, (3, 6), 2, "length", closed=False) for g in range(3)]
    rows = sequences([scored_group(rollouts, scores)], Config())
    assert [row.rollout for row in rows] == [0, 1]
    assert 211 not in by_token(rows[0])
    assert {201, 202} <= by_token(rows[0]).keys()


def test_selecting_rollouts_changes_no_advantage() -> None:
    rollouts = [nested(g, 4 + g, (2, 4, 8)) for g in range(4)]
    group = scored_group(rollouts, np.random.default_rng(0).integers(0, 2, (4, 3, 1)).astype(float))
    everyone = sequences([group], Config())
    kept = replace(group, kept_G=np.array([False, True, False, True]))
    chosen = sequences([kept], Config())
    assert [row.rollout for row in chosen] == [1, 3]
    for row, other in zip(chosen, everyone[1::2], strict=True):
        np.testing.assert_array_equal(row.advantages_T, other.advantages_T)


@pytest.mark.parametrize("baseline", ["centred", "leave_one_out"])
def test_a_rollout_without_company_is_compared_with_its_own_past_alone(baseline: Any) -> None:
    scores = np.array([[[1.0], [0.0], [1.0]]])
    found = thinking(scores, np.full((1, 3), 1 / 3), baseline=baseline)
    assert not found.v2_GS.any()
    assert found.advantages_GS[0] == pytest.approx([2 / 3, 1 / 3 - 1 / 3 * 2 / 3, 1 / 3 - 2 / 27])
    assert not answering(scores, np.array([[0, 1, 2]]), baseline=baseline).any()


def test_without_groups_and_with_groups_of_any_size() -> None:
    groups = [
        scored_group([nested(g, 3 + g, (2, 4)) for g in range(n)], np.ones((n, 2, 1)), serial=n)
        for n in (1, 3, 2)
    ]
    assert [row.group for row in sequences(groups, Config())] == [1, 3, 3, 3, 2, 2]
    assert sequences([], Config()) == []


# -- what it goes with ---------------------------------------------------------------------------

NESTED: dict[str, Any] = {
    "model": {"path": "base/find"},
    "thinking": {"start": "<think>", "end": "</think>"},
    "data": {"task": "find"},
    "budget": {"name": "anytime", "think": 100, "answer": 8},
    "rollout": {"max_tokens": 128},
}


@pytest.mark.parametrize(
    ("form", "others", "reason"),
    [
        ("tree", {}, None),
        ("multi", {}, None),
        ("tree", {"budget": "unlimited"}, "needs nested cuts"),
        ("tree", {"model": {"path": "base/find", "attention": "flash_attention_2"}}, "rows=multi"),
        ("tree", {"loss": {"name": "gspo"}}, None),
        ("multi", {"loss": {"name": "gspo"}}, "does not go with loss gspo.*rows=tree"),
        ("multi", {"loss": {"importance": "sequence"}}, "does not go with importance sequence"),
        ("tree", {"loss": {"importance": "token", "importance_normalize": True}}, "normalized"),
    ],
)
def test_what_does_not_go_together_is_refused(form: str, others: dict, reason: str | None) -> None:
    recipe = {"name": "x", **NESTED, **others, "algorithm": {"name": "brpo", "rows": form}}
    if reason is None:
        assert resolve(recipe).stages
        return
    with pytest.raises(ValueError, match=reason):
        resolve(recipe)


def test_a_brpo_that_trains_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="train neither thoughts nor answers"):
        Config(variance_reduction="notrain", summary="none")


# -- by definition -------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3))


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores [G, S, A] with some unknown, and a prior [G, S]."""
    G, S, A = draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    scores = rng.integers(0, 2, (G, S, A)).astype(float)
    scores[rng.random(scores.shape) < draw(st.sampled_from([0, 0.3]))] = np.nan
    return scores, rng.dirichlet(np.ones(S), G)


@settings(deadline=None)
@given(scored=scored(), loo=st.booleans())
def test_thinking_by_loops(scored: tuple[np.ndarray, np.ndarray], loo: bool) -> None:
    scores, prior = scored
    G, S, _ = scores.shape
    known = [g for g in range(G) if all((~np.isnan(scores[g, s])).any() for s in range(S))]
    r = {g: [float(np.nanmean(scores[g, s])) for s in range(S)] for g in known}
    back = {g: [sum(prior[g, k] * r[g][k] for k in range(s, S)) for s in range(S)] for g in known}
    baseline: Any = "leave_one_out" if loo else "centred"
    got = thinking(scores, prior, baseline=baseline)
    for g in range(G):
        if g not in known:
            assert np.isnan(got.advantages_GS[g]).all()
            continue
        others = [h for h in known if h != g] if loo else known
        for s in range(S):
            v1 = 0.0
            if s:
                weights = [2.0**k for k in range(s)]
                v1 = sum(w * x for w, x in zip(weights, r[g], strict=False)) / sum(weights)
                v1 *= sum(prior[g, s:])
            v2 = sum(back[h][s] for h in others) / len(others) if len(known) > 1 else 0.0
            want = back[g][s] - (s * v1 + (S - s) * v2) / S
            assert got.advantages_GS[g, s] == pytest.approx(want, abs=1e-12)


@settings(deadline=None)
@given(scored=scored(), loo=st.booleans(), data=st.data())
def test_answers_by_loops(
    scored: tuple[np.ndarray, np.ndarray], loo: bool, data: st.DataObject
) -> None:
    scores, _ = scored
    G, S, A = scores.shape
    ends = [data.draw(st.integers(0, S - 1)) for _ in range(G)]  # cuts collapse from there on
    split = np.minimum(np.arange(S), np.array(ends)[:, None])
    got = answering(scores, split, baseline="leave_one_out" if loo else "centred")
    for g, s, a in np.ndindex(G, S, A):
        if np.isnan(scores[g, s, a]):
            assert np.isnan(got[g, s, a])
            continue
        if A == 1:
            company = [(h, s, 0) for h in range(G)]
        else:
            company = [(g, k, b) for k in range(S) if split[g, k] == split[g, s] for b in range(A)]
        values = [scores[at] for at in company if not np.isnan(scores[at])]
        against = [scores[at] for at in company if at != (g, s, a) and not np.isnan(scores[at])]
        want = scores[g, s, a] - np.mean(against if loo and against else values)
        assert got[g, s, a] == pytest.approx(want, abs=1e-12)


@settings(deadline=None)
@given(scored=scored(), mode=st.sampled_from(["brpo", "v1only", "v2only", "none", "notrain"]))
def test_one_budget_is_grpo_without_deviation(
    scored: tuple[np.ndarray, np.ndarray], mode: Any
) -> None:
    scores = scored[0][:, :1]
    got = thinking(scores, np.ones((len(scores), 1)), mode).advantages_GS[:, 0]
    r = np.array([np.nanmean(x) if (~np.isnan(x)).any() else np.nan for x in scores[:, 0]])
    known = ~np.isnan(r)
    mean = r[known].mean() if known.sum() > 1 else 0.0
    want = {"brpo": r - mean, "v2only": r - mean, "v1only": r, "none": r, "notrain": 0 * r}[mode]
    np.testing.assert_allclose(got, want, atol=1e-12)


@settings(deadline=None)
@given(scored=scored(), seed=st.integers(0, 99))
def test_the_order_of_rollouts_is_nothing(scored: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    scores, prior = scored
    order = np.random.default_rng(seed).permutation(len(scores))
    one, two = thinking(scores, prior), thinking(scores[order], prior[order])
    np.testing.assert_allclose(one.advantages_GS[order], two.advantages_GS, atol=1e-12)
    split = np.tile(np.arange(scores.shape[1]), (len(scores), 1))
    np.testing.assert_allclose(
        answering(scores, split)[order], answering(scores[order], split), atol=1e-12
    )
