"""Episodic memory: its rewards, its bounds, and that it goes on after a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.apply import Shaping
from rewards.shaping import memory
from rewards.shaping.memory import Config, EpisodicMemory, Responses, hashed
from samplers.types import Group, Prompt
from tests import made
from tests.vectors import Case, check, each

Event = tuple[np.ndarray, np.ndarray, bool]


def played(events: list[Event], **settings: Any) -> tuple[list[float], list[float]]:
    remembered = EpisodicMemory(Config(**{"explore_min_keys": 0, **settings}))
    scored = [remembered.score(*event) for event in events]
    return [s[0] for s in scored], [s[1] for s in scored]


@each("memory_r_rewards")
def test_vectors(case: Case) -> None:
    g = case["inputs"]
    events = [
        (np.array(e["query"], float), np.array(e["response"], float), bool(e["correct"]))
        for e in g["events"]
    ]
    settings = {"k": g["K"], "window": g["window"], "explore_min_keys": g["explore_min_keys"]}
    exploit, explore = played(events, **settings)
    check(case, {"exploit": exploit, "explore": explore})


def unit(seed: int) -> np.ndarray:
    v = np.random.default_rng(seed).normal(size=4)
    return v / np.linalg.norm(v)


EVENTS = st.lists(
    st.builds(
        lambda q, r, c: (np.eye(4)[q], unit(r), c),
        st.integers(0, 3),
        st.integers(0, 40),
        st.booleans(),
    ),
    max_size=25,
)


@given(EVENTS, st.integers(1, 5), st.integers(1, 6))
def test_against_memories_that_are_plain_lists(events: list[Event], k: int, window: int) -> None:
    """The specification read aloud, without bounds; and the range of both rewards."""
    books: dict[bool, list[tuple[np.ndarray, np.ndarray]]] = {True: [], False: []}
    windows: dict[bool, list[float]] = {True: [], False: []}

    def pool(which: bool, query: np.ndarray) -> list[np.ndarray]:
        keys: list[np.ndarray] = []
        for q, _ in books[which]:
            if not any((q == other).all() for other in keys):
                keys.append(q)
        near = sorted(keys, key=lambda q: float(((q - query) ** 2).sum()))[:k]
        return [r for n in near for q, r in books[which] if (q == n).all()]

    def norm(which: bool, value: float, flat: float) -> float:
        windows[which] = [*windows[which], value][-window:]
        low, high = min(windows[which]), max(windows[which])
        return flat if high - low < 1e-6 else (value - low) / (high - low)

    got = played(events, k=k, window=window, max_responses=len(events) or 1)
    for i, (query, response, correct) in enumerate(events):
        books[correct].append((query, response))
        exploit, explore = 0.0, 1.0
        if right := pool(True, query):
            distance = float(np.linalg.norm(response - np.mean(right, axis=0)))
            exploit = 1 - norm(True, distance, distance)
        if wrong := pool(False, query):
            explore = norm(False, 1 - max(float(response @ w) for w in wrong), 0.0)
        assert got[0][i] == pytest.approx(exploit, abs=1e-9)
        assert got[1][i] == pytest.approx(explore, abs=1e-9)
        assert -1 <= got[0][i] <= 1
        assert 0 <= got[1][i] <= 1


def test_a_wrong_response_is_its_own_nearest_wrong_one() -> None:
    events = [(np.eye(4)[0], unit(i), i % 3 == 0) for i in range(30)]
    explore = played(events, window=100)[1]
    assert max(explore[i] for i in range(30) if i % 3) < 1e-9
    assert max(explore[i] for i in range(6, 30, 3)) > 0.5


def test_cosines_are_those_of_any_vectors() -> None:
    events = [(np.eye(4)[0], unit(i), i % 2 == 0) for i in range(10)]
    longer = [(q, r * (2.0 + i), c) for i, (q, r, c) in enumerate(events)]
    np.testing.assert_allclose(played(longer)[1], played(events)[1], atol=1e-12)


def test_explore_waits_for_questions_and_then_fades() -> None:
    """Three different questions with wrong responses; until then its window stays empty."""
    wrong = [(np.eye(4)[q], unit(q), False) for q in (0, 0, 1)]
    right = [(np.eye(4)[0], unit(i), True) for i in range(7, 12)]
    begins = [*right[:1], *wrong, *right[1:2], (np.eye(4)[2], unit(5), False), *right[2:]]
    whole = played(begins, explore_min_keys=3)[1]
    assert whole[:5] == [0.0] * 5
    assert max(whole[5:]) > 0
    fading = played(begins, explore_min_keys=3, anneal=0.5)[1]
    counted = np.array(whole[6:])
    # the sixth event is the first value of its window: no factor is spent on it
    np.testing.assert_allclose(fading[6:], counted * 0.5 ** np.arange(len(counted)))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99)), min_size=1, max_size=60))
def test_it_is_bounded_and_forgets_the_oldest(items: list[tuple[int, int]]) -> None:
    """What the nearest question finds is what was said of it, however many were forgotten."""
    book = Responses(max_queries=3, max_responses=2)
    kept: dict[int, list[int]] = {}
    for q, r in items:
        book.insert(np.array([q, 1.0]), np.array([r, 0.0]))
        if q not in kept and len(kept) == 3:
            del kept[next(iter(kept))]
        kept[q] = [*kept.get(q, []), r][-2:]
        for question, said in kept.items():
            found = book.nearest(np.array([question, 1.0]), 1)
            assert found is not None
            assert found[:, 0].tolist() == said
    assert len(book) == len(kept) <= 3


def groups(count: int, seed: int = 0) -> list[Group]:
    """Four rollouts each with thoughts of letters; verdicts right, wrong, unknown, right."""
    out = []
    for m in range(count):
        rng = np.random.default_rng([seed, m])
        thoughts = [rng.integers(0, 26, 12).tolist() for _ in range(4)]
        rollouts = tuple(made.rollout(g, t) for g, t in enumerate(thoughts))
        prompt = Prompt(m, str(m), ({"role": "user", "content": f"what is {m % 5}?"},), "", "", "")
        one = made.group([1.0, 0.0, np.nan, 1.0], rollouts=rollouts)
        out.append(replace(one, prompt=prompt))
    return out


def decode(rows: Any) -> list[str]:
    return ["".join(chr(97 + i) for i in row) for row in rows]


def spec(**settings: Any) -> dict[str, Any]:
    return {"name": "memory", "explore_min_keys": 2, "k": 2, "max_queries": 4} | settings


def test_a_checkpoint_between_two_steps_changes_nothing() -> None:
    whole, first = Shaping([spec()], decode), Shaping([spec()], decode)
    steps = [groups(6, seed) for seed in range(3)]
    want = [whole.apply(step) for step in steps][-1]
    first.apply(steps[0])
    second = Shaping([spec()], decode)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.apply(steps[1])
    assert second.apply([]) == []  # a step without a group
    got = second.apply(steps[2])
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a.rewards["memory"], b.rewards["memory"])
    assert json.dumps(second.state_dict()) == json.dumps(whole.state_dict())


def test_full_memories_stay_small_in_a_checkpoint() -> None:
    """As the field `max_queries` says: 5.4 bytes x D x (1 + responses) x questions."""
    remembered = EpisodicMemory(Config(max_queries=50, explore_min_keys=0))
    rng = np.random.default_rng(0)
    for query_D in rng.normal(size=(60, 64)):
        for r in range(20):
            remembered.score(query_D, rng.normal(size=64), r % 2 == 0)
    size = len(json.dumps(remembered.state_dict()))
    assert 0.9 * 5.4 * 64 * 9 * 50 < size < 5.4 * 64 * 9 * 50 + 6000


def test_unknown_answers_are_no_events() -> None:
    (shaped,) = Shaping([spec()], decode).apply(groups(1))
    assert np.isnan(shaped.rewards["memory"][2])
    without = replace(
        groups(1)[0],
        rollouts=tuple(groups(1)[0].rollouts[i] for i in (0, 1, 3)),
        verdicts=tuple(groups(1)[0].verdicts[i] for i in (0, 1, 3)),
    )
    (alone,) = Shaping([spec()], decode).apply([without])
    np.testing.assert_array_equal(shaped.rewards["memory"][[0, 1, 3]], alone.rewards["memory"])


def test_weights_and_the_gate() -> None:
    parts = [
        Shaping([spec(exploit=a, explore=b)], decode).apply(groups(8))[-1].rewards["memory"]
        for a, b in ((1, 0), (0, 1), (0.5, 2))
    ]
    np.testing.assert_allclose(parts[2], 0.5 * parts[0] + 2 * parts[1])
    gated = Shaping([spec(gate="correct")], decode).apply(groups(8))
    for group in gated:
        total = group.total_GCA[:, 0, 0]
        assert total[1] == 0.0
        assert total[[0, 3]].min() > 0.0


def theirs(texts: list[str]) -> np.ndarray:
    return np.array([[len(text), 1.0] for text in texts])


def flat(texts: list[str]) -> np.ndarray:
    return np.ones(len(texts))


def test_an_embedder_of_ones_own() -> None:
    """It sees texts of the chosen part; what it gives is made unit length."""
    ours = Shaping([spec(embedder=f"{__name__}:theirs", part="answer")], decode)
    out = ours.apply(groups(3))
    assert all(np.isfinite(g.rewards["memory"][[0, 1, 3]]).all() for g in out)
    with pytest.raises(ValueError, match=r"memory.embedder: .*:flat gave .* shape \(3,\) for 3"):
        Shaping([spec(embedder=f"{__name__}:flat")], decode).apply(groups(3))


@given(st.text(max_size=40), st.integers(1, 6))
def test_hashed_ngrams(text: str, ngram: int) -> None:
    """The same text is the same place; n-grams add up; short and empty texts are places too."""
    (once, again), other = hashed([text, text], 16, ngram), hashed([text + "!"], 16, ngram)
    np.testing.assert_array_equal(once, again)
    grams = max(1, len(text.encode()) - ngram + 1)
    assert np.abs(once).sum() <= grams
    assert (np.abs(once).sum() - grams) % 2 == 0
    if len(text.encode()) >= ngram:
        assert np.abs(other - once).sum() == 1  # one n-gram more


def test_similar_texts_are_near() -> None:
    a, b, c = hashed(["the sum of 12 and 30", "the sum of 12 and 31", "draw a circle"], 64, 4)
    assert np.linalg.norm(a - b) < np.linalg.norm(a - c)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"explore_min_keys": 5}, "explore_min_keys=5 is more than max_queries=4"),
        ({"exploit": 0, "explore": 0}, "exploit=0 and explore=0"),
        ({"embedder": "no_such_pkg:fn"}, "cannot be imported"),
        ({"k": 0}, "k"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shaping([spec(**settings)])


def test_what_it_needs() -> None:
    assert list(memory.requires(Config())) == ["thinking markers"]
    assert memory.requires(Config(part="answer")) == {}
