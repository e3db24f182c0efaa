"""Overlapped runs through Ray and DeepSpeed: within the bound. Killed ones: test_kills.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from launch import run
from launch.fleet import Fleet
from launch.placement import Placement
from tests.test_run import SMALL, metrics, train

AHEAD = (
    "deterministic=false", "max_staleness=1", "rollout.in_flight_updates=true",
    "rollout.workers=2",
)  # fmt: skip


@pytest.mark.slow
def test_no_token_is_older_than_the_bound(tmp_path: Path) -> None:
    """Two engines that load in flight."""
    steps = metrics(train(tmp_path, *AHEAD, "steps=5"))
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5]
    for step in steps:
        assert step["rollouts"] == 16
        assert step["staleness/max"] <= 1
        assert step["engine_gap"] < 1e-4, "scored by both sides under the same weights"
    assert any(step["staleness/max"] == 1 for step in steps), "training was overlapped"
    # where all groups are all right or all wrong no token is computed, and there is no mean
    stale = [step for step in steps if step["staleness/max"] == 1 and "importance" in step]
    assert stale
    for step in stale:
        assert 0 < step["importance"] <= 2
        if step["staleness/mean"] > 0.2:
            assert step["policy_drift"] > 1e-4, "and drift is told apart"


@pytest.mark.slow
def test_engines_on_the_learners_gpus_sleep_while_they_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a shared GPU: whenever learners compute, also only to score; and they are woken."""
    asleep: list[tuple[str, bool]] = []

    def noted(name: str) -> None:
        method = getattr(Fleet, name)

        def call(fleet: Fleet, *args: Any) -> Any:
            out = method(fleet, *args)
            engine = fleet.engines.team.actors[0]
            ask = engine.__ray_call__.remote(lambda actor: actor.worker.engine._asleep)
            asleep.append((name, ray.get(ask)))
            return out

        monkeypatch.setattr(Fleet, name, call)

    monkeypatch.setattr(Placement, "shared", True)
    for name in ("rollout", "score", "step", "sync"):
        noted(name)
    settings = ("loss.importance=token", "loss.importance_normalize=true", "steps=2", *SMALL)
    folder = run.train("grpo/find", f"output={tmp_path}", *settings)
    turns = [("rollout", False), ("score", True), ("step", True), ("sync", False)]
    assert asleep == turns * 2
    assert all(step["engine_gap"] < 1e-4 for step in metrics(folder))
