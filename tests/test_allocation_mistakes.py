"""Allocations that cannot work are refused in one line, before any work."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.aging import recipe
from trainer import preflight

FINITE: dict[str, Any] = {"data": {"task": "find", "limit": 64}, "rollouts_per_prompt": 4}
MODES = {
    "budget": {"name": "modes", "modes": {"high": {}, "low": {"suffix": "~"}}},
    "algorithm": {"name": "grpo", "within": "subgroup"},
}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"allocation": {"name": "knapsack", "low": 8, "up": 4}}, r"low=8.*up=4"),
    ({"allocation": {"name": "knapsack", "low": 5}}, r"low=5.*rollouts_per_prompt=4"),
    ({"allocation": {"name": "knapsack", "up": 3}}, r"up=3.*rollouts_per_prompt=4"),
    ({"allocation": {"name": "knapsack", "low": 1}}, r"may train 1 rollouts.*2 or more"),
    ({"allocation": "knapsack", "data": {"task": "find"}}, r"finite pool.*data\.limit"),
    ({"allocation": {"name": "gvm", "pilot": 8}}, r"pilot=8.*rollouts_per_prompt=4"),
    ({"allocation": {"name": "gvm", "pilot": 4, "count_pilot": True}}, r"pilot=4.*count_pilot"),
    ({"allocation": {"name": "gvm", "pilot": 2, "least": 1}}, r"may train 1 rollouts.*least"),
    ({"allocation": {"name": "gvm", "pilot": 2, "least": 9, "most": 8}}, r"most=8.*least=9"),
    (
        {"allocation": {"name": "gvm", "pilot": 2, "every": 1, "reuse": True}}
        | {"updates_per_batch": 3},
        r"several updates.*updates_per_batch=1",
    ),
    (
        {"allocation": {"name": "gvm", "pilot": 2}, "max_staleness": 3}
        | {"budget": {"name": "chunked", "chunk": 8}},
        r"gvm does not go with chunks",
    ),
    ({"allocation": "dynamic"}, r"max_staleness=0.*max_staleness=1.*surplus=train"),
    ({"allocation": {"name": "oversample", "samples": 3}}, r"samples=3.*samples=4"),
    ({"allocation": {"name": "reinforce_ada", "rounds": 1, "per_round": 3}}, r"per_round=3"),
    ({"allocation": "reinforce_ada", "rollouts_per_prompt": 1}, r"rollouts_per_prompt=1"),
    ({**MODES, "rollouts_per_prompt": 2}, r"rollouts_per_prompt=2.*a mode of a prompt"),
    ({**MODES, "allocation": "knapsack"}, r"train 2 rollouts of a prompt.*mode of a prompt"),
    (
        {**MODES, "allocation": {"name": "reinforce_ada", "per_round": 1, "rounds": 8}},
        r"asks? for 1 rollouts.*2 subgroups",
    ),
    ({"measure": {"gradient_variance": 2}, "learner": {"zero": 3}}, r"learner\.zero to 0, 1 or 2"),
]


@pytest.mark.parametrize(("fields", "match"), WRONG, ids=[match for _, match in WRONG])
def test_refused_in_one_line(fields: dict[str, Any], match: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=match) as told:
            preflight.check_all(recipe(tmp_path, **(FINITE | fields)))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("class Allocator:\n    def __init__(self): ...", "allocation: .*argument"),
        (
            "class Allocator:\n    def __init__(self, config, prompts, rollouts): ...\n"
            "    def allocate(self, stream): yield",
            "has no observe, state_dict, load_state_dict, metrics",
        ),
    ],
)
def test_ones_own_allocator_is_looked_at(
    source: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "to_try.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("ours", "ours.to_try"):
        sys.modules.pop(name, None)
    with pytest.raises(ValueError, match=match) as told:
        recipe(tmp_path, allocation="ours.to_try")
    assert "\n" not in str(told.value)
