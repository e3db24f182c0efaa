"""Chunked rollouts by real engines and learners: the same logprobs, and resumable bit for bit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests import here
from tests.test_run import SMALL, _until, command, metrics, train, weights
from trainer.config import load

CHUNKED = (
    "budget={name: chunked, chunk: 16, of: {name: fixed, think: 40}}",
    "rollout.max_tokens=60",
    "max_staleness=4",
)


def test_a_rollout_of_several_pieces_has_the_logprobs_of_one(tmp_path: Path) -> None:
    """Weights that stay put are those of every piece: engine and learner agree on each token."""
    made = load("grpo/find", (f"output={tmp_path}", *SMALL, *CHUNKED, "steps=5", "optim.lr=1e-12"))
    steps = here.run(made)
    assert steps[0].get("groups", 0) < 4
    assert sum(step.get("groups", 0) for step in steps) == 20
    assert max(step.get("staleness/max", 0) for step in steps) >= 2
    assert steps[-1]["chunks/carried"] == 0
    trained = [step for step in steps if step.get("tokens")]
    assert trained
    for step in trained:
        assert step["policy_drift_max"] < 1e-4
        assert step["engine_gap"] < 1e-4
        assert step["importance"] == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_killed_and_run_again_equals_never_killed(tmp_path: Path) -> None:
    """By turns, on two engines; what was unfinished goes on from the checkpoint."""
    settings = (*CHUNKED, "steps=6", "checkpoint={every: 1, keep: 9}", "rollout.workers=2")
    whole = train(tmp_path / "whole", *settings)
    process = subprocess.Popen(
        command(tmp_path / "killed", *settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    folder = tmp_path / "killed" / "grpo-find-seed0"
    third = folder / "checkpoints" / "step-000003"
    _until((third / "COMPLETE").exists, process)
    process.kill()
    process.wait()
    assert (third / "driver.npz").exists()
    train(tmp_path / "killed", *settings)
    assert metrics(folder) == metrics(whole)
    for name, array in weights(whole).items():
        np.testing.assert_array_equal(array, weights(folder)[name])


@pytest.mark.slow
def test_chunks_go_on_while_learners_train(tmp_path: Path) -> None:
    """Sampled ahead, loaded in flight, sent to whichever engine has room."""
    folder = train(
        tmp_path, *CHUNKED, "steps=8", "max_staleness=5", "deterministic=false",
        "rollout.in_flight_updates=true", "rollout.workers=2",
    )  # fmt: skip
    steps = metrics(folder)
    assert sum(step.get("rollouts", 0) for step in steps) == 8 * 16
    assert max(step.get("staleness/max", 0) for step in steps) <= 5
    assert all(step.get("engine_gap", 0) < 1e-4 for step in steps)
