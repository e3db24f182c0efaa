"""The format reward: what is well formed, what it earns, and what malformed costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.apply import Shaping
from rewards.shaping import format as form
from samplers.render import ThinkingConfig
from samplers.types import Answer, Finish, Group, Rollout, Tokens
from tests import made

END, EOS = 6, 1
THINKING = ThinkingConfig()


def decode(rows: Any) -> list[str]:
    names = {END: "</think>", EOS: "", 8: "\\boxed{7}"}
    return ["".join(names.get(i, chr(87 + i)) for i in row) for row in rows]


def rollout(
    thought: tuple[int, ...] = (10, 11),
    by: str = "self",
    said: tuple[int, ...] = (12,),
    finish: Finish = "stop",
) -> Rollout:
    """Closed by the model, by force, by the prompt, or by nobody (no answer then)."""
    run = made.run((*thought, END) if by == "self" else thought)
    if by == "nobody":
        answer = Answer(len(run), Tokens(run.ids_T[:0], run.logprobs_T[:0], "length"), None)
    else:
        forced = int(by == "force")
        tokens = made.run((END,) * forced + said, forced=forced, finish=finish)
        (text,) = decode([[i for i in said if i != END]])
        answer = Answer(len(run), tokens, text)
    made_ = made.rollout(answers=((answer,),))
    return replace(made_, thought=run, closed=by == "self", skipped=by == "prompt")


def group(*rollouts: Rollout, rewards: Any = None) -> Group:
    return made.group(rewards or [0.0] * len(rollouts), rollouts=rollouts)


def shaped(whole: Group, *before: Any, **spec: Any) -> Group:
    specs = [*before, {"name": "format", **spec}]
    return Shaping(specs, decode, THINKING).apply([whole])[0]


def earned(*rollouts: Rollout, rewards: Any = None, **spec: Any) -> list[float]:
    out = shaped(group(*rollouts, rewards=rewards), **spec)
    return np.round(out.rewards["format"][:, 0, 0], 12).tolist()


def test_the_parts() -> None:
    """By default .05 for the thought and .05 for the answer."""
    by = {b: rollout(by=b) for b in ("self", "force", "prompt", "nobody")}
    assert earned(*by.values()) == [0.1, 0.05, 0.1, 0.0]
    assert earned(*by.values(), closed="any") == [0.1, 0.1, 0.1, 0.0]
    assert earned(*by.values(), weight=1, think=0.25, answer=0.5) == [0.75, 0.5, 0.75, 0.0]


def test_two_end_markers_are_no_thought() -> None:
    """Nor are two of which one is forced: an inserted one counts once, like any other."""
    twice = [rollout(by=b, said=(12, END, 13)) for b in ("self", "force")]
    assert earned(*twice, closed="any") == [0.05, 0.05]
    assert earned(rollout(by="prompt", said=(END, 12)), closed="any") == [0.1]
    assert earned(rollout(by="prompt", said=(END, 12, END)), closed="any") == [0.05]


def test_what_an_answer_must_be() -> None:
    cut_off, blank = rollout(finish="length"), rollout(said=(EOS,))
    assert earned(rollout(), cut_off, blank) == [0.1, 0.05, 0.05]
    ab, ba = rollout(said=(12, 13)), rollout(said=(13, 12))
    assert earned(ab, ba, pattern="^cd$") == [0.1, 0.05]
    assert earned(ab, ba, pattern="d") == [0.1, 0.1]
    boxes = [rollout(said=(8,) * n) for n in (0, 1, 2)]
    assert earned(*boxes, boxed="answer", think=0, answer=1) == [0.0, 0.1, 0.0]
    boxes = [rollout(thought=(8,) * n, said=(12, 8)) for n in (0, 1, 2)]
    assert earned(*boxes, boxed="think", think=0, answer=1) == [0.0, 0.1, 0.0]


def test_a_cut_before_the_end_was_closed_by_force() -> None:
    """One thought, answered at 1 of 2 tokens and at its own end."""
    early = Answer(1, made.run((END, 12), forced=1), "c")
    late = Answer(3, made.run((12,)), "c")
    one = replace(rollout(), answers=((early,), (late,)))
    whole = group(one)
    whole = replace(whole, verdicts=(whole.verdicts[0] * 2,))
    assert shaped(whole).rewards["format"].round(12).tolist() == [[[0.05], [0.1]]]
    assert shaped(whole, closed="any").rewards["format"].round(12).tolist() == [[[0.1], [0.1]]]


def test_malformed_takes_the_place_of_what_was_listed_before() -> None:
    """HBPO: -1 whatever else it earned; a well-formed one keeps its own."""
    long = rollout(thought=(10,) * 50, by="self", finish="length")
    whole = group(rollout(), long, rollout(by="nobody"), rewards=[1.0, 1.0, 0.0])
    overlong = {"name": "soft_overlong", "cache": 30}
    out = shaped(whole, overlong, weight=0, malformed=-1)
    assert out.rewards["soft_overlong"][1, 0, 0] < 0
    np.testing.assert_allclose(out.total_GCA[:, 0, 0], [1.0, -1.0, -1.0])
    # AnytimeReasoner: right counts only with exactly one end marker, whoever wrote it
    twice = rollout(said=(12, END, 13))
    whole = group(rollout(), rollout(by="force"), twice, rewards=[1.0, 1.0, 1.0])
    rule = {"weight": 0, "malformed": 0, "closed": "any", "answer": 0, "think": 1}
    assert shaped(whole, **rule).total_GCA[:, 0, 0].tolist() == [1.0, 1.0, 0.0]


KINDS = st.builds(
    rollout,
    by=st.sampled_from(["self", "force", "prompt", "nobody"]),
    said=st.lists(st.sampled_from([END, 8, 12, EOS]), min_size=1, max_size=4).map(tuple),
    finish=st.sampled_from(["stop", "length"]),
)


@given(KINDS, KINDS, st.sampled_from(["self", "any"]), st.floats(0.01, 0.9))
def test_right_beats_wrong_however_well_formed(
    right: Rollout, wrong: Rollout, closed: str, weight: float
) -> None:
    """And it is bounded; behind the gate a wrong answer earns nothing at any weight."""
    whole = group(right, wrong, rewards=[1.0, 0.0])
    out = shaped(whole, weight=weight, closed=closed)
    part = out.rewards["format"]
    assert ((part >= 0) & (part <= weight + 1e-12)).all()
    assert out.total_GCA[0, 0, 0] > out.total_GCA[1, 0, 0]
    gated = shaped(whole, weight=5.0, closed=closed, gate="correct")
    assert gated.total_GCA[0, 0, 0] >= 1.0 > 0.0 == gated.total_GCA[1, 0, 0]


def test_without_markers_the_answer_alone() -> None:
    """And nothing needs to be decoded for it."""
    one = replace(rollout(by="prompt"), skipped=False)
    (out,) = Shaping([{"name": "format", "think": 0, "answer": 1}]).apply([group(one)])
    assert out.rewards["format"].item() == pytest.approx(0.1)
    assert form.requires(form.Config(think=0, boxed="answer")) == {}
    assert form.requires(form.Config(think=0, boxed="think"))
    assert list(form.requires(form.Config())) == ["thinking markers"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"pattern": "("}, r"'\(' is no regular expression"),
        ({"think": 0, "answer": 0}, "think=0 and answer=0"),
        ({"weight": 0}, "weight=0 without malformed"),
        ({"malformed": 0.5}, "malformed"),
        ({"closed": "forced"}, "closed"),
    ],
)
def test_mistakes_are_named(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shaping([{"name": "format", **spec}])
