"""What travels between processes comes back as it was."""

from __future__ import annotations

import pickle
from dataclasses import fields
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import columns
from samplers.types import Answer, Job, Plan, Prompt, Rollout, Tokens

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(lambda x: np.array(x, np.int32))
FINISH = st.sampled_from(["stop", "length", "abort", "repetition"])
TEXT = st.none() | st.text(max_size=5)


@st.composite
def tokens(draw: Any) -> Tokens:
    ids = draw(IDS)
    number = st.floats(-50, 0, width=32) | st.just(np.nan)
    logprobs = draw(st.lists(number, min_size=len(ids), max_size=len(ids)))
    spans = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99)), max_size=3))
    return Tokens(ids, np.array(logprobs, np.float32), draw(FINISH), tuple(spans))


@st.composite
def rollouts(draw: Any) -> list[tuple[Job, Rollout]]:
    out = []
    for index in range(draw(st.integers(0, 4))):
        prompt = Prompt(draw(st.integers(0, 9)), "p", (), "x", "", "exact")
        seed = draw(st.integers(0, 2**64 - 1))
        job = Job(prompt, Plan(9, think=index), draw(st.integers(0, 2**40)), index, seed)
        answer = st.builds(Answer, st.integers(0, 9), tokens(), TEXT, st.none() | st.floats(0, 1))
        per_cut = draw(st.integers(1, 3))
        cut = st.lists(answer, min_size=per_cut, max_size=per_cut).map(tuple)
        answers = draw(st.lists(cut, min_size=1, max_size=3).map(tuple))
        head = (prompt.index, job.group, index, seed, job.plan, draw(IDS))
        body = (
            draw(tokens()),
            draw(st.booleans()),
            answers,
            draw(st.booleans()),
            draw(st.booleans()),
        )
        out.append((job, Rollout(*head, *body)))
    return out


def same(a: Any, b: Any) -> bool:
    """Deep equality, arrays by type and content (NaN equal to NaN)."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Rollout | Answer | Tokens):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return type(a) is type(b) and a == b


@settings(max_examples=60, deadline=None)
@given(rollouts())
def test_round_trip(pairs):
    jobs, made = [j for j, _ in pairs], [r for _, r in pairs]
    wire = pickle.loads(pickle.dumps(columns.pack(made), protocol=5))
    back = columns.unpack(wire, jobs)
    assert len(back) == len(made)
    for a, b in zip(made, back, strict=True):
        assert same(a, b)
        assert b.plan is jobs[b.index].plan  # never on the wire
        for run in (b.thought, *(x.tokens for cut in b.answers for x in cut)):
            assert not len(run) or run.ids_T.base is not None  # a view, not a copy


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2**64 - 1))))
def test_jobs_come_back_and_a_prompt_or_plan_that_several_have_is_one(rows):
    prompts = [Prompt(i, str(i), ({"role": "user", "content": "x"},), "", "", "") for i in range(4)]
    plans = [Plan(9, cuts=(1, 2), template={"mode": i}) for i in range(3)]
    jobs = [
        Job(prompts[p], plans[q], 2**40 + p, i, seed, 0.1 * i, None, 1 / (1 + i), i)
        for i, (p, q, seed) in enumerate(rows)
    ]
    back = columns.unpack_jobs(pickle.loads(pickle.dumps(columns.pack_jobs(jobs), protocol=5)))
    assert back == jobs
    for shared in ("prompt", "plan"):
        assert len({id(getattr(j, shared)) for j in back}) == len(
            {id(getattr(j, shared)) for j in jobs}
        )


def test_a_batch_is_a_few_arrays():
    """However many rollouts: what is pickled per rollout is its numbers and its texts."""
    run = Tokens(np.arange(80, dtype=np.int32), np.zeros(80, np.float32), "stop", ((0, 1),))
    answer = ((Answer(80, run, "text"),),)
    many = [Rollout(0, 0, i, i, Plan(9), run.ids_T, run, True, answer) for i in range(100)]
    wire = columns.pack(many)
    assert sum(isinstance(x, np.ndarray) for x in wire.values()) <= 9
    assert len(pickle.dumps(wire)) < 100 * (80 * 4 + 160 * 8 + 200)
