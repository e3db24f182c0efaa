"""An engine's tokens are those of the weights it was last given, in float32 and in bfloat16."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from samplers.types import Request
from tests.engines import (
    EOS,
    check_logprobs,
    logits,
    prompts,
    same,
    small,
    torch_engine,
    vllm_engine,
)


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("twice", [True, False], ids=["all-names", "tied-once"])
def test_loaded_weights_are_the_new_model(start, arch, tied, twice):
    old, new = small(arch, tied), small(arch, tied, seed=1)
    engine, asked = start(old, slots=4), prompts(6, seed=10)
    requests = [Request(i, p, 12, (EOS,), seed=i) for i, p in enumerate(asked)]
    before = engine.generate(requests)
    named = dict(new.state_dict() if twice else new.named_parameters())
    arrays = {name: value.detach().numpy() for name, value in named.items()}
    for array in arrays.values():
        array.flags.writeable = False  # as Ray's object store hands them out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.load_weights(arrays.items(), version=7)
    assert engine.version == 7
    after, fresh = engine.generate(requests), start(new).generate(requests)
    assert any(a.ids_T.tobytes() != b.ids_T.tobytes() for a, b in zip(before, after, strict=True))
    for a, b, prompt in zip(after, fresh, asked, strict=True):
        same(a, b)
        check_logprobs(new, prompt, a)
        assert a.spans == ((0, 7),)


def test_a_load_under_way_drops_all_old_kv(start):
    """Tokens after the load are those of the new weights alone, and spans say which is which."""
    old, new = small(), small(seed=1)
    engine, asked = start(old, slots=3), prompts(5, seed=11)
    (kept,) = engine.generate([Request(9, asked[0], 6, (), seed=9, keep=True)])
    forked = np.concatenate([asked[0], kept.ids_T])[:4]
    engine.add([Request(i, p, 10, (), seed=i) for i, p in enumerate(asked)])
    done = [c for _ in range(4) for c in engine.step()]
    engine.add([Request(5, np.array([9], np.int32), 10, (), seed=5, prefix=(kept.handle, 4))])
    engine.load_weights(new.state_dict().items(), version=3)
    engine.add([Request(6, np.array([9], np.int32), 10, (), seed=5, prefix=(kept.handle, 4))])
    while engine.pending:
        done += engine.step()
    made = {c.id: c for c in done}
    mixed = 0
    for i, prompt in enumerate(asked):
        firsts = [first for first, version in made[i].spans if version == 3]
        at = firsts[0]
        mixed += at > 0
        assert made[i].spans == (((0, 0), (at, 3)) if at else ((0, 3),))
        ids = np.concatenate([prompt, made[i].ids_T])
        for model, part in ((old, slice(0, at)), (new, slice(at, None))):
            logprobs = logits(model, ids).log_softmax(-1)[len(prompt) - 1 : -1]
            picked = logprobs[range(10), made[i].ids_T].numpy()
            np.testing.assert_allclose(made[i].logprobs_T[part], picked[part], atol=1e-5)
    assert 0 < mixed < 5  # some were running, some still waited
    (fresh,) = start(new).generate([Request(5, np.append(forked, 9).astype(np.int32), 10, seed=5)])
    np.testing.assert_array_equal(made[5].ids_T, fresh.ids_T)
    np.testing.assert_array_equal(made[6].ids_T, fresh.ids_T)


def test_bad_weights_and_requests_are_named(start):
    engine = start(small(), slots=2)
    one = torch.zeros(1)
    with pytest.raises(ValueError, match=r"lm_heat.*did you mean 'lm_head.weight'"):
        engine.load_weights([("lm_heat.weight", one)])
    with pytest.raises(ValueError, match=r"shape \(1,\).*\(40, 32\)"):
        engine.load_weights([("lm_head.weight", one)])
    ids = np.array([9], np.int32)
    for request, words in (
        (Request(0, ids[:0], 5), "no prompt tokens"),
        (Request(0, ids, 0), "max_tokens 0"),
        (Request(0, ids, 256), "context of 256"),
        (Request(0, ids, 5, temperature=-1.0), "temperature -1.0"),
        (Request(0, ids + 31, 5), "vocabulary of 40"),
        (Request(0, ids, 5, stop_ids=(40,)), "vocabulary of 40"),
        (Request(0, ids, 5, given=ids + 31), "vocabulary of 40"),
        (Request(0, ids, 5, given=ids[:0]), "max_tokens 0"),
        (Request(0, ids, 5, given=np.full(256, 9, np.int32)), "context of 256"),
    ):
        with pytest.raises(ValueError, match=words):
            engine.generate([Request(1, ids, 5), request])
        assert not engine.pending, "the good one did not enter either"
    for scored, words in ((np.full(257, 9), "257 tokens .* context of 256"), (ids + 31, "of 40")):
        with pytest.raises(ValueError, match=words):
            engine.score([ids, scored.astype(np.int32)])
    full = np.full(256, 9, np.int32)
    assert len(engine.score([full])[0]) == 255


def test_bfloat16_logprobs(start):
    """Against transformers in bf16, at positions where bf16 rotary frequencies would be off."""
    model, asked = small(dtype="bfloat16", initializer_range=0.1), prompts(6, 12, 200)
    requests = [Request(i, p, 20, (), seed=i) for i, p in enumerate(asked)]
    made = start(model, dtype="bfloat16").generate(requests)
    gaps = []
    for prompt, done in zip(asked, made, strict=True):
        expected = logits(model, np.concatenate([prompt, done.ids_T])).log_softmax(-1)
        gaps.append(expected[len(prompt) - 1 : -1][range(20), done.ids_T].numpy() - done.logprobs_T)
    assert np.abs(np.concatenate(gaps)).mean() < 5e-3
    cast = start(small(initializer_range=0.1), dtype="bfloat16").generate(requests)
    for a, b in zip(made, cast, strict=True):
        same(a, b)


PEAKED = [("qwen3", 1.0), ("gpt2", 1.0), ("cohere", 4.0)]


def peaked(arch: str, scale: float) -> Any:
    """Many peaked logits, which bfloat16 would round by more than the engine may differ."""
    sizes = {"vocab_size": 4000, "initializer_range": 0.3}
    sizes |= {"logit_scale": scale} if scale != 1.0 else {}
    return small(arch, dtype="bfloat16", **sizes)


@pytest.mark.parametrize(("arch", "scale"), PEAKED)
def test_bfloat16_models_have_a_float32_head(arch, scale):
    model = peaked(arch, scale)
    engine, weight = torch_engine(model, dtype="bfloat16"), model.get_output_embeddings().weight
    weight = weight.detach().float()
    rounded = []
    for i, prompt in enumerate(prompts(12, 12, 60)):
        (made,) = engine.generate([Request(i, prompt, 1, (), seed=i)])
        ids = np.append(prompt, made.ids_T)
        with torch.no_grad():
            hidden = model.base_model(torch.from_numpy(prompt.astype(np.int64))[None])[0][0]
        exact = (hidden.float() @ weight.t() * scale).log_softmax(-1)
        exact = exact[range(len(prompt)), ids[1:]]
        np.testing.assert_allclose(engine.score([ids])[0], exact, atol=1e-4)
        np.testing.assert_allclose(made.logprobs_T, exact[-1:], atol=1e-4)
        plain = logits(model, prompt).log_softmax(-1)[range(len(prompt)), ids[1:]]
        rounded.append((plain - exact).abs())
    assert torch.cat(rounded).max() > 1e-2  # rounded logits would fail the checks above


@pytest.mark.parametrize(("arch", "scale"), [("qwen3", 1.0), ("cohere", 4.0)])
def test_bfloat16_models_have_a_float32_head_in_vllm(arch, scale):
    """Its kernels round the body otherwise, so that only the grid of the logits can be checked.

    Logits of 1 and more in bfloat16 are multiples of 1/128, and so are the differences of two.
    """
    engine = vllm_engine(peaked(arch, scale), dtype="bfloat16")
    prompt = prompts(1, 12, 60)[0]
    tokens = np.arange(100, 164, dtype=np.int32)
    scores = np.array([s[-1] for s in engine.score([np.append(prompt, t) for t in tokens])])
    steps = (scores - scores[0])[1:] * 128
    assert np.abs(steps).max() > 100
    assert (np.abs(steps - steps.round()) > 0.05).mean() > 0.6  # on the grid: 0.3 and 0.1
