"""What stops a run: an engine that disagrees, and a cap that nearly every rollout hits."""

from __future__ import annotations

import pytest

from trainer import guard
from trainer.config import load


def stage(*settings: str):
    return load("grpo/find", settings).stages[0]


def test_a_gap_above_the_bound_stops_the_run() -> None:
    guard.check(stage(), False, {"engine_gap": 0.9e-4})
    with pytest.raises(RuntimeError, match="engine gap"):
        guard.check(stage(), False, {"engine_gap": 1.1e-4})
    guard.check(stage("model.dtype=bfloat16"), False, {"engine_gap": 0.9e-2})
    with pytest.raises(RuntimeError, match="engine gap"):
        guard.check(stage("model.dtype=bfloat16"), False, {"engine_gap": 1.1e-2})
    with pytest.raises(RuntimeError, match="engine gap"):
        guard.check(stage("guard.engine_gap=1e-6"), False, {"engine_gap": 2e-6})
    with pytest.raises(RuntimeError, match="engine gap"):
        guard.check(stage(), False, {"engine_gap": float("nan")})


def test_a_cap_that_nearly_all_hit_is_refused_at_the_first_step_only() -> None:
    with pytest.raises(ValueError, match=r"rollout.max_tokens=192: 97%"):
        guard.check(stage(), True, {"truncated": 0.97})
    guard.check(stage(), False, {"truncated": 0.97})
    guard.check(stage(), True, {"truncated": 0.95})
