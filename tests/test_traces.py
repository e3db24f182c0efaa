"""Examples of a stage's own rollouts: which are kept, and how a thought is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.render import Renderer, ThinkingConfig
from samplers.types import Answer, Plan, Prompt
from tests import made
from tests.tiny import tiny_tokenizer
from trainer.traces import base, budget_modes, shortest_correct

# which are kept


@settings(max_examples=200, deadline=None)
@given(
    rollouts=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=8),
    keep=st.integers(1, 4),
)
def test_the_shortest_right_ones_are_kept(rollouts, keep):
    lengths_G = np.array([length for length, _ in rollouts], float)
    right_G = np.array([right for _, right in rollouts], bool)
    kept = shortest_correct.shortest(lengths_G, right_G, keep).tolist()
    by_hand = sorted((length, i) for i, (length, right) in enumerate(rollouts) if right)
    assert kept == [i for _, i in by_hand[:keep]]


def test_only_what_is_known_right_and_whole_is_kept():
    group = made.group([1, 0, np.nan, 1])
    cut_off = made.rollout(3, finish="length")
    group = replace(group, rollouts=(*group.rollouts[:3], cut_off))
    assert base.right(group).tolist() == [True, False, False, False]


def test_a_long_trace_closed_its_own_thought():
    group = made.group([0, 1, 1, 1])
    forced = replace(group.rollouts[1], closed=False)
    group = replace(group, rollouts=(group.rollouts[0], forced, *group.rollouts[2:]))
    assert budget_modes.long_trace(group) is group.rollouts[2]
    assert budget_modes.long_trace(made.group([0, np.nan])) is None


# how a thought is cut


@pytest.fixture(scope="module")
def renderer():
    return Renderer(tiny_tokenizer(), ThinkingConfig())


def trace(renderer, thought: str, opened: bool = True):
    """A rollout that thought `thought` and closed it."""
    prompt_ids = renderer.encode("1?<think>" if opened else "1?")
    ids = renderer.encode(thought + "</think>")
    answer = Answer(len(ids), made.run([*renderer.encode("A"), 1]), "A")
    return made.rollout(0, ids, [[answer]], prompt_ids=prompt_ids.tolist())


def config(**modes) -> budget_modes.Config:
    full = {"full": {"ratio": 1, "system": "1"}}
    own = {name: {"suffix": name, **mode} for name, mode in modes.items()}
    return budget_modes.Config(modes={**full, **own}, connective="..")


@settings(max_examples=100, deadline=None)
@given(n=st.integers(0, 40), percent=st.integers(0, 99))
def test_a_thought_is_cut_to_its_share(renderer, n, percent):
    thought = "".join("0123456789"[i % 10] for i in range(n))
    few = config(few={"ratio": percent / 100})
    plan = Plan(max_tokens=64, answer=5, template={"effort": 3}, prefill="9", cuts=(1,))
    ((own, head),) = budget_modes.cut(few, plan, trace(renderer, thought), renderer, {"few": False})
    left = n * percent // 100
    assert renderer.decode(head) == thought[:left]
    close = "..</think>" if left else ""
    expected = Plan(
        64, think=left, answer=5, template={"effort": 3}, suffix="few", subgroup="few", close=close
    )
    assert own == expected


def test_what_opens_a_thought_stays_where_the_model_writes_it(renderer):
    few = config(few={"ratio": 0.5}, none={"ratio": 0})
    open_by_model = trace(renderer, "<think>0123456789", opened=False)
    closed = {"few": False, "none": False}
    (a, few_ids), (b, none_ids) = budget_modes.cut(few, Plan(64), open_by_model, renderer, closed)
    assert renderer.decode(few_ids) == "<think>01234"
    assert renderer.decode(none_ids) == "<think>"
    assert (a.think, a.close, b.think, b.close) == (6, "..</think>", 1, "")
    closed["none"] = True  # its prompt holds a whole empty thought
    _, (c, none_ids) = budget_modes.cut(few, Plan(64), open_by_model, renderer, closed)
    assert (c.think, len(none_ids)) == (0, 0)


def test_a_mode_that_the_cap_does_not_hold_is_left_out(renderer):
    half = config(half={"ratio": 0.5})
    long = trace(renderer, "0" * 20)
    for cap, kept in ((13, 0), (14, 1)):  # 10 of the thought, two dots, the marker, an answer
        assert len(budget_modes.cut(half, Plan(cap), long, renderer, {"half": False})) == kept


def test_a_share_needs_a_prompt_that_leaves_the_thought_open(renderer):
    prompt = Prompt(0, "p", ({"role": "user", "content": "1?"},), "", "A", "exact")
    off = {"template": {"enable_thinking": False}}
    none = config(none={"ratio": 0, **off}, few={"ratio": 0.5})
    found = budget_modes.prompts_that_close(none, Plan(64), prompt, renderer)
    assert found == {"full": False, "none": True, "few": False}
    with pytest.raises(ValueError, match=r"mode 'few' closes the thought, so a share of 0.5"):
        budget_modes.prompts_that_close(
            config(few={"ratio": 0.5, **off}), Plan(64), prompt, renderer
        )
