"""Every engine gives the model's own distribution: same tokens, same logprobs, in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from samplers.types import Completion, Request
from tests.engines import (
    EOS,
    check_logprobs,
    logits,
    prompts,
    same,
    small,
    torch_engine,
)


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
