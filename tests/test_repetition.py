"""Repetition, counted three ways: by words, by token ids, and per token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.apply import Shaping
from rewards.shaping import repetition, repetition_dense
from rewards.shaping.repetition import penalty, words
from rewards.shaping.repetition_dense import penalties
from samplers.types import Answer, Group
from tests import made
from tests.vectors import Case, check, each

IDS = st.lists(st.integers(0, 3), max_size=30)
N = st.integers(1, 5)


@each("repetition_penalty_words")
def test_vectors_of_words(case: Case) -> None:
    given_ = case["inputs"]
    check(case, {"penalty": penalty(words(given_["text"]), given_["ngram"], given_["max_penalty"])})


@each("repetition_penalty_tokens")
def test_vectors_of_tokens(case: Case) -> None:
    g = case["inputs"]
    got = [penalty(row, g["ngram"], g["max_penalty"]) for row in g["completion_ids"]]
    check(case, {"rewards": got})


@each("repetition_penalty_dense")
def test_vectors_of_single_tokens(case: Case) -> None:
    g = case["inputs"]
    got = penalties(g["token_ids"], g["ngram"], g["penalty"], g["only_start"])
    check(case, {"per_token": got})


@given(IDS, N)
def test_it_is_the_share_of_repeats(ids: list[int], n: int) -> None:
    """Counted by hand; bounded; 0 exactly where nothing comes twice."""
    counts = Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
    repeats = sum(count - 1 for count in counts.values())
    got = penalty(ids, n, -2.0)
    assert got == pytest.approx(-2.0 * repeats / max(1, len(ids) - n + 1))
    assert -2.0 < got <= 0.0
    assert (got == 0) == (repeats == 0)


@given(IDS, N)
def test_single_tokens_pay_where_the_repetition_is(ids: list[int], n: int) -> None:
    whole = penalties(ids, n, -0.5, False)
    want = np.zeros(len(ids))
    for i in range(len(ids) - n + 1):
        if any(ids[j : j + n] == ids[i : i + n] for j in range(i)):
            want[i : i + n] = -0.5
    np.testing.assert_array_equal(whole, want)
    starts = penalties(ids, n, -0.5, True)
    assert (starts >= whole).all()  # the same or less, never elsewhere
    assert starts.any() == whole.any()


@given(st.integers(1, 50), N)
def test_a_loop_pays_almost_all(loops: int, n: int) -> None:
    ids = [1, 2, 3] * loops
    total = len(ids) - n + 1
    assert penalty(ids, n, -1.0) == pytest.approx(-max(0, total - 3) / max(1, total))


def said(ids: Sequence[int], text: str = "", thought: Sequence[int] = (), forced: int = 0) -> Group:
    """Two rollouts alike, the first one right: thought and an end marker (9), then an answer."""
    answer = Answer(len(thought) + 1, made.run(ids, forced=forced), text)
    one = replace(made.rollout(thought=(*thought, 9)), answers=((answer,),))
    return made.group([1.0, 0.0], rollouts=(one, one))


def shaped(group: Group, **spec: Any) -> np.ndarray:
    decode = lambda rows: [" ".join(map(str, row)) for row in rows]  # noqa: E731
    (out,) = Shaping([{"name": "repetition", **spec}], decode).apply([group])
    return out.rewards["repetition"][:, 0, 0]


def test_the_part_that_is_read() -> None:
    group = said([4, 7, 7], "seven seven", thought=[1, 2, 1, 2], forced=1)
    # ids: think 1 2 1 2 | marker 9 | answer 7 7 (4 is forced)
    assert shaped(group, ngram=1, part="think")[0] == pytest.approx(-2 / 4)
    assert shaped(group, ngram=1, part="answer")[0] == pytest.approx(-1 / 2)
    assert shaped(group, ngram=1, part="response")[0] == pytest.approx(-3 / 7)
    assert shaped(group, ngram=1, form="words", part="answer")[0] == pytest.approx(-1 / 2)
    assert shaped(group, ngram=1, form="words", part="think")[0] == pytest.approx(-2 / 4)
    assert shaped(group, ngram=1, form="words", part="response")[0] == pytest.approx(-3 / 6)


def test_every_cut_has_its_own() -> None:
    """An answer at a cut is judged by what it saw."""
    cuts = [[Answer(after, made.run([3]), "x")] for after in (2, 4)]
    one = made.rollout(thought=(1, 2, 1, 2), answers=cuts)
    one = replace(one, closed=False)
    group = made.group([1.0], rollouts=(one,))
    group = replace(group, verdicts=(group.verdicts[0] * 2,))
    (out,) = Shaping([{"name": "repetition", "ngram": 1}]).apply([group])
    np.testing.assert_allclose(out.rewards["repetition"], [[[0.0], [-2 / 5]]])


def test_words_of_an_answer_need_no_decoder() -> None:
    group = said([1], "a b a b")
    spec = {"name": "repetition", "form": "words", "part": "answer", "ngram": 2}
    (out,) = Shaping([spec]).apply([group])
    np.testing.assert_allclose(out.rewards["repetition"][:, 0, 0], -1 / 3)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20))
def test_right_beats_wrong_behind_the_gate(ids: list[int]) -> None:
    """Published, a right answer that only repeats itself may lose; gated, never."""
    group = said(ids)
    free, gated = (shaped(group, ngram=1, max_penalty=-3.0, gate=g) for g in ("none", "correct"))
    assert free[0] == free[1] == penalty([9, *ids], 1, -3.0)
    assert gated[1] == 0.0
    assert 1.0 + gated[0] >= 0.1 - 1e-12
    assert gated[0] >= free[0]


def dense(group: Group, **spec: Any) -> tuple[np.ndarray, ...]:
    (out,) = Shaping([{"name": "repetition_dense", "ngram": 2, **spec}]).apply([group])
    return tuple(out.token_rewards["repetition_dense"])


def test_forced_tokens_cost_nothing() -> None:
    group = said([1, 2, 1, 2], thought=[1, 2], forced=2)
    # 1 2 9 | 1 2 (forced) 1 2
    got = dense(group)[0]
    np.testing.assert_array_equal(got, [0, 0, 0, 0, 0, -0.05, -0.05])
    np.testing.assert_array_equal(dense(group, part="think")[0], np.zeros(7))
    np.testing.assert_array_equal(dense(group, part="answer")[0], [0, 0, 0, 0, 0, -0.05, -0.05])


def test_the_gate_leaves_right_answers_above_wrong_ones() -> None:
    group = said([1] * 60)
    free, wrong = dense(group, penalty=-0.5)
    assert free.sum() < -1.0
    np.testing.assert_array_equal(free, wrong)
    right, wrong = dense(group, penalty=-0.5, gate="correct")
    assert right.sum() == pytest.approx(-0.9)
    assert not wrong.any()
    mild = said([1, 1, 1])
    np.testing.assert_array_equal(dense(mild, gate="correct")[0], dense(mild)[0])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "repetition", "ngram": 0}, "ngram"),
        ({"name": "repetition", "max_penalty": 0.5}, "max_penalty"),
        ({"name": "repetition", "form": "dense"}, "form"),
        ({"name": "repetition_dense", "penalty": 0.05}, "penalty"),
    ],
)
def test_mistakes_are_named(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shaping([spec])


def test_what_they_need() -> None:
    for module in (repetition, repetition_dense):
        assert not module.requires(module.Config())
        assert list(module.requires(module.Config(part="think"))) == ["thinking markers"]
    assert repetition_dense.provides(repetition_dense.Config()) == {"token rewards"}
