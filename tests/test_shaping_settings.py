"""Risk: a setting of the length rewards that does not do what it says, or a mistake let through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.apply import Shaping
from rewards.lengths import Kind, lengths
from rewards.shaping import base, hbpo, thinkdial
from rewards.verdict import Verdict
from samplers import seam
from samplers.facts import MARKERS, MODES, SUBGROUPS, TARGET
from samplers.types import Answer, Group, Plan, Rollout
from tests.made import run
from tests.shaped import PROMPT, group, rollout, total, verdict


@st.composite
def cut_rollouts(draw: st.DrawFn) -> Rollout:
    """A prefill, a thought, and answers at up to three places of it, each with forced text."""
    think, closed = draw(st.integers(0, 12)), draw(st.booleans())
    places = sorted(draw(st.lists(st.integers(0, think + closed), min_size=3, max_size=3)))

    def answer(after: int) -> Answer:
        forced, sampled = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        return Answer(after, run(range(forced + sampled), forced), "7")

    thought = run(range(think + closed), draw(st.integers(0, think)))
    cuts = tuple((answer(after), answer(after)) for after in places)
    return Rollout(0, 0, 0, 0, Plan(64), np.array([1], np.int32), thought, closed, cuts)


@given(cut_rollouts(), st.sampled_from(["think", "response"]), st.booleans())
def test_length_is_counted_token_by_token(r: Rollout, kind: Kind, count_forced: bool) -> None:
    got = lengths(Group(PROMPT, 0, (r,)), kind, count_forced)
    marker = len(r.thought) - 1 if r.closed else None
    for c, cut in enumerate(r.answers):
        for a, answer in enumerate(cut):
            count = 0
            for t in range(answer.after):
                skipped = kind == "think" and t == marker
                count += not skipped and (count_forced or not r.thought.forced_T[t])
            if kind == "response":
                count += sum(count_forced or not forced for forced in answer.tokens.forced_T)
            assert got[0, c, a] == count


def test_hbpo_counts_the_announcement_and_others_do_not() -> None:
    whole = Group(
        PROMPT, 0, (rollout(10, 3, forced=5, target=20),), ((((verdict(True)),),),), {}, {}
    )
    config = hbpo.Config()
    assert base.measured(whole, config).item() == 19
    assert base.measured(whole, config.model_copy(update={"count_forced": False})).item() == 14
    at = {"name": "l1", "alpha": 0.01}
    assert total([whole], at)[0] == pytest.approx([0.94])
    assert total([whole], {**at, "count_forced": True})[0] == pytest.approx([0.99])
    assert total([whole], {**at, "length": "think"})[0] == pytest.approx([0.9])


def at_cuts(groups: list[Group]) -> Group:
    """One group whose cuts are the only cuts of these."""
    rollouts = tuple(
        replace(same[0], answers=tuple(r.answers[0] for r in same))
        for same in zip(*(g.rollouts for g in groups), strict=True)
    )
    verdicts = tuple(
        tuple(v[0] for v in same) for same in zip(*(g.verdicts for g in groups), strict=True)
    )
    return Group(PROMPT, 0, rollouts, verdicts)


@pytest.mark.parametrize("name", ["kimi", "thinkdial", "tldr", "pass_rate_linear", "o1_pruner"])
def test_every_cut_has_statistics_of_its_own(name: str) -> None:
    """Answers after nothing of the thought, of other lengths and verdicts at each cut."""

    def cut(n: list[int], correct: list[bool | None]) -> Group:
        rollouts = tuple(rollout(0, k, closed=False, subgroup="low") for k in n)
        return Group(PROMPT, 0, rollouts, tuple(((verdict(c),),) for c in correct))

    apart = [cut([3, 7, 9], [True, False, True]), cut([20, 4, 11], [True, True, None])]
    spec = {"name": name, **({"standardised": False} if name == "o1_pruner" else {})}
    together = Shaping([spec]).apply([at_cuts(apart)])[0].total_GCA
    for c, alone in enumerate(total(apart, spec)):
        np.testing.assert_array_equal(together[:, c, 0], alone)


def test_graded_answers_keep_their_grade() -> None:
    """R times the score where right, the score besides R where wrong; additive forms add."""
    graded = ((Verdict(True, 0.8, "ok"),),), ((Verdict(False, 0.1, "wrong"),),)
    whole = replace(group([32, 32], [True, False]), verdicts=graded)
    assert total([whole], "cosine_trl")[0] == pytest.approx([0.75 * 0.8, -0.75 + 0.1])
    gated = {"name": "cosine_trl", "gate": "correct"}
    assert total([whole], gated)[0] == pytest.approx([0.75 * 0.8, 0.1])
    assert total([whole], {"name": "soft_overlong", "cache": 64})[0] == pytest.approx([0.3, -0.4])


def test_levels_weigh_the_length_reward_of_their_own_rollouts() -> None:
    modes = ["short", "short", "medium", "medium", "long", "long"]
    whole = group([2, 9, 20, 30, 40, 60], [True] * 6, modes=modes)
    assert total([whole], "tldr")[0].tolist() == [1.5, 0.5, 1.25, 0.75, 1.0, 1.0]
    assert total([whole], {"name": "tldr", "within": "group"})[0][0] == 1.5
    assert total([whole], {"name": "tldr", "within": "group"})[0][3] > 1  # shorter than most


@pytest.mark.parametrize("mode", ["exact", "max", "max_paper"])
def test_l1_leaves_alone_whom_nothing_was_announced(mode: str) -> None:
    whole = group([5, 50], [True, False], targets=[None, None])
    assert total([whole], {"name": "l1", "mode": mode})[0].tolist() == [1.0, 0.0]


def test_without_a_target_triangular_pays_only_for_being_right() -> None:
    assert total([group([5, 5], [True, False])], "triangular")[0].tolist() == [0.6, 0.0]


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("7", False),
        ("Wait, no: 7", True),
        ("so, however, 7", True),
        ("the waiter has 7", False),
        ("Let me think. 7", True),
        (None, True),
    ],
)
def test_thinking_in_the_answer_is_a_leak(text: str | None, leaks: bool) -> None:
    whole = group([5], [True], modes="high", text=text)
    assert thinkdial.leaks(whole, thinkdial.Config().keywords).tolist() == [[[leaks]]]
    assert total([whole], "thinkdial")[0].tolist() == [0.5 if leaks else 1.5]


def test_signs_are_keywords_anywhere() -> None:
    whole = group([5], [True], text="A1+2=3 C")
    assert thinkdial.leaks(whole, ("=",)).item()
    assert not thinkdial.leaks(whole, ("a",)).item()  # A1 is a word of its own


def said(spec: Any) -> set[str]:
    module, config = seam.resolve("rewards.shaping", spec)
    return set(module.requires(config))


def test_what_they_need_is_said() -> None:
    assert said("l1") == said("hbpo") == said("triangular") == {TARGET}
    assert said({"name": "triangular", "target": 87}) == set()
    assert said("thinkdial") == said("tldr") == {MODES, SUBGROUPS}
    for name in ("kimi", "arora_zanette", "pass_rate_linear", "o1_pruner"):
        assert said(name) == set()
        assert said({"name": name, "within": "subgroup"}) == {SUBGROUPS}
    for name in seam.names("rewards.shaping"):
        if "length" in seam.find("rewards.shaping", name).Config.model_fields:
            assert said({"name": name, "length": "think"}) == said(name) | {MARKERS}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "thinkdial"}, r"thinkdial.alpha: no entry for mode 'quick'; it has high, "),
        ({"name": "tldr", "levels": {"long": 0}}, r"tldr.levels: no entry for mode 'quick'"),
        ({"name": "cosine_demystify", "margin": 64}, r"margin=64: must be below the cap of 64"),
        ({"name": "phi4", "positive": 64}, r"phi4.positive=64: must be below the cap of 64"),
        ({"name": "kimi", "gate": "right"}, r"gate\n.*'none' or 'correct'"),
        ({"name": "kimi", "weight": 0}, "weight"),
        ({"name": "kimi", "within": "cut"}, "within"),
        ({"name": "l1", "alpha": 0}, "alpha"),
        ({"name": "l1", "mode": "min"}, "mode"),
        ({"name": "triangular", "target": 0}, "target"),
        ({"name": "o1_pruner", "alpha": 1}, "alpha"),
        ({"name": "o1_pruner", "clip": [4, -2]}, "clip"),
        ({"name": "pass_rate_linear", "weight": 1}, "weight"),
        ({"name": "thinkdial", "keywords": []}, "keywords"),
    ],
)
def test_mistakes_are_named(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        total([group([3, 4], [True, False], modes="quick")], spec)
