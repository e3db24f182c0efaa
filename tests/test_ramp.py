"""A logit that rises while a row grows: exactly so on torch, in steps of pieces on vLLM."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from samplers.rollout import RolloutWorker
from samplers.stopping import ramp as rule
from samplers.types import Completion, Job, Plan, Ramp, Request
from tests.engines import EOS, logits, prompts, small, torch_engine
from tests.scripted import PROMPT, RENDERER

RISE = Ramp(EOS, 3, 11, 9.0)


def expected(model, prompt: np.ndarray, done: Completion, ramp: Ramp, temperature: float):
    """Logprobs of a completion by transformers alone, the logit raised by hand."""
    whole = logits(model, np.concatenate([prompt, done.ids_T]))[len(prompt) - 1 : -1]
    for count in range(len(done.ids_T)):
        share = (count - ramp.start) / (ramp.end - ramp.start)
        whole[count, ramp.token] += ramp.strength * min(max(share, 0.0), 1.0)
    picked = (whole / temperature).log_softmax(-1)
    return picked.gather(-1, torch.from_numpy(done.ids_T.astype(np.int64))[:, None])[:, 0].numpy()


def test_logprobs_are_those_of_the_raised_logit():
    """In slots and in forks, beside rows without a ramp and with a bias."""
    model, asked = small(), prompts(10, seed=3)
    requests = []
    for i, prompt in enumerate(asked):
        rise = (None, RISE, replace(RISE, start=-4.5, end=2.5, strength=-3.0))[i % 3]
        bias = {9: 1.5} if i % 2 else None
        requests.append(Request(i, prompt, 24, (EOS,), 0.8, i, logit_bias=bias, ramp=rise))
    engine = torch_engine(model, slots=4)
    for request, done in zip(requests, engine.generate(requests), strict=True):
        if request.logit_bias is None:
            flat = request.ramp or replace(RISE, strength=0.0)
            np.testing.assert_allclose(
                done.logprobs_T, expected(model, request.ids, done, flat, 0.8), atol=1e-5
            )
    (kept,) = engine.generate([Request(0, asked[0], 6, (), seed=3, keep=True)])
    whole = np.concatenate([asked[0], kept.ids_T])
    fork = Request(1, whole[:0], 20, (EOS,), 1.0, 5, (kept.handle, len(whole)), ramp=RISE)
    (done,) = engine.generate([fork])
    np.testing.assert_allclose(done.logprobs_T, expected(model, whole, done, RISE, 1.0), atol=1e-5)


def test_a_seed_goes_on_where_it_was():
    """Two requests give the tokens of one: the second draws behind the first."""
    model, prompt = small(), prompts(1, seed=8)[0]
    engine = torch_engine(model)
    (one,) = engine.generate([Request(0, prompt, 20, (), seed=4)])
    (first,) = engine.generate([Request(1, prompt, 8, (), seed=4, keep=True)])
    rest = Request(2, prompt[:0], 12, (), seed=4, prefix=(first.handle, len(prompt) + 8), drawn=8)
    (second,) = engine.generate([rest])
    np.testing.assert_array_equal(np.concatenate([first.ids_T, second.ids_T]), one.ids_T)
    (other,) = engine.generate([replace(rest, id=3, prefix=None, drawn=0, ids=prompt)])
    assert (other.ids_T != second.ids_T).any()


def test_what_an_engine_does_not_take_is_refused(start):
    engine = start(small())
    request = Request(0, prompts(1)[0], 9, (EOS,), ramp=replace(RISE, end=3))
    with pytest.raises(ValueError, match="ramp from 3 to 3" if engine.ramps else "raises no logit"):
        engine.add([request])
    assert engine.pending == 0


def thoughts(worker: RolloutWorker, strength: float, n: int = 96, every: int = 4):
    spec = {"name": "ramp", "strength": strength, "start": 8, "end": 24, "every": every}
    plan = Plan(80, think=60, stopping=spec)
    made = worker.generate([Job(PROMPT, plan, 0, i, seed=100 + i) for i in range(n)])
    assert all(r.closed or r.think_tokens == 60 or r.thought.finish == "stop" for r in made)
    assert not getattr(worker.engine, "_kept", None)
    return np.array([r.think_tokens for r in made]), [r.watch for r in made]


def test_thoughts_end_sooner_and_none_before_the_start(start):
    """The same contract for the true ramp and for the one in pieces."""
    worker = RolloutWorker(start(small(initializer_range=0.02), slots=32), RENDERER)
    flat, raised = thoughts(worker, 0.0)[0], thoughts(worker, 12.0)[0]
    assert raised.max() <= 26
    assert (flat > 26).sum() > 20
    if worker.engine.ramps:  # up to its start nothing is changed, bit for bit
        np.testing.assert_array_equal(raised[flat <= 8], flat[flat <= 8])


def test_pieces_tell_what_they_cost(start):
    """A constant for each piece: what the prefix cache lacks of the thought is read again."""
    worker = RolloutWorker(start(small(initializer_range=0.02), slots=32), RENDERER)
    read, told = [], []
    for every in (2, 16):
        before = worker.stats()["prefilled"]
        watched = thoughts(worker, 0.0, n=16, every=every)[1]
        read.append(worker.stats()["prefilled"] - before)
        told.append(sum(watch.reread for watch in watched))
    if worker.engine.ramps:
        assert (read[0], told) == (read[1], [0, 0])
    else:
        assert told[0] > 2 * told[1] > 0
        prompt = len(RENDERER.render(PROMPT, Plan(80)))
        for all_, again in zip(read, told, strict=True):  # the rest: prompts, and answers' blocks
            assert 0 < all_ - again <= 16 * (prompt + 34)


def test_the_rule_by_itself():
    config = rule.Config(strength=6.0, start=10, end=20)
    assert [rule.bias(config, t) for t in (0, 10, 15, 20, 99)] == [0.0, 0.0, 3.0, 6.0, 6.0]
    half = rule.Config(strength=6.0)
    assert [rule.bias(half, t, 100) for t in (50, 75, 100)] == [0.0, 3.0, 6.0]
