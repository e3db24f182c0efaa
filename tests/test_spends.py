"""No allocator samples more in a step than it says that it may, and what it says can happen."""

from __future__ import annotations

from typing import Any

import pytest

from samplers import seam
from samplers.allocation import gvm
from tests.allocated import Steps, at_rates
from tests.test_asks import Returning

PROMPTS, ROLLOUTS = 4, 4
CASES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "knapsack": {"up": 8},
    "oversample": {"samples": 9},
    "reinforce_ada": {"rounds": 3, "per_round": 2},
    "dynamic": {"max_rounds": 3},
    "gvm": {"every": 3, "pilot": 2},
}


def made(name: str) -> tuple[Any, int]:
    module, config = seam.resolve("samplers.allocation", {"name": name, **CASES[name]})
    spends = getattr(module, "spends", lambda _, prompts, rollouts: prompts * rollouts)
    most = spends(config, PROMPTS, ROLLOUTS)
    return module.Allocator(config, PROMPTS, ROLLOUTS), most


def sampled(steps: Steps) -> int:
    steps.step()
    return sum(n for call in steps.calls for n in call.values())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("order", [None, 1, 2])
def test_no_step_samples_more(name: str, order: int | None) -> None:
    allocator, most = made(name)
    steps = Steps(allocator, at_rates([0.0, 0.1, 0.5, 0.9, 1.0], 3), order)
    steps.stream = Returning()
    counts = [sampled(steps) for _ in range(12)]
    assert 0 < max(counts) <= most


@pytest.mark.parametrize("name", CASES)
def test_it_can_happen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing right; for gvm, with the gradient in a single prompt of the first step."""
    allocator, most = made(name)
    one = lambda self, group: gvm.Measured(0.5, 1.0, float(group.serial == 0))  # noqa: E731
    monkeypatch.setattr(gvm.Allocator, "measure", one)
    steps = Steps(allocator, at_rates([0.0], 3))
    steps.stream = Returning()
    assert sampled(steps) == most
