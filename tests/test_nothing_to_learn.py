"""Where no group can teach: it is said, no step is taken, and the run goes on to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.verdict import Verdict
from tests.aging import Aging, recipe, watched
from tests.made import sequence
from tests.test_allocation_state import ALLOCATIONS, settings
from trainer.batching import pack, without_idle
from trainer.loop import train
from trainer.losses import LossConfig
from trainer.tracking import read


class Alike(Aging):
    """All right, all wrong, or nobody knows; counts the optimiser steps that it is asked for."""

    status: Any = "ok"
    right = True
    asked = 0

    def grade(self, items):
        return [Verdict(self.right, float(self.right), self.status) for _ in items]

    def step(self, batch):
        self.asked += len(batch.updates)
        return {"steps": len(batch.updates), "engine_gap": 0.0}


@pytest.mark.parametrize("allocation", [*ALLOCATIONS, "uniform"])
@pytest.mark.parametrize(("status", "right"), [("ok", True), ("wrong", False), ("timeout", False)])
def test_every_allocator_ends_without_a_step(
    allocation: str, status: str, right: bool, tmp_path: Path
) -> None:
    if allocation == "uniform":
        made = recipe(tmp_path, **settings("knapsack", steps=3) | {"allocation": "uniform"})
    else:
        made = recipe(tmp_path, **settings(allocation, steps=3))
    world = Alike(made.stages[0], 0)
    world.status, world.right = status, right
    said: list[str] = []
    with watched(made, world, tmp_path) as run:
        run.tracker.say = said.append
        train(run)
    assert world.asked == 0
    assert len([line for line in said if "nothing to learn from" in line]) == 3
    rows = read(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["gradient/effective_responses"] == 0 for row in rows)


def test_an_update_without_a_gradient_is_left_out_and_no_other() -> None:
    """Two updates of two groups; the first has none. What is beside the policy loss stays."""
    rows = [sequence(i, 6, advantage=float(i > 1), group=i) for i in range(4)]
    sizes: dict[str, Any] = {"tokens_per_micro_batch": 64, "updates": 2, "ranks": 2}
    batch = pack(rows, LossConfig(), **sizes)
    assert len(batch.updates) == 2
    (kept,) = without_idle(batch).updates
    prompts = np.concatenate([micro.rows_B for hand in kept for micro in hand])
    assert sorted(r for r in prompts if r >= 0) == [2, 3]
    entropy = LossConfig(entropy_coef=0.1)
    assert len(without_idle(pack(rows, entropy, **sizes)).updates) == 2
