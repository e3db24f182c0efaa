"""Golds of a dataset: each accepts itself and rejects its neighbour, or is told before a run."""

from __future__ import annotations

import pytest

from rewards.golds import check_golds, require_golds
from samplers.types import Prompt


def prompts(*golds: str) -> list[Prompt]:
    return [Prompt(i, f"row-{i}", (), "?", gold, "") for i, gold in enumerate(golds)]


def test_golds_are_checked_before_a_run() -> None:
    assert check_golds(prompts("1", r"\frac{1}{2}", r"\text{east}", "(1,2)"), "math") == {}
    assert [*check_golds(prompts("1", "", r"\frac{1}{", "2"), "math")] == [1, 2]
    assert [*check_golds(prompts("one"), "numeric")] == [0]
    assert check_golds(prompts("x"), "tests.graders:by_text") == {}
    with pytest.raises(ValueError, match=r"row-1.*empty"):
        require_golds(prompts("1", ""), "math")
    require_golds(prompts("1", "2"), "math")
