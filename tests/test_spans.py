"""Every token is of the weights that its span claims, whatever came between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from samplers.engines import base
from samplers.types import Request
from tests.engines import STARTS, logits, prompts, small


@pytest.fixture(params=STARTS)
def start(request: pytest.FixtureRequest) -> Callable[..., base.Engine]:
    return STARTS[request.param]


def test_a_second_load_finds_rows_that_wait_since_the_first(start):
    """They have no token of the weights between, and their spans do not claim any."""
    engine, asked = start(small(), slots=3), prompts(3, seed=12)
    engine.add([Request(i, p, 10, (), seed=i) for i, p in enumerate(asked)])
    done = [c for _ in range(4) for c in engine.step()]
    for version, seed in ((3, 1), (4, 2)):
        engine.load_weights(small(seed=seed).state_dict().items(), version=version)
    while engine.pending:
        done += engine.step()
    for c in done:
        (at,) = (first for first, version in c.spans if version == 4)
        assert 0 < at < 10
        assert c.spans == ((0, 0), (at, 4))


@pytest.mark.parametrize("seed", range(3))
def test_every_token_is_of_the_version_it_claims(start, seed):
    """Requests, forks, loads, aborts, scores and sleeps in any order."""
    rng, models = np.random.default_rng(seed), [small(), small(seed=1)]
    engine, done = start(models[0], slots=4), []
    contexts: list[np.ndarray] = []
    for _ in range(120):
        kind = rng.choice(7, p=(0.2, 0.5, 0.12, 0.05, 0.06, 0.02, 0.05))
        if kind == 0:
            ids = rng.integers(7, 40, rng.integers(1, 9)).astype(np.int32)
            kept = [c for c in done if c.handle is not None and rng.random() < 0.3]
            prefix, context = None, ids
            if kept:
                whole = np.concatenate([contexts[kept[0].id], kept[0].ids_T])
                prefix = (kept[0].handle, int(rng.integers(len(whole) + 1)))
                context = np.concatenate([whole[: prefix[1]], ids])
            limit, keep = int(rng.integers(1, 12)), bool(rng.random() < 0.5)
            number = len(contexts)
            engine.add([Request(number, ids, limit, (), 1.0, number, prefix, keep)])
            contexts.append(context)
        elif kind == 1:
            done += engine.step()
        elif kind == 2:
            weights = models[(engine.version + 1) % 2].state_dict()
            engine.load_weights(weights.items())
        elif kind == 3:
            engine.abort(rng.integers(0, len(contexts) + 1, 2).tolist())
        elif kind == 4:
            ids = rng.integers(7, 40, 20).astype(np.int32)
            expected = logits(models[engine.version % 2], ids).log_softmax(-1)[:-1]
            picked = expected[range(19), ids[1:]].numpy()
            np.testing.assert_allclose(engine.score([ids])[0], picked, atol=1e-5)
        elif kind == 5:
            engine.sleep()
            engine.wake()
        else:
            engine.release(c.handle for c in done if c.handle is not None)
            done = [replace(c, handle=None) for c in done]
    while engine.pending:
        done += engine.step()
    assert sorted(c.id for c in done) == list(range(len(contexts)))
    assert any(len(c.spans) > 1 for c in done)
    for c in done:
        starts = [*(first for first, _ in c.spans), len(c.ids_T)]
        for (_, version), first, last in zip(c.spans, starts, starts[1:], strict=False):
            ids = np.concatenate([contexts[c.id], c.ids_T])
            expected = logits(models[version % 2], ids).log_softmax(-1)[len(contexts[c.id]) - 1 :]
            picked = expected[range(first, last), c.ids_T[first:last]].numpy()
            np.testing.assert_allclose(c.logprobs_T[first:last], picked, atol=1e-5)
