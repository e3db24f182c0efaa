"""Per-token rewards from shapers, and what shapers may ask for besides groups."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rewards.apply import Shaping
from samplers.render import ThinkingConfig
from samplers.types import Answer, Group
from tests import made
from trainer import components
from trainer.algorithms import grpo


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A user's module, importable as `theirs.own`."""
    found = ModuleType("theirs.own")
    monkeypatch.setitem(sys.modules, "theirs", ModuleType("theirs"))
    monkeypatch.setitem(sys.modules, "theirs.own", found)
    return found


def counting(groups: Sequence[Group], config: Any, state: Any) -> tuple[list[Any], int]:
    """Token t earns t; the state counts groups."""
    parts = [tuple(np.arange(float(r.response_tokens)) for r in g.rollouts) for g in groups]
    return parts, (state or 0) + len(groups)


def test_token_rewards_stand_beside_the_named_ones(module: ModuleType) -> None:
    module.shape_tokens = counting  # type: ignore[attr-defined]
    components.check("shaping", "rewards.shaping", "theirs.own")
    shaping = Shaping(["theirs.own"])
    whole = made.group([1.0, 0.0, np.nan])
    (out,) = shaping.apply([whole])
    assert list(out.rewards) == ["correct"]
    for rollout, array_T in zip(out.rollouts[:2], out.token_rewards["own"], strict=False):
        np.testing.assert_array_equal(array_T, np.arange(rollout.response_tokens))
    assert np.isnan(out.token_rewards["own"][2]).all()  # its verdict is unknown
    shaping.apply([whole, whole])
    assert shaping.state_dict() == {"own": 3}


def test_group_methods_add_them_up(module: ModuleType) -> None:
    module.shape_tokens = counting  # type: ignore[attr-defined]
    (out,) = Shaping(["theirs.own"]).apply([made.group([1.0, 0.0, np.nan])])
    first, second = (row.advantages_T[row.mask_T] for row in grpo.sequences([out], grpo.Config()))
    # responses of 3 and 4 tokens: 1 + 0+1+2 against 0 + 0+1+2+3
    assert (first < 0).all()
    np.testing.assert_allclose(first[0], -second[0], rtol=1e-6)


def test_tokens_are_those_of_the_row_that_trains(module: ModuleType) -> None:
    """A thought that goes on beyond the last cut: its tail was seen by no answer."""
    module.shape_tokens = lambda *_: ([(np.ones(4 + 2),)], None)  # type: ignore[attr-defined]
    answers = [[Answer(4, made.run((21, 22), forced=1), "x")]]
    rollout = made.rollout(thought=range(11, 17), answers=answers)
    (out,) = Shaping(["theirs.own"]).apply([made.group([1.0], rollouts=(rollout,))])
    (row,) = grpo.sequences([out], grpo.Config())
    assert len(row) == len(rollout.prompt_ids_T) + len(out.token_rewards["own"][0])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((np.zeros(3),), r"own: returned arrays of shapes \[\(3,\)\], not \[\(3,\), \(4,\)\]"),
        ((np.zeros(3), np.zeros(3)), r"own: returned arrays of shapes"),
        ((np.zeros(3), np.array([0.0, np.nan, 0, 0])), "own: .* not finite for seven"),
        ((np.zeros(3), np.array([0.0, np.inf, 0, 0])), "own: .* not finite for seven"),
    ],
)
def test_what_comes_back_is_checked(part: Any, message: str, module: ModuleType) -> None:
    module.shape_tokens = lambda groups, config, state: ([part], state)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=message):
        Shaping(["theirs.own"]).apply([made.group([1.0, 0.0])])


def test_a_module_with_neither_is_refused(module: ModuleType) -> None:
    message = "'theirs.own' has no shape"
    with pytest.raises(ValueError, match=message):
        Shaping(["theirs.own"])
    with pytest.raises(ValueError, match=message):
        components.check("shaping", "rewards.shaping", "theirs.own")


def test_shapers_get_what_they_name(module: ModuleType) -> None:
    """And nothing else: a shaper of three parameters never sees a decoder."""
    seen: list[Any] = []

    def shape(groups: Any, config: Any, state: Any, thinking: Any, decode: Any) -> Any:
        seen.append((thinking, decode([[1, 2]])))
        return [np.zeros((len(g), 1, 1)) for g in groups], state

    module.shape = shape  # type: ignore[attr-defined]
    markers = ThinkingConfig(end="</t>")
    shaping = Shaping(["theirs.own", "arora_zanette"], lambda ids: [str(x) for x in ids], markers)
    shaping.apply([made.group([1.0, 0.0])])
    assert seen == [(markers, ["[1, 2]"])]
