"""Risk: a length reward that does not keep what is claimed of it, or claims what it lacks."""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from rewards.apply import Shaping
from rewards.shaping import base
from samplers import seam
from samplers.types import Group
from tests.shaped import UNKNOWN, group, total
from trainer.algorithms import _plain

CAP = 64
Spec = dict[str, Any]
VERDICTS = st.sampled_from([True, False, UNKNOWN])

DEFAULT: dict[str, Spec] = {
    "arora_zanette": {},
    "cosine_demystify": {},
    "cosine_trl": {},
    "hbpo": {},
    "kimi": {},
    "l1": {"alpha": 0.05},
    "o1_pruner": {},
    "pass_rate_linear": {},
    "phi4": {},
    "random_cap": {},
    "soft_overlong": {"cache": 32},
    "thinkdial": {},
    "tldr": {},
    "triangular": {},
}
"""The published form of each at lengths of up to 64 tokens."""
HARD: dict[str, Spec] = {
    **DEFAULT,
    "hbpo": {"form": "code"},
    "kimi": {"weight": 5.0},
    "l1": {"alpha": 1.0},
    "l1 max": {"mode": "max", "alpha": 0.1},
    "l1 max_paper": {"mode": "max_paper", "alpha": 0.1},
    "pass_rate_linear": {"weight": 0.99},
    "random_cap": {"max_tokens": 16},
    "thinkdial": {"alpha": {"medium": 5.0, "low": 9.0}, "leak": 2.0},
    "tldr": {"levels": {"medium": 5.0, "low": 9.0}},
    "triangular": {"correct": 0.3, "weight": 0.6, "band": True},
    "soft_overlong": {"cache": 64},
}
"""Settings that bring out what each form lacks."""
PAYS_RIGHT: dict[str, Spec] = {
    **{n: DEFAULT[n] for n in ("arora_zanette", "cosine_trl", "phi4", "random_cap", "tldr")},
    "kimi": {"weight": 1.9},
    "pass_rate_linear": {"weight": 0.99},
    "triangular": {"correct": 0.31, "weight": 0.3},
    "triangular band": {"correct": 0.31, "weight": 0.3, "band": True},
}
"""Right beats wrong at any length as published: their docstrings say so."""
COMPARED = ("arora_zanette", "kimi", "o1_pruner", "pass_rate_linear", "thinkdial", "tldr")
SHORTER: dict[str, Spec] = {
    **{n: s for n, s in DEFAULT.items() if n not in ("l1", "triangular")},
    "l1 max": HARD["l1 max"],
    "l1 max_paper": HARD["l1 max_paper"],
    "triangular band": {"band": True},
}
"""Among right answers of one group a shorter one never earns less."""
BOUNDS: dict[str, tuple[float, float]] = {
    "arora_zanette": (0.0, 1.0),
    "cosine_demystify": (-10.0, 2.0),
    "cosine_trl": (-1.0, 1.0),
    "hbpo": (-1.0, 4.0),  # alpha = 1 / cap: never more than one below f1
    "kimi": (-0.5, 1.5),
    "l1": (-0.05 * CAP, 1.0),
    "o1_pruner": (-3.0, 3.0),  # a z-score of n values is at most (n - 1) / sqrt(n)
    "pass_rate_linear": (-0.25, 1.0),
    "phi4": (-8 / 13, 8 / 13),
    "random_cap": (0.0, 1.0),
    "soft_overlong": (-1.0, 1.0),
    "thinkdial": (0.0, 2.0),  # where no answer leaks
    "tldr": (-0.5, 1.5),
    "triangular": (0.0, 0.9),
}


def spec(name: str, settings: Spec, **more: Any) -> Spec:
    return {"name": name.split()[0], **settings, **more}


def given(**drawn: st.SearchStrategy[Any]) -> Any:
    """hypothesis.given with half its examples: every shaper gets as many."""
    return lambda test: hypothesis.settings(max_examples=50)(hypothesis.given(**drawn)(test))


def each(table: dict[str, Spec]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("name", "settings"), table.items(), ids=table)


@st.composite
def groups(draw: st.DrawFn, verdicts: st.SearchStrategy[Any] = VERDICTS) -> Group:
    """Up to nine rollouts of 1..64 tokens, 1..64 of which are wanted, in two modes."""
    n = draw(st.integers(1, 9))

    def one_each(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    lengths, targets = one_each(st.integers(1, CAP)), one_each(st.integers(1, CAP))
    modes = one_each(st.sampled_from(["medium", "low"]))
    return group(lengths, one_each(verdicts), CAP, targets, modes)


def lengths_of(whole: Group) -> np.ndarray:
    return np.array([r.response_tokens for r in whole.rollouts])


def test_every_length_reward_is_here() -> None:
    others = {"format", "memory", "repetition", "repetition_dense"}  # have tests of their own
    assert set(seam.names("rewards.shaping")) - others == set(DEFAULT)


# -- right and wrong ------------------------------------------------------------------------------


@each({name: s for name, s in HARD.items() if name != "arora_zanette"})
@given(whole=groups())
def test_behind_the_gate_right_beats_wrong_at_any_length(
    name: str, settings: Spec, whole: Group
) -> None:
    """And a wrong answer's length is worth nothing (of o1_pruner: equally little for all)."""
    (reward,) = total([whole], spec(name, settings, gate="correct"))
    right, known = base.right(whole)[:, 0, 0], whole.known_GCA[:, 0, 0]
    wrong = known & ~right
    assert np.isnan(reward[~known]).all()
    if name == "o1_pruner":
        assert len(set(reward[wrong])) <= 1
    else:
        assert (reward[wrong] == 0).all()
        assert (reward[right] >= base.FLOOR - 1e-12).all()
    if right.any() and wrong.any():
        assert reward[right].min() > reward[wrong].max()


GATED = [
    spec("l1", {"alpha": 0.1}),
    spec("soft_overlong", {"cache": 50}),
    spec("kimi", {"weight": 5.0}),
    spec("cosine_demystify", {}),
    spec("repetition_dense", {"ngram": 1, "penalty": -5.0}),
]


@given(whole=groups(), specs=st.lists(st.sampled_from(GATED), unique_by=lambda s: s["name"]))
def test_gates_hold_together(whole: Group, specs: list[Spec]) -> None:
    """Each leaves of a right answer's reward what those before it have left."""
    gated = Shaping([{**one, "gate": "correct"} for one in specs]).apply([whole])
    (reward,) = _plain.rewards(gated)
    right, known = base.right(whole)[:, 0, 0], whole.known_GCA[:, 0, 0]
    assert (reward[known & ~right] == 0).all()
    assert (reward[right] >= base.FLOOR - 1e-9).all()


@each(PAYS_RIGHT)
@given(whole=groups())
def test_right_beats_wrong_as_published(name: str, settings: Spec, whole: Group) -> None:
    (reward,) = total([whole], spec(name, settings))
    right = base.right(whole)[:, 0, 0]
    wrong = whole.known_GCA[:, 0, 0] & ~right
    assume(right.any() and wrong.any())
    assert reward[right].min() > reward[wrong].max()


FAILURES: dict[str, tuple[Spec, int, int]] = {
    "cosine_demystify": ({}, 50, 40),
    "hbpo": ({}, 64, 1),
    "l1": ({"alpha": 0.05}, 64, 20),
    "l1 max": ({"mode": "max", "alpha": 0.1}, 64, 1),
    "o1_pruner": ({"alpha": 1.1}, 64, 2),
    "random_cap": ({"max_tokens": 32}, 64, 1),
    "soft_overlong": ({"cache": 32}, 64, 1),
    "triangular": ({"correct": 0.3, "weight": 0.6}, 64, 20),
}
"""Settings, and how long a right answer is that earns no more than a wrong one of that length."""


@pytest.mark.parametrize("name", FAILURES)
def test_what_the_docstrings_say_is_lacking_is_lacking(name: str) -> None:
    """And the gate mends just that."""
    settings, right, wrong = FAILURES[name]
    pair = group([right, wrong], [True, False], CAP, 20)
    lost, won = total([pair], spec(name, settings))[0]
    assert lost <= won
    lost, won = total([pair], spec(name, settings, gate="correct"))[0]
    assert lost > won


def test_thinkdial_pays_a_clean_wrong_answer_more_than_a_long_right_one_that_leaks() -> None:
    pair = (group([64], [True], modes="low", text="Actually 7"), group([2], [False], modes="low"))
    both = Group(
        pair[0].prompt, 0, pair[0].rollouts + pair[1].rollouts, pair[0].verdicts + pair[1].verdicts
    )
    assert total([both], "thinkdial")[0].tolist() == [0.0, 0.5]
    assert total([both], {"name": "thinkdial", "gate": "correct"})[0] == pytest.approx([0.1, 0.0])


@pytest.mark.parametrize("name", ["kimi", "tldr", "thinkdial", "soft_overlong", "o1_pruner"])
def test_failing_fast_pays_without_the_gate_only(name: str) -> None:
    wrong = group([2, 60], [False, False], CAP, modes="low")
    short, long = total([wrong], spec(name, DEFAULT[name]))[0]
    assert short > long
    short, long = total([wrong], spec(name, DEFAULT[name], gate="correct"))[0]
    assert short == long == 0


def test_an_all_wrong_group_is_not_penalised_by_its_pass_rate() -> None:
    assert total([group([2, 60], [False, False])], "pass_rate_linear")[0].tolist() == [0, 0]


# -- length ---------------------------------------------------------------------------------------


@each(SHORTER)
@pytest.mark.parametrize("gate", ["none", "correct"])
@given(whole=groups(st.just(True)), target=st.integers(1, CAP))
def test_among_right_answers_a_shorter_one_never_earns_less(
    name: str, settings: Spec, gate: str, whole: Group, target: int
) -> None:
    lengths = lengths_of(whole)
    same = group(lengths.tolist(), [True] * len(lengths), CAP, target, "low")
    gated = {} if name == "arora_zanette" else {"gate": gate}
    (reward,) = total([same], spec(name, settings, **gated))
    order = np.argsort(lengths, kind="stable")
    if (name, gate) == ("cosine_demystify", "correct"):
        assert (reward > 0).all()
    assert (np.diff(reward[order]) <= 1e-12).all()
    assert np.ptp(reward[lengths == lengths[0]]) == 0


SHARP = ["kimi", "cosine_trl", "pass_rate_linear", "random_cap", "tldr", "thinkdial"]


@pytest.mark.parametrize("name", SHARP)
@given(lengths=st.lists(st.integers(1, CAP), min_size=2, max_size=9, unique=True))
def test_some_always_tell_lengths_apart(name: str, lengths: list[int]) -> None:
    (reward,) = total([group(lengths, [True] * len(lengths), modes="low")], spec(name, {}))
    assert (np.diff(reward[np.argsort(lengths)]) < 0).all()


@pytest.mark.parametrize("name", ["l1", "triangular"])
@given(target=st.integers(1, CAP), right=st.booleans(), data=st.data())
def test_the_announced_length_earns_most(
    name: str, target: int, right: bool, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, CAP), min_size=2, max_size=9))
    whole = group([*lengths, target], [right] * (len(lengths) + 1), CAP, target)
    (reward,) = total([whole], spec(name, DEFAULT[name]))
    off = np.abs(lengths_of(whole) - target)
    assert (np.diff(reward[np.argsort(off, kind="stable")]) <= 1e-12).all()
    assert reward[-1] == reward.max()


@given(lengths=st.lists(st.integers(1, CAP), min_size=1, max_size=9), budget=st.integers(1, CAP))
def test_hbpo_asks_for_no_less_than_the_budget(lengths: list[int], budget: int) -> None:
    (reward,) = total([group(lengths, [True] * len(lengths), CAP, budget)], "hbpo")
    within = np.array(lengths) <= budget
    worth = 4 * np.cos(np.pi * budget / (2 * CAP))
    np.testing.assert_allclose(reward[within], worth, atol=1e-12)
    assert (reward[~within] < worth).all()


@each(DEFAULT)
@given(n=st.integers(1, CAP), G=st.integers(1, 9), right=st.booleans())
def test_equal_lengths_give_no_preference(
    name: str, settings: Spec, n: int, G: int, right: bool
) -> None:
    (reward,) = total([group([n] * G, [right] * G, CAP, 20, "low")], spec(name, settings))
    assert np.ptp(reward) == 0
    if name in ("kimi", "tldr"):
        assert (reward == float(right)).all()


@each(DEFAULT)
@given(whole=groups())
def test_rewards_are_bounded(name: str, settings: Spec, whole: Group) -> None:
    (reward,) = total([whole], spec(name, settings))
    low, high = BOUNDS[name]
    known = reward[~np.isnan(reward)]
    assert ((known >= low - 1e-9) & (known <= high + 1e-9)).all()


# -- who is compared ------------------------------------------------------------------------------


def only(whole: Group, members: np.ndarray) -> Group:
    keep = np.flatnonzero(members)
    rollouts, verdicts = ([x[i] for i in keep] for x in (whole.rollouts, whole.verdicts))
    return Group(whole.prompt, 0, tuple(rollouts), tuple(verdicts))


@pytest.mark.parametrize("name", COMPARED)
@given(whole=groups())
def test_unknown_verdicts_leave_the_statistics(name: str, whole: Group) -> None:
    known = whole.known_GCA[:, 0, 0]
    assume(known.any())
    reward = total([whole], spec(name, {}))[0]
    alone = total([only(whole, known)], spec(name, {}))[0]
    np.testing.assert_allclose(reward[known], alone, rtol=1e-12)


@pytest.mark.parametrize("name", COMPARED)
@given(whole=groups())
def test_a_subgroup_is_compared_with_itself(name: str, whole: Group) -> None:
    own = {"standardised": False} if name == "o1_pruner" else {}
    reward = total([whole], spec(name, own, within="subgroup"))[0]
    for members in whole.subgroups.values():
        alone = total([only(whole, members)], spec(name, own, within="group"))[0]
        np.testing.assert_allclose(reward[members], alone, rtol=1e-12)


@each(DEFAULT)
@given(whole=groups(), data=st.data())
def test_the_order_of_rollouts_does_not_matter(
    name: str, settings: Spec, whole: Group, data: st.DataObject
) -> None:
    order = list(data.draw(st.permutations(range(len(whole)))))
    rollouts, verdicts = ([x[i] for i in order] for x in (whole.rollouts, whole.verdicts))
    shuffled = Group(whole.prompt, 0, tuple(rollouts), tuple(verdicts))
    one, other = (total([g], spec(name, settings))[0] for g in (whole, shuffled))
    np.testing.assert_allclose(other, one[order], rtol=1e-9, atol=1e-12)


@given(whole=groups(), longest=st.integers(1, CAP))
def test_random_cap_is_the_mean_over_all_caps(whole: Group, longest: int) -> None:
    """Of the thought's length: that of an empty one is within every cap."""
    one = {"name": "random_cap", "length": "think", "max_tokens": longest}
    (reward,) = total([whole], one)
    for found, rollout, ((verdict,),) in zip(reward, whole.rollouts, whole.verdicts, strict=True):
        within = [rollout.think_tokens <= cap for cap in range(1, longest + 1)]
        want = float(np.mean(within)) * verdict.correct if verdict.known else np.nan
        assert found == pytest.approx(want, abs=1e-12, nan_ok=True)


@given(step=st.lists(groups(), min_size=1, max_size=4))
def test_o1_pruner_is_standardised_over_the_step(step: list[Group]) -> None:
    rewards = np.concatenate(total(step, "o1_pruner"))
    known = rewards[~np.isnan(rewards)]
    raw = np.concatenate(total(step, {"name": "o1_pruner", "standardised": False}))
    raw = raw[~np.isnan(raw)]
    if raw.size and raw.std() > 1e-6:
        assert known.mean() == pytest.approx(0, abs=1e-9)
        assert known.std() == pytest.approx(1)
    else:
        assert (known == 0).all()
