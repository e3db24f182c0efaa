"""Rollouts of the real engine: the same tokens anywhere, logprobs of the whole sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from samplers.rollout import RolloutWorker
from samplers.types import Job, Plan, Request, Rollout
from tests.engines import STARTS, logits, small, torch_engine
from tests.scripted import PROMPT, RENDERER

MODEL_PLANS = [
    Plan(30), Plan(30, think=6), Plan(30, think=0, answer=5), Plan(40, cuts=(0, 2, 8, 40)),
    Plan(40, cuts=(3, 9), answers_per_cut=3, close="w</think>!", after_close="A"),
    Plan(30, template={"enable_thinking": False}), Plan(30, prefill="A"),
    Plan(40, cuts=(0, 5, 12), answers_per_cut=2, answer=9, probe="B{answer}", after_close="A"),
]  # fmt: skip
PROMPT_IDS = RENDERER.render(PROMPT, Plan(30))


@pytest.fixture(params=STARTS)
def worker(request: pytest.FixtureRequest) -> Callable[[int], RolloutWorker]:
    return lambda slots: RolloutWorker(STARTS[request.param](small(), slots=slots), RENDERER)


def test_rollouts_do_not_depend_on_slots_or_neighbours(worker):
    jobs = [Job(PROMPT, p, 0, i, seed=i) for i, p in enumerate(MODEL_PLANS * 3)]
    together = worker(64).generate(jobs)
    for few, order in ((2, slice(None)), (5, slice(None, None, -1))):
        for a in worker(few).generate(jobs[order]):
            b = together[a.index]
            assert tokens(a) == tokens(b)
    assert [r.index for r in together] == list(range(len(jobs)))


def test_an_aborted_past_leaves_no_trace_in_the_bits(worker):
    """Forks wait for company: how long does not depend on what was there before."""
    made = worker(64)
    jobs = [Job(PROMPT, Plan(140, cuts=(0, 9, 40, 99)), 0, i, seed=i) for i in range(24)]
    fresh = made.generate(jobs)
    engine = made.engine
    kept = engine.generate([Request(0, PROMPT_IDS, 9, (), seed=1, keep=True)])[0].handle
    engine.add([Request(1, PROMPT_IDS, 30, (), seed=1)])
    engine.step()
    engine.add([Request(2, PROMPT_IDS, 5, (), seed=1, prefix=(kept, 4))])
    for _ in range(7):
        engine.step()
    engine.abort([1, 2])
    engine.release([kept])
    while engine.pending:
        engine.step()
    for a, b in zip(fresh, made.generate(jobs), strict=True):
        for x, y in zip((a.thought, a.final.tokens), (b.thought, b.final.tokens), strict=True):
            assert x.logprobs_T.tobytes() == y.logprobs_T.tobytes()


def tokens(r: Rollout) -> list[list[int]]:
    return [run.ids_T.tolist() for run in (r.thought, *(a.tokens for c in r.answers for a in c))]


def test_behaviour_logprobs_are_those_of_the_whole_sequence(worker):
    """What the learner will see: prompt, thought up to `after`, answer, teacher forced."""
    made = worker(16)
    for i, plan in enumerate(MODEL_PLANS):
        (rollout,) = made.generate([Job(PROMPT, plan, 0, i, seed=90 + i, temperature=0.9)])
        for answer in (a for cut in rollout.answers for a in cut if a.probability is None):
            parts = [rollout.thought.ids_T[: answer.after], answer.tokens.ids_T]
            ids = np.concatenate([rollout.prompt_ids_T, *parts])
            (scores,) = made.engine.score([ids], 0.9)
            got = np.concatenate(
                [rollout.thought.logprobs_T[: answer.after], answer.tokens.logprobs_T]
            )
            sampled = ~np.isnan(got)
            expected = scores[len(rollout.prompt_ids_T) - 1 :]
            np.testing.assert_allclose(got[sampled], expected[sampled], atol=1e-5)


def test_a_probe_is_what_the_engine_gives_the_gold_answer(worker):
    made = worker(16)
    plan = Plan(60, cuts=(0, 3, 9, 30), probe="B{answer}", close="w</think>", after_close="A")
    jobs = [Job(PROMPT, plan, 0, i, seed=i, temperature=0.8) for i in range(6)]
    gold = np.append(RENDERER.encode("BA"), 1)
    for rollout in made.generate(jobs):
        for probe in (cut[0] for cut in rollout.answers[:-1]):
            thought = rollout.thought.ids_T[: probe.after]
            ids = np.concatenate([rollout.prompt_ids_T, thought, probe.tokens.ids_T])
            np.testing.assert_array_equal(ids[-3:], gold)
            (scores,) = made.engine.score([ids], 0.8)
            assert probe.probability == pytest.approx(float(np.exp(scores[-3:].sum())), rel=1e-4)
        assert rollout.final.probability is None
    assert made.stats()["answer"] == sum(r.answer_tokens for r in made.generate(jobs))


def test_a_chunked_rollout_goes_on_with_newer_weights(worker):
    """The logprobs of each chunk are those of the weights that made it."""
    old, new = small(), small(seed=1)
    made, plan = worker(16), Plan(60, think=30, answer=20, chunk=8)
    jobs = [Job(PROMPT, plan, 0, i, seed=40 + i) for i in range(6)]
    first = made.generate(jobs)
    made.load_weights(new.state_dict().items(), 1)
    jobs = [replace(j, resume=r) for j, r in zip(jobs, first, strict=True) if r.unfinished]
    assert len(jobs) > 3
    for before, rollout in zip((j.resume for j in jobs), made.generate(jobs), strict=True):
        assert before is not None
        runs = (rollout.thought, rollout.final.tokens)
        ids, logprobs = (
            np.concatenate([getattr(run, name) for run in runs]) for name in ("ids_T", "logprobs_T")
        )
        at = before.response_tokens
        np.testing.assert_array_equal(
            ids[:at], np.concatenate([before.thought.ids_T, before.final.tokens.ids_T])
        )
        assert 0 < rollout.sampled_tokens - before.sampled_tokens <= 8
        whole, size = np.concatenate([rollout.prompt_ids_T, ids]), len(rollout.prompt_ids_T)
        for model, part in ((old, slice(0, at)), (new, slice(at, None))):
            expected = logits(model, whole).log_softmax(-1)[size - 1 : -1][range(len(ids)), ids]
            known = ~np.isnan(logprobs[part])
            np.testing.assert_allclose(
                logprobs[part][known], expected.numpy()[part][known], atol=1e-5
            )


def test_a_group_prefills_its_prompt_once_and_its_thought_never():
    made = RolloutWorker(torch_engine(small(), slots=64), RENDERER)
    made.generate([Job(PROMPT, Plan(40, cuts=(0, 4, 9)), 0, i, seed=i) for i in range(8)])
    assert made.stats()["prefilled"] == len(RENDERER.render(PROMPT, Plan(40)))
    assert made.stats()["rollouts"] == 8


def test_a_group_on_vllm_computes_only_what_fills_no_block():
    """Its prompt and each thought once, but for the last block of 32 tokens of each."""
    made = RolloutWorker(STARTS["vllm"](small(), slots=64), RENDERER)
    long = replace(PROMPT, messages=({"role": "user", "content": "A1+2" * 20},))
    prompt = len(RENDERER.render(long, Plan(120)))
    rollouts = made.generate([Job(long, Plan(120, think=64), 0, i, seed=i) for i in range(8)])
    answers = [prompt + a.after for r in rollouts for c in r.answers for a in c]
    blocks = prompt // 32 * 32
    assert blocks == 64
    least = prompt + 7 * (prompt - blocks)
    assert least <= made.stats()["prefilled"] <= least + len(answers) * 34
    assert made.stats()["forked"] >= sum(n - n % 32 for n in answers) - len(answers)
