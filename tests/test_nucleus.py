"""Risk: evaluation samples from other tokens than the nucleus that was asked for, or training does
from one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.engines import _forward
from samplers.types import Request
from tests.engines import EOS, check_logprobs, logits, prompts, same, small
from tests.test_engine_contract import chi_square

CUTS = [(0.6, 0), (1.0, 5), (0.8, 6), (0.95, 20), (1e-9, 0), (0.5, 10_000)]
"""top_p and top_k."""


def nucleus(scores: np.ndarray, top_p: float, top_k: int) -> np.ndarray:
    """By brute force: probabilities [V] from logprobs, token after token, the likeliest first."""
    order = np.argsort(-scores)[: top_k or None]
    probs = np.exp(scores[order].astype(np.float64))
    size = next(n for n in range(1, len(order) + 1) if n == len(order)
                or probs[:n].sum() >= top_p * probs.sum())  # fmt: skip
    kept = np.zeros(len(scores))
    kept[order[:size]] = probs[:size] / probs[:size].sum()
    return kept


def scored(engine, ids: np.ndarray, temperature: float, vocab: int) -> np.ndarray:
    """Logprobs [V] of each next token after `ids`, by the engine's own `score`."""
    each = [np.append(ids, token).astype(np.int32) for token in range(vocab)]
    return np.array([one[-1] for one in engine.score(each, temperature)])


@pytest.mark.parametrize("cut", CUTS)
def test_draws_are_of_the_nucleus_and_follow_it(start, cut):
    """Chi-square of first tokens against the renormalised distribution; seeds are fixed."""
    model, prompt, n = small(initializer_range=0.1), prompts(1, seed=5)[0], 3000
    top_p, top_k = cut
    engine = start(model, slots=256)
    wanted = nucleus(scored(engine, prompt, 0.9, 40), top_p, top_k)
    asked = [
        Request(i, prompt, 1, (), 0.9, seed=7919 * i, top_p=top_p, top_k=top_k) for i in range(n)
    ]
    made = engine.generate(asked)
    drawn = np.array([c.ids_T[0] for c in made])
    assert wanted[drawn].min() > 0, "a token outside of the nucleus"
    told = np.array([c.logprobs_T[0] for c in made])
    np.testing.assert_allclose(told, np.log(wanted[drawn]), atol=2e-5)
    inside = wanted > 0
    if inside.sum() > 1:
        counts = np.searchsorted(np.flatnonzero(inside), drawn)
        assert chi_square(counts, wanted[inside]) > 1e-3


def test_greedy_is_unmoved_and_one_token_is_greedy(start):
    engine, asked = start(small(), slots=4), prompts(7, seed=3)
    greedy = [Request(i, p, 20, (EOS,), 0.0) for i, p in enumerate(asked)]
    plain = engine.generate(greedy)
    for done, once in zip(
        plain, engine.generate([replace(r, top_p=0.3, top_k=2) for r in greedy]), strict=True
    ):
        same(done, once)
    for one in ({"top_k": 1}, {"top_p": 1e-6}):
        made = engine.generate([replace(r, temperature=1.3, seed=r.id, **one) for r in greedy])
        for done, once in zip(plain, made, strict=True):
            np.testing.assert_array_equal(done.ids_T, once.ids_T)
            np.testing.assert_allclose(once.logprobs_T, 0, atol=1e-6)


def test_rows_with_and_without_get_what_they_get_alone(start):
    model, asked = small(), prompts(24, seed=6)
    cuts = [(1.0, 0), *CUTS, (0.3, 2)]
    requests = [
        Request(i, p, 4 + 5 * (i % 3), (EOS,), (1.0, 0.0, 0.8)[i % 3], seed=40 + i,
                top_p=cuts[i % 8][0], top_k=cuts[i % 8][1])
        for i, p in enumerate(asked)
    ]  # fmt: skip
    together = start(model, slots=24).generate(requests)
    alone = start(model, slots=1)
    for request, done in zip(requests, together, strict=True):
        same(done, alone.generate([request])[0])
    plain = [r for r in requests if r.temperature and (r.top_p, r.top_k) == (1.0, 0)]
    assert len(plain) > 1
    for request in plain:
        check_logprobs(model, request.ids, together[request.id], request.temperature)


def test_forks_keep_their_nucleus(start):
    """Answers behind a kept thought, together with given tokens, which are scored without one."""
    model = small(initializer_range=0.1)
    engine, prompt = start(model, slots=3), prompts(1, seed=8)[0]
    cut = {"top_p": 0.7, "top_k": 4}
    (kept,) = engine.generate([Request(0, prompt, 9, (), seed=3, keep=True, **cut)])
    whole, none = np.concatenate([prompt, kept.ids_T]), np.zeros(0, np.int32)
    given = np.array([9, 30, 1], np.int32)
    forks = [Request(i, none, 6, (), 1.0, i, (kept.handle, n), **cut)
             for i, n in enumerate(range(4, len(whole)))]  # fmt: skip
    score = Request(99, none, 3, (), 1.0, 0, (kept.handle, 5), given=given, **cut)
    made = engine.generate([*forks, score])
    fresh = start(model, slots=8)
    for fork, done in zip(forks, made, strict=False):
        assert fork.prefix is not None
        again = replace(fork, ids=whole[: fork.prefix[1]].astype(np.int32), prefix=None)
        same(done, fresh.generate([again])[0])
    ids = np.concatenate([whole[:5], given])
    expected = logits(model, ids).log_softmax(-1)[4:-1].numpy()[range(3), given]
    np.testing.assert_allclose(made[-1].logprobs_T, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("cut", "said"),
    [({"top_p": 0.0}, "top_p 0.0"), ({"top_p": 1.01}, "top_p 1.01"),
     ({"top_p": float("nan")}, "top_p nan"), ({"top_k": -1}, "top_k -1")],
)  # fmt: skip
def test_what_leaves_no_token_is_refused(start, cut, said):
    with pytest.raises(ValueError, match=f"^request 3: {said}; must be [^\n]*$"):
        start(small()).add([Request(3, prompts(1)[0], 2, **cut)])


# The function of the embedded engine


@given(st.integers(0, 2**31), st.floats(0.001, 1), st.integers(0, 60), st.integers(1, 50))
@settings(max_examples=150, deadline=None)
def test_any_nucleus_is_the_brute_force(seed: int, top_p: float, top_k: int, vocab: int) -> None:
    random = np.random.default_rng(seed)
    scores = torch.from_numpy(random.normal(0, 2, (3, vocab))).float().log_softmax(-1)
    found = _forward._nucleus(scores, np.array([top_p, 1.0, 0.4]), np.array([top_k, 3, 0]))
    for row, p, k, out in zip(scores, (top_p, 1.0, 0.4), (top_k, 3, 0), found, strict=True):
        probs = row.double().exp().numpy()
        edge = np.sort(probs)[::-1].cumsum() - p * (
            np.sort(probs)[::-1][: k or None].sum() if k else 1.0
        )
        if np.abs(edge).min() < 1e-6:
            continue  # in or out by a rounding
        np.testing.assert_allclose(out.exp(), nucleus(row.numpy(), p, k), atol=1e-5)


def test_a_nucleus_wider_than_the_head_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.linspace(0, 1, 300)[torch.randperm(300)].repeat(4, 1).log_softmax(-1)
    cuts = np.array([0.9, 0.2, 1.0, 0.999]), np.array([0, 0, 7, 250])
    whole = _forward._nucleus(scores, *cuts)
    monkeypatch.setattr(_forward, "_HEAD", 16)
    assert torch.equal(_forward._nucleus(scores, *cuts), whole)
    assert (whole > -torch.inf).sum(-1).tolist()[2] == 7


def test_equal_tokens_are_in_or_out_together() -> None:
    scores = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]]).log_softmax(-1)
    for cut in ((1.0, 2), (0.5, 0)):
        out = _forward._nucleus(scores, np.array([cut[0]]), np.array([cut[1]]))
        assert (out > -torch.inf).tolist() == [[True, True, True, True, False]]


def test_at_the_defaults_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training samples as ever: the same bits, whether or not an engine knows of truncation."""
    monkeypatch.setattr(_forward, "_nucleus", lambda *_: pytest.fail("truncated"))
    logits_NV = torch.randn(6, 50)
    rest = (np.full(6, 0.9, np.float32), np.arange(6, dtype=np.uint64), np.arange(6))
    tokens, told = _forward.sample(logits_NV, *rest)
    again, said = _forward.sample(logits_NV, *rest, np.ones(6), np.zeros(6, np.int64))
    assert (tokens == again).all()
    assert told.tobytes() == said.tobytes()
