"""What only the embedded engine can get wrong: rare tokens, its cache and slots, odd models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from samplers.engines import _forward, base
from samplers.types import Request
from tests.engines import (
    EOS,
    prompts,
    same,
    small,
    torch_engine,
)
from tests.tiny import tiny_model
from trainer.config import load


def picks(logits_V: torch.Tensor, monkeypatch: pytest.MonkeyPatch, drawn: np.ndarray) -> np.ndarray:
    """Tokens that the uniform numbers `drawn` pick."""
    monkeypatch.setattr(_forward, "uniforms", lambda keys, positions: drawn)
    zeros = np.zeros(len(drawn))
    tokens, logprobs = _forward.sample(
        logits_V.expand(len(drawn), -1), zeros.astype(np.float32) + 1,
        zeros.astype(np.uint64), zeros.astype(np.int64),
    )  # fmt: skip
    expected = logits_V.log_softmax(-1)[tokens].numpy()
    np.testing.assert_allclose(logprobs, expected, atol=1e-5)
    return tokens


def test_rare_tokens_behind_a_likely_one_are_sampled(monkeypatch):
    """50,000 tokens of 1e-9 each, of which a float32 sum would drop every one."""
    logits_V = torch.full((50_001,), 1e-9).log()
    logits_V[0] = float(np.log1p(-5e-5))
    probs_V = logits_V.softmax(-1).double().numpy()
    wanted = np.array([1, 2, 777, 25_000, 49_999])
    middle = (np.cumsum(probs_V)[wanted] - probs_V[wanted] / 2) / probs_V.sum()
    np.testing.assert_array_equal(picks(logits_V, monkeypatch, middle), wanted)


def test_no_draw_gives_an_impossible_token(monkeypatch):
    logits_V = torch.full((100,), -torch.inf)
    logits_V[[3, 50, 96]] = torch.tensor([0.0, 1.0, -2.0])
    drawn = np.concatenate([[2.0**-54, 1 - 2.0**-54], np.linspace(0.001, 0.999, 200)])
    assert set(picks(logits_V, monkeypatch, drawn)) == {3, 50, 96}
    # As if sums in parallel had put the search beside the step.
    off = lambda cdf, target: torch.full_like(target, 49, dtype=torch.int64)  # noqa: E731
    monkeypatch.setattr(torch, "searchsorted", off)
    assert set(picks(logits_V, monkeypatch, drawn)) == {50}


def test_the_cache_holds_what_is_needed_and_no_more():
    """Rows grow from a few to all slots, and in length to what their requests allow."""
    engine: Any = torch_engine(tiny_model(), slots=20)
    asked = prompts(14, seed=15) + prompts(20, seed=16)
    cache, sizes = engine._cache, set()
    requests = [Request(i, p, 100, (), seed=i) for i, p in enumerate(asked)]
    engine.add(requests[:14])
    while engine.pending:
        engine.step()
        engine.add(requests[14:] if engine.counters["steps"] == 50 else [])
        sizes.add((cache.slots, cache.capacity))
        for layer in cache.layers:
            assert layer.keys.shape[:3:2] == (cache.slots, cache.capacity)
    assert len(sizes) > 2  # it did grow, by steps
    assert len(sizes) < 12
    assert max(sizes) == (20, max(len(p) for p in asked) + 100)


@pytest.mark.parametrize(
    ("arch", "why", "sizes"),
    [
        ("mistral", "SlidingWindow", {"sliding_window": 8}),
        ("gemma2", "SlidingWindow", {}),
        ("mamba", "recurrent", {"state_size": 4}),
        ("bloom", "position_ids", {}),
        ("llama", "dynamic", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    ],
)
def test_other_kinds_of_state_are_refused_by_name(arch, why, sizes):
    with pytest.raises(ValueError, match=rf"'{arch}'.*{why}.*vllm"):
        torch_engine(tiny_model(arch, **sizes))


def test_encoder_decoders_are_refused_by_name():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1}
    with pytest.raises(ValueError, match=r"'t5'.*encoder-decoder"):
        torch_engine(T5ForConditionalGeneration(T5Config(**sizes, num_heads=2)))


def test_an_engine_of_that_name():
    with pytest.raises(ValueError, match=r"no component named 'tork'.*did you mean 'torch'"):
        base.start("nowhere", base.Config(name="tork"))
    for name in ("base", "_torch"):  # files there that are no engines
        with pytest.raises(ValueError, match=rf"engine: .*'{name}'. Allowed: torch, vllm, or"):
            load("grpo/find", [f"rollout.engine={name}"])
    with pytest.raises(ValueError, match=r"engine: 'tests\.made' lacks Config or start"):
        load("grpo/find", ["rollout.engine=tests.made"])


@pytest.mark.parametrize("slots", [1, 2, 5, 64])
def test_long_and_short_forks_share_few_slots_with_new_prompts(slots):
    """Forks that outlive their first tokens wait for a slot, kept ones are forked again."""
    model, asked = small(), prompts(6, seed=23)
    engine = torch_engine(model, slots=slots)
    kept = engine.generate([Request(i, p, 8, (), seed=i, keep=True) for i, p in enumerate(asked)])
    requests, wholes = [], []
    for i, (prompt, done) in enumerate(zip(asked, kept, strict=True)):
        whole = np.concatenate([prompt, done.ids_T])
        for n in (1, len(whole) // 2, len(whole)):
            for limit in (1, 3, 4, 5, 30):
                tail = prompts(1, seed=limit)[0]
                fork = Request(
                    len(requests), tail, limit, (EOS, 11), 0.9, seed=limit * n,
                    prefix=(done.handle, n), keep=limit in (3, 5),
                )  # fmt: skip
                requests.append(fork)
                wholes.append(np.concatenate([whole[:n], tail]))
        requests.append(Request(len(requests), prompt, 20, (EOS,), seed=i))
        wholes.append(prompt)
    made = engine.generate(requests)
    plain = [
        Request(r.id, w, r.max_tokens, r.stop_ids, r.temperature, r.seed)
        for r, w in zip(requests, wholes, strict=True)
    ]
    for a, b in zip(made, torch_engine(model, slots=64).generate(plain), strict=True):
        same(a, b)
    again = [(w, c) for w, c in zip(wholes, made, strict=True) if c.handle is not None]
    assert len(again) == 36
    empty = np.zeros(0, np.int32)
    forks = [
        Request(i, empty, 6, (), seed=i, prefix=(c.handle, len(w) + len(c.ids_T)))
        for i, (w, c) in enumerate(again)
    ]
    fresh = [
        Request(i, np.concatenate([w, c.ids_T]), 6, (), seed=i) for i, (w, c) in enumerate(again)
    ]
    for a, b in zip(engine.generate(forks), engine.generate(fresh), strict=True):
        same(a, b)
