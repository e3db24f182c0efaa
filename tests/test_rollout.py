"""A budget means what it says: every token of a rollout against a reference written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import seeds
from samplers.budgets import fixed, unlimited
from samplers.render import Renderer
from samplers.rollout import THOUGHT, RolloutWorker, Run, split
from samplers.run import forced, join
from samplers.types import Answer, Completion, Job, Plan, Request, Rollout, Tokens
from tests.scripted import BARE, END, EOS, PROMPT, RENDERER, ScriptedEngine, by_hand
from tests.vectors import cases


def check(rollout: Rollout, plan: Plan, seed: int, renderer: Renderer = RENDERER) -> None:
    expected = by_hand(plan, seed, renderer)
    assert rollout.thought.ids_T.tolist() == expected["thought"]
    np.testing.assert_array_equal(
        rollout.thought.logprobs_T, np.array(expected["logprobs"], np.float32)
    )
    assert sampled_at(rollout.thought) == expected["when"]
    assert (rollout.closed, rollout.skipped) == (expected["closed"], expected["skipped"])
    assert rollout.ended == (expected["closed"] or expected["skipped"])
    assert rollout.thought.finish == expected["finish"]
    assert not rollout.unfinished
    assert [len(cut) for cut in rollout.answers] == [len(cut) for cut in expected["answers"]]
    flat = [answer for cut in expected["answers"] for answer in cut]
    pairs = zip((a for cut in rollout.answers for a in cut), flat, strict=True)
    for answer, (after, ids, logprobs, finish, text, probability, when) in pairs:
        assert answer.after == after
        assert answer.tokens.ids_T.tolist() == ids
        np.testing.assert_array_equal(answer.tokens.logprobs_T, np.array(logprobs, np.float32))
        assert sampled_at(answer.tokens) == when
        assert answer.tokens.finish == finish
        assert answer.text == text
        assert answer.probability == (probability and pytest.approx(probability))
        # The cap holds for what one answer sees and says.
        assert answer.after + len(answer.tokens) <= plan.max_tokens
    assert rollout.prompt_ids_T.tolist() == renderer.render(PROMPT, plan).tolist()
    assert (rollout.prompt, rollout.plan, rollout.seed) == (3, plan, seed)


def sampled_at(tokens: Tokens) -> list[int | None]:
    """In which step each token was sampled, by its spans; forced ones are of none."""
    out: list[int | None] = [None] * len(tokens)
    for first, version in tokens.spans:
        out[first:] = [version] * (len(tokens) - first)
    versions = [version for _, version in tokens.spans]
    assert versions == sorted(set(versions))
    return [None if forced else at for at, forced in zip(out, tokens.forced_T, strict=True)]


def roll(
    plans: Sequence[Plan], renderer: Renderer = RENDERER, seed: int = 0, engine: Any = None
) -> list[Rollout]:
    """Rollouts side by side, chunks continued step by step by weights of versions 0, 1, 2, ..."""
    worker = RolloutWorker(engine or ScriptedEngine(), renderer)
    jobs = [Job(PROMPT, plan, 0, i, seed=seed + i) for i, plan in enumerate(plans)]
    made: dict[int, Rollout] = {}
    for step in range(100):
        worker.engine.version = step
        made |= {r.index: r for r in worker.generate(jobs)}
        for rollout in made.values():
            chunk = rollout.plan.chunk
            assert chunk is None or sampled_at(whole(rollout)).count(step) <= chunk
        jobs = [replace(j, resume=made[j.index]) for j in jobs if made[j.index].unfinished]
        if not jobs:
            break
    assert worker.stats()["rollouts"] == len(plans)
    return [made[i] for i in range(len(plans))]


def whole(rollout: Rollout) -> Tokens:
    return join(rollout.thought, rollout.final.tokens)


@st.composite
def plans(draw_: Any) -> Plan:
    think = draw_(st.none() | st.integers(0, 12))
    cap = draw_(st.integers(26, 40)) if think is not None else draw_(st.integers(8, 40))
    cuts = sorted(draw_(st.sets(st.integers(0, min(think or cap, cap)), max_size=4)))
    cuts = [cut for cut in cuts if think is None or cut <= think]
    answers = draw_(st.integers(1, 3))
    weights = [Fraction(1, len(cuts)) for _ in cuts] if draw_(st.booleans()) else []
    return Plan(
        max_tokens=cap,
        think=think,
        answer=draw_(st.none() | st.integers(1, 9)),
        cuts=tuple(cuts),
        answers_per_cut=answers,
        weights=tuple(map(float, weights)),
        probe=draw_(st.sampled_from(["", "{answer}", "B{answer}{A"])) if len(cuts) > 1 else "",
        collapse=draw_(st.booleans()),
        close=draw_(st.sampled_from(["", "w</think>", "</think>!:"])),
        after_close=draw_(st.sampled_from(["", "A="])),
        prefill=draw_(st.sampled_from(["", "T", "B1</think>", "</think>"])),
        template=draw_(st.sampled_from([{}, {"enable_thinking": False}])),
        chunk=draw_(st.none() | st.integers(1, 12)) if not cuts and answers == 1 else None,
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(plans(), min_size=1, max_size=6), st.integers(0, 2**40))
def test_every_token_is_the_reference(plan_list, seed):
    """Rollouts of any plans side by side are each what they would be alone."""
    for i, rollout in enumerate(roll(plan_list, seed=seed)):
        check(rollout, plan_list[i], seed + i)


@settings(max_examples=150, deadline=None)
@given(plans(), st.integers(0, 2**40))
def test_nothing_is_generated_or_computed_twice(plan, seed):
    """What the engine samples is in the rollout, once; its KV is computed once a step."""
    engine = ScriptedEngine()
    (rollout,) = roll([plan], seed=seed, engine=engine)
    expected, counted = by_hand(plan, seed), engine.counters
    assert counted["sampled"] == rollout.sampled_tokens + expected["lost"]
    cuts = {cut[0].after if plan.collapse else c: cut for c, cut in enumerate(rollout.answers)}
    asked = [a for cut in cuts.values() for a in cut[: 1 if cut[0].probability else None]]
    probes = [a for a in asked if a.probability]
    assert all(a.tokens.forced_T.all() and not a.tokens.spans for a in probes)
    gold = len(plan.probe.replace("{answer}", "A")) + 1
    assert counted["given"] == gold * len(probes)
    if rollout.thought.spans and plan.chunk is None:  # answers are forks of the thought's own KV
        begun = int(rollout.thought.forced_T.sum())
        inserted = sum(int(a.tokens.forced_T.sum()) for a in asked) - gold * len(probes)
        assert counted["prefilled"] == len(rollout.prompt_ids_T) + begun + inserted


@settings(max_examples=150, deadline=None)
@given(plans(), st.integers(0, 2**40), st.integers(1, 9))
def test_a_chunk_ends_where_it_should(plan, seed, chunk):
    plan = replace(plan, cuts=(), weights=(), probe="", answers_per_cut=1, chunk=chunk)
    (rollout,) = roll([plan], seed=seed)
    steps, lost = sampled_at(whole(rollout)), by_hand(plan, seed)["lost"]
    counts = [steps.count(i) for i in range(by_hand(plan, seed)["steps"])]
    assert all(n + lost >= chunk for n in counts[:-1])  # every step but the last is used up
    assert sum(counts) == rollout.sampled_tokens
    if len(counts) == 1 and chunk >= plan.max_tokens:
        alone = roll([replace(plan, chunk=None)], seed=seed)[0]
        assert whole(rollout).ids_T.tolist() == whole(alone).ids_T.tolist()


def test_a_cut_thought_is_closed_and_answered():
    """Supervised data: of somebody's thought as much as is wanted, the model's answer to it."""
    for kept in (0, 4, 9):
        plan = Plan(40, think=kept, close="w</think>", after_close="A=")
        ids = np.resize(np.array([9, 10, 11], np.int32), kept)
        blank = Answer(kept, forced(ids[:0]), None)
        hand = Rollout(3, 0, 0, 5, plan, ids[:0], forced(ids), False, ((blank,),), unfinished=True)
        engine = ScriptedEngine()
        worker = RolloutWorker(engine, RENDERER)
        (made,) = worker.generate([Job(PROMPT, plan, 0, 0, 5, resume=hand)])
        close = RENDERER.encode("w</think>A=").tolist()
        assert made.thought.ids_T.tolist() == ids.tolist()
        assert made.prompt_ids_T.tolist() == RENDERER.render(PROMPT, plan).tolist()
        assert made.final.tokens.ids_T[:4].tolist() == close
        assert engine.counters["sampled"] == made.answer_tokens == made.sampled_tokens > 0
        assert made.final.reached
        assert not made.unfinished


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.sampled_from(["", "T"]), st.integers(1, 3), st.integers(0, 2**40))
def test_without_markers_all_of_it_is_answer(cap, prefill, answers, seed):
    plan = Plan(max_tokens=cap + 1, prefill=prefill, answers_per_cut=answers)
    (rollout,) = roll([plan], BARE, seed)
    check(rollout, plan, seed, BARE)
    assert len(rollout.thought) == 0
    assert not rollout.closed


def many(plan: Plan, n: int = 60) -> list[Rollout]:
    return roll([plan] * n)


def test_a_budget_is_kept_exactly_and_always_answered():
    for think in (0, 1, 7):
        rollouts = many(Plan(40, think=think))
        forced = [r for r in rollouts if not r.closed]
        assert all(r.think_tokens <= think for r in rollouts)
        assert forced
        assert {r.think_tokens for r in forced if r.thought.finish == "length"} == {think}
        for r in forced:
            assert r.final.tokens.ids_T[0] == END
            assert r.final.tokens.forced_T.tolist() == [True] + [False] * (len(r.final.tokens) - 1)
        assert all(r.final.reached for r in rollouts)
        assert EOS not in np.concatenate([r.thought.ids_T for r in rollouts])


def test_an_eos_in_the_thought_costs_the_answer_only_without_a_budget():
    early = [r for r in many(Plan(40)) if r.thought.ids_T[-1] == EOS]
    assert early
    for r in early:
        assert (r.closed, r.final.text, len(r.final.tokens), r.truncated) == (False, None, 0, False)
    for r in (r for r in many(Plan(40, think=30)) if not r.closed and r.think_tokens < 30):
        assert r.thought.finish == "stop"  # the eos that was dropped
        assert r.final.reached


def test_truncation_is_told_by_the_finish_reason():
    rollouts = many(Plan(12), 200)
    kinds = {(r.closed, r.truncated) for r in rollouts}
    assert kinds == {(True, True), (True, False), (False, True), (False, False)}
    for r in rollouts:
        assert r.response_tokens <= 12
        if r.response_tokens < 12:
            assert not r.truncated


def test_cuts_see_nested_parts_of_one_thought():
    plan = Plan(60, cuts=(0, 3, 10, 60), answers_per_cut=2)
    rollouts = many(plan)
    collapsed = [r for r in rollouts if r.closed and r.think_tokens < 10]
    assert collapsed
    for r in collapsed:
        for answer in r.answers[2]:
            assert answer.after == len(r.thought)  # the natural end marker is seen, none is forced
            assert not answer.tokens.forced_T.any()
    cut = [r for r in rollouts if r.think_tokens > 3]
    assert {a.after for r in cut for a in r.answers[1]} == {3}
    assert any(
        r.answers[1][0].tokens.ids_T.tolist() != r.answers[1][1].tokens.ids_T.tolist() for r in cut
    )


def test_follow_ups_are_added_in_rollout_order():
    class Watched(ScriptedEngine):
        def add(self, requests):
            calls.append([r.seed for r in requests])
            super().add(requests)

    calls: list[list[int]] = []

    jobs = [Job(PROMPT, Plan(30, cuts=(1, 2), answer=3), 0, i, seed=i) for i in range(9)]
    engine = Watched()
    RolloutWorker(engine, RENDERER).generate(jobs)
    order = {seeds.key(i, p, c, 0): (i, c) for i in range(9) for p in (0, 1) for c in (0, 1)}
    batches = [[order[s] for s in call] for call in calls if call]
    assert max(map(len, batches[1:])) > 2
    assert all(batch == sorted(batch) for batch in batches)
    assert not any(engine.kept.values())  # every prefix was released


def test_abort_ends_what_it_names_and_nothing_else():
    class Aborting(ScriptedEngine):
        def step(self):
            self.counters["steps"] += 1
            if self.counters["steps"] == 2:
                worker.abort([(0, 1), (0, 5)])
            return super().step()

    plan = Plan(40, think=9, answer=20, answers_per_cut=2)
    jobs = [Job(PROMPT, plan, 0, i, seed=50 + i) for i in range(6)]
    worker = RolloutWorker(Aborting(), RENDERER)
    worker.engine.version = 0  # the reference counts steps from there
    rollouts = worker.generate(jobs)
    for i, r in enumerate(rollouts):
        if i not in (1, 5):
            check(r, plan, 50 + i)
            continue
        assert [len(cut) for cut in r.answers] == [2]
        assert "abort" in {r.thought.finish, *(a.tokens.finish for a in r.answers[0])}
        assert all(a.text is None for a in r.answers[0] if a.tokens.finish == "abort")
    again = worker.generate(jobs[:2])  # an abort holds for the call it was made in
    assert [r.thought.finish for r in again] != ["abort", "abort"]


@pytest.mark.parametrize(
    ("plan", "renderer", "words"),
    [
        (Plan(10, think=10), RENDERER, "max_tokens 10 leaves no token .* 12 at least"),
        (Plan(10, prefill="A" * 10), RENDERER, "max_tokens 10 leaves no token"),
        (Plan(10, think=2, close="w"), RENDERER, "close 'w' does not contain the end marker"),
        (Plan(10, think=2), BARE, "think 2.* need thinking markers"),
        (Plan(10, cuts=(2,)), BARE, r"cuts \(2,\) need thinking markers"),
        (Plan(10, chunk=4, cuts=(2,)), RENDERER, r"chunk 4 with cuts \(2,\).*has no cuts and one"),
        (Plan(10, chunk=4, answers_per_cut=2), RENDERER, "chunk 4 .* answers_per_cut 2"),
        (Plan(10, chunk=0), RENDERER, "chunk 0: must be 1 at least"),
        (Plan(10, answers_per_cut=0), RENDERER, "answers_per_cut 0: must be 1"),
        (Plan(10, think=-1), RENDERER, "think -1: must be 0"),
        (Plan(10, answer=0), RENDERER, "answer 0: must be 1"),
        (Plan(10, cuts=(4, 2)), RENDERER, r"cuts \(4, 2\).*ascend; sort them"),
        (Plan(10, cuts=(-1, 2)), RENDERER, r"cuts \(-1, 2\): must be 0 at least"),
        (Plan(10, cuts=(2, 11)), RENDERER, r"cuts \(2, 11\) go beyond max_tokens 10"),
        (Plan(10, think=5, cuts=(2, 6)), RENDERER, r"cuts \(2, 6\) go beyond think 5"),
        (Plan(10, cuts=(2, 6), weights=(1.0,)), RENDERER, r"weights \(1.0,\): one per cut"),
        (Plan(10, cuts=(2, 6), weights=(1.5, -0.5)), RENDERER, "0 at least each"),
        (Plan(10, cuts=(2, 6), weights=(0.5, 0.6)), RENDERER, "sum to 1.1; make it 1"),
        (Plan(10, cuts=(2, 6), probe="gold"), RENDERER, "probe 'gold' .*name the gold as {answer}"),
        (Plan(100), RENDERER, "'p3': 7 prompt tokens . max_tokens 100 .*context of 100"),
    ],
)
def test_plans_that_cannot_be_are_refused_before_generation(plan, renderer, words):
    engine = ScriptedEngine(context=100)
    fine = Job(PROMPT, Plan(10), 0, 0, seed=0)
    with pytest.raises(ValueError, match=words):
        RolloutWorker(engine, renderer).generate([fine, replace(fine, plan=plan)])
    assert not engine.pending


def test_no_effect_is_said():
    with pytest.warns(UserWarning, match="probe '{answer}' has no effect"):
        roll([Plan(10, cuts=(3,), probe="{answer}")])
    with pytest.warns(UserWarning, match="no effect with thinking: none"):
        roll([Plan(10, after_close="A=")], BARE)


@settings(max_examples=200)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 25))
def test_split_spans(sizes, at):
    """Spans of a run, split, give every token the version it had."""
    firsts = np.cumsum([0, *sizes])[:-1].tolist()
    spans = tuple((first, 10 + i) for i, first in enumerate(firsts))
    versions = [10 + i for i, size in enumerate(sizes) for _ in range(size)]
    at = min(at, len(versions))
    before, after = split(spans, at)
    for part, tokens in ((before, versions[:at]), (after, versions[at:])):
        if not tokens:
            continue
        ends = [first for first, _ in part[1:]] + [len(tokens)]
        spread = [v for (first, v), end in zip(part, ends, strict=True) for _ in range(first, end)]
        assert spread == tokens


def test_elastic_reasoning_splices_as_published():
    """Second-stage prompts of the released code, and which end marker was not sampled."""
    for case in cases("elastic_splice"):
        inputs, expected = case["inputs"], case["expected"]

        def local(ids: list[int], end: int = inputs["think_end_id"]) -> list[int]:
            return [END if t == end else 7 + t % 33 for t in ids]

        rows = zip(inputs["prompt_ids"], inputs["thinking_ids"], strict=True)
        for i, (prompt, thinking) in enumerate(rows):
            request = splice(local(prompt), local(thinking))
            whole = [*local(prompt), *local(thinking), *request.ids.tolist()]
            assert whole == local(expected["second_stage_prompts"][i])
            assert request.prefix == (0, len(prompt) + len(thinking))
            forced = None if len(request.ids) == 0 else len(thinking)
            assert forced == expected["forced_think_end_index"][i]


def splice(prompt: list[int], thinking: list[int]) -> Request:
    """The second request, after a thought that was told to take len(thinking) tokens at most."""
    job = Job(PROMPT, Plan(40, think=len(thinking)), 0, 0, seed=0)
    run = Run(job, np.array(prompt, np.int32), RENDERER)
    list(run.begin())
    ids = np.array(thinking, np.int32)
    finish = "stop" if thinking[-1] == END else "length"
    done = Completion(0, ids, np.zeros(len(ids), np.float32), finish, ((0, 0),), 0)
    ((_, request),) = run.take(THOUGHT, done)
    return request


def test_budget_policies_make_plans():
    free = unlimited.plans(unlimited.Config(max_tokens=64, suffix="!"), PROMPT, 3, 0, None, 0)
    assert free == [Plan(64, suffix="!")] * 3
    tight = fixed.plans(fixed.Config(think=8, answer=4, max_tokens=64), PROMPT, 2, 0, None, 0)
    assert tight == [Plan(64, think=8, answer=4)] * 2
    with pytest.raises(ValueError, match=r"think=60.*answer=4 need 65 .*max_tokens=64"):
        fixed.Config(think=60, answer=4, max_tokens=64)
