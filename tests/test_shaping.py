"""Rewards from verdicts: `correct`, length shaping gated on it, and what unknown verdicts do."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rewards.apply import Shaping, scores
from rewards.lengths import lengths
from rewards.shaping import arora_zanette, soft_overlong
from rewards.verdict import Verdict
from rewards.verify import verify
from samplers.types import Answer, Group, Plan, Prompt, Rollout
from tests.made import run
from tests.shaped import UNKNOWN, group, rollout, total, verdict
from tests.vectors import cases, check


def arora(n_tokens: Sequence[int], correct: Sequence[bool | None], alpha: float) -> np.ndarray:
    return total([group(n_tokens, correct)], {"name": "arora_zanette", "alpha": alpha})[0]


def test_vectors_arora_zanette() -> None:
    for case in cases("arora_zanette_reward"):
        given_ = case["inputs"]
        got = arora(given_["lengths"], list(map(bool, given_["correct"])), given_["alpha"])
        check(case, {"rewards": got})


def test_vectors_soft_overlong() -> None:
    for case in cases("soft_overlong"):
        g = case["inputs"]
        n = g["lengths"]
        whole = group(n, [False] * len(n), cap=g["max_len"])
        spec = {"name": "soft_overlong", "cache": g["cache"]}
        check(case, {"trl": total([whole], spec)[0]})
        uncapped = soft_overlong.penalty(np.array(n, float), g["max_len"], g["cache"])
        check(case, {"trl": uncapped})


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=9)
ALPHA = st.floats(0.01, 0.99)


@given(LENGTHS, ALPHA, st.data())
def test_right_beats_wrong_at_any_length(n: list[int], alpha: float, data: st.DataObject) -> None:
    """And the reward stays within [0, 1]: 0 exactly where wrong."""
    right = np.array(data.draw(st.lists(st.booleans(), min_size=len(n), max_size=len(n))))
    reward = arora(n, right.tolist(), alpha)
    assert ((reward >= 0) & (reward <= 1)).all()
    assert (reward[~right] == 0).all()
    assert (reward[right] > 1 - alpha - 1e-9).all()
    assert (reward[right] > 0).all()


@given(LENGTHS, ALPHA)
def test_shorter_right_answers_earn_more(n: list[int], alpha: float) -> None:
    reward = arora(n, [True] * len(n), alpha)
    order = np.argsort(n, kind="stable")
    steps_n, steps_r = np.diff(np.array(n)[order]), np.diff(reward[order])
    assert (steps_r[steps_n > 0] < 0).all()
    assert (steps_r[steps_n == 0] == 0).all()


@given(st.integers(1, 60), st.integers(1, 9), ALPHA)
def test_equal_lengths_give_no_preference(n: int, G: int, alpha: float) -> None:
    reward = arora([n] * G, [True] * G, alpha)
    assert (reward == reward[0]).all()
    assert reward[0] == pytest.approx(1 - alpha / 2)


@given(LENGTHS, ALPHA, st.data())
def test_unknown_and_wrong_answers_do_not_enter_the_statistics(
    n: list[int], alpha: float, data: st.DataObject
) -> None:
    """The rewards of the right ones are those of a group of the right ones alone."""
    kinds = data.draw(
        st.lists(st.sampled_from([True, False, UNKNOWN]), min_size=len(n), max_size=len(n))
    )
    right = [i for i, kind in enumerate(kinds) if kind]
    assume(right)
    reward = arora(n, kinds, alpha)
    alone = arora([n[i] for i in right], [True] * len(right), alpha)
    np.testing.assert_array_equal(reward[right], alone)
    assert np.isnan(reward[[i for i, kind in enumerate(kinds) if kind is UNKNOWN]]).all()


@given(LENGTHS, ALPHA, st.data())
def test_the_order_of_rollouts_does_not_matter(
    n: list[int], alpha: float, data: st.DataObject
) -> None:
    kinds = data.draw(
        st.lists(st.sampled_from([True, False, UNKNOWN]), min_size=len(n), max_size=len(n))
    )
    order = data.draw(st.permutations(range(len(n))))
    shuffled = arora([n[i] for i in order], [kinds[i] for i in order], alpha)
    np.testing.assert_allclose(shuffled, arora(n, kinds, alpha)[list(order)], rtol=1e-12)


def test_groups_do_not_see_each_other() -> None:
    a, b = group([3, 9], [True, True]), group([30, 40, 50], [True, False, True])
    both = total([a, b], "arora_zanette")
    for one, alone in zip(both, (total([a], "arora_zanette")[0], total([b], "arora_zanette")[0])):  # noqa: B905
        np.testing.assert_array_equal(one, alone)


def test_the_closed_form_of_two() -> None:
    """Two right answers of different lengths stand one deviation from their mean."""
    sigmoid = 1 / (1 + np.exp(-1.0))
    got = arora([10, 20], [True, True], 0.3)
    np.testing.assert_allclose(got, [1 - 0.3 * (1 - sigmoid), 1 - 0.3 * sigmoid], atol=1e-7)


def test_only_sampled_tokens_count_as_length() -> None:
    """Forced ones (a forced close, an inserted phrase) never do; the end marker is response."""
    rollouts = (rollout(10, 3), rollout(10, 3, forced=5, closed=False), rollout(0, 2))
    whole = Group(Prompt(0, "p", (), "?", "7", "exact"), 0, rollouts)
    assert lengths(whole, "response").tolist() == [[[14]], [[13]], [[3]]]
    assert lengths(whole, "think").tolist() == [[[10]], [[10]], [[0]]]


def nested() -> Group:
    """Two rollouts of 9 and 12 thinking tokens, answered at 4, 8 and the end, twice each."""

    def one(think: int) -> Rollout:
        thought = run(range(think + 1))
        cuts = tuple(
            tuple(Answer(after, run(range(1 + a), forced=after <= 8), "7") for a in (1, 2))
            for after in (4, 8, think + 1)
        )
        ids = np.array([1], np.int32)
        return Rollout(
            0, 0, 0, 0, Plan(64, cuts=(4, 8), answers_per_cut=2), ids, thought, True, cuts
        )

    return Group(Prompt(0, "p", (), "?", "7", "exact"), 0, (one(9), one(12)))


def test_every_cut_is_compared_with_itself() -> None:
    known = nested()
    asked: list[Any] = []

    def grade(items: Sequence[Any]) -> list[Verdict]:
        asked.extend(items)
        return [verdict([True, False, UNKNOWN][i % 3]) for i in range(len(items))]

    got = verify([known], grade)[0]
    assert len(asked) == 2 * 3 * 2
    assert asked[0][:2] == ("7", "7")
    assert [[len(cut) for cut in r] for r in got.verdicts] == [[2, 2, 2], [2, 2, 2]]
    flat = [v.status for r in got.verdicts for cut in r for v in cut]
    assert flat == ["ok", "wrong", "timeout"] * 4  # in the order they were asked

    right = verify([known], lambda items: [verdict(True)] * len(items))[0]
    assert lengths(right, "think")[:, :, 0].tolist() == [[4, 8, 9], [4, 8, 12]]
    shaped = Shaping([{"name": "arora_zanette", "length": "think"}]).apply([right])[0]
    reward = shaped.total_GCA
    assert reward.shape == (2, 3, 2)
    np.testing.assert_array_equal(reward[:, :2], np.full((2, 2, 2), reward[0, 0, 0]))
    assert (reward[0, 2] > reward[1, 2]).all()  # only the last cut tells 9 from 12


def test_verify_sends_the_answer_part_and_the_row() -> None:
    prompt = Prompt(
        3, "row", ({"role": "user", "content": "2+5?"},), "", "7", "exact", {"level": 4}
    )
    whole = Group(prompt, 0, (rollout(5, 1), rollout(6, 1)))
    asked: list[Any] = []
    verify([whole], lambda items: asked.extend(items) or [verdict(True)] * len(items))
    meta = {"prompt": [{"role": "user", "content": "2+5?"}], "verifier": "exact", "level": 4}
    assert asked == [("7", "7", meta)] * 2


def test_components_are_named_and_sum_to_the_reward() -> None:
    groups = [group([4, 8, 64], [True, True, False]), group([5, 5], [UNKNOWN, True])]
    specs = ["arora_zanette", {"name": "soft_overlong", "cache": 32}]
    shaped = Shaping(specs).apply(groups)
    for before, after in zip(groups, shaped, strict=True):
        assert list(after.rewards) == ["correct", "arora_zanette", "soft_overlong"]
        np.testing.assert_array_equal(after.rewards["correct"], scores(before))
        np.testing.assert_allclose(after.total_GCA, sum(after.rewards.values()))
    assert shaped[0].rewards["soft_overlong"][:, 0, 0].tolist() == [0.0, 0.0, -1.0]
    for part in shaped[1].rewards.values():
        assert np.isnan(part[0]).all()
        assert np.isfinite(part[1]).all()
    assert list(Shaping([]).apply(groups)[0].rewards) == ["correct"]
    assert Shaping([]).apply([]) == []


def test_an_all_wrong_group_stays_without_signal() -> None:
    """A length term gated on correctness must not teach to fail fast."""
    assert arora([3, 50, 20], [False] * 3, 0.4).tolist() == [0.0, 0.0, 0.0]


def test_state_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shaper returns as its state is what it gets next time, also after a checkpoint."""
    seen: list[Any] = []
    module = ModuleType("counting_shaper")

    def shape(groups: Sequence[Group], config: Any, state: Any) -> tuple[list[np.ndarray], int]:
        seen.append(state)
        return [np.full((len(g), 1, 1), 0.5) for g in groups], (state or 0) + len(groups)

    module.shape = shape  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "my_pkg", ModuleType("my_pkg"))
    monkeypatch.setitem(__import__("sys").modules, "my_pkg.counting", module)
    shaping = Shaping(["my_pkg.counting"])
    out = shaping.apply([group([3, 4], [True, UNKNOWN])] * 2)
    assert np.isnan(out[0].rewards["counting"][1]).all()  # unknown whatever the shaper says
    fresh = Shaping(["my_pkg.counting"])
    fresh.load_state_dict(shaping.state_dict())
    fresh.apply([group([3], [True])])
    assert seen == [None, 2]
    assert fresh.state_dict() == {"counting": 3}


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["arora_zannette"], "did you mean 'arora_zanette'"),
        ([{"name": "arora_zanette", "alpha": 1.0}], "alpha"),
        ([{"name": "arora_zanette", "alpha": 0.0}], "alpha"),
        ([{"name": "arora_zanette", "beta": 1.0}], "beta"),
        (["arora_zanette", {"name": "arora_zanette", "alpha": 0.3}], "named 'arora_zanette'"),
        (["trainer.credit"], "has no shape"),
    ],
)
def test_mistakes_are_named(specs: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shaping(specs)


def test_a_cache_beyond_the_cap_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cache=65.*64"):
        total([group([3], [True])], {"name": "soft_overlong", "cache": 65})


@pytest.mark.parametrize("bad", [np.zeros((2, 1)), np.full((2, 1, 1), np.inf)])
def test_what_a_shaper_returns_is_checked(bad: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arora_zanette, "shape", lambda groups, config, state: ([bad], state))
    with pytest.raises(ValueError, match="arora_zanette: returned"):
        total([group([3, 4], [True, True])], "arora_zanette")


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"seen": {"a": [1, 2.5, None, True, "x"], "of": np.zeros(3)}}, ""),
        ({3: 1}, " has the key 3"),
        ({"a": (1, 2)}, r"\.a has a tuple"),
        ({"a": [{"b": {1}}]}, r"\.a\.b has a set"),
        ({"a": np.float32(1)}, r"\.a has a float32"),
        ({"a": [np.zeros(1)]}, r"\.a has arrays in a list"),
        ({"a": np.array([{}])}, r"\.a has a ndarray"),
    ],
)
def test_a_state_that_no_checkpoint_holds_is_told_at_once(
    state: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first checkpoint fails, with all that was trained."""
    part = np.zeros((1, 1, 1))
    monkeypatch.setattr(arora_zanette, "shape", lambda groups, config, old: ([part], state))
    if where:
        with pytest.raises(ValueError, match=f"shaping: the state of arora_zanette{where}"):
            total([group([3], [True])], "arora_zanette")
    else:
        total([group([3], [True])], "arora_zanette")
