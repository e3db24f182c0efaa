"""Overlapped runs through Ray and DeepSpeed: within the bound, resumable, and gone when told."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil

from tests.test_run import _gone, _until, command, metrics, train

AHEAD = (
    "deterministic=false", "max_staleness=1", "rollout.in_flight_updates=true",
    "rollout.workers=2",
)  # fmt: skip


def test_a_killed_run_goes_on_within_the_bound(tmp_path: Path) -> None:
    """Two engines that load in flight, killed in the middle and started again."""
    settings = (*AHEAD, "steps=5", "checkpoint.every=1")
    run = subprocess.Popen(
        command(tmp_path, *settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    folder = tmp_path / "grpo-find-seed0"
    _until((folder / "checkpoints" / "step-000002" / "COMPLETE").exists, run)
    run.kill()
    run.wait()
    train(tmp_path, *settings)
    steps = metrics(folder)
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5]
    for step in steps:
        assert step["rollouts"] == 16
        assert step["staleness/max"] <= 1
        assert step["engine_gap"] < 1e-4, "scored by both sides under the same weights"
    assert any(step["staleness/max"] == 1 for step in steps), "training was overlapped"
    # where all groups are all right or all wrong no token is computed, and there is no mean
    stale = [step for step in steps if step["staleness/mean"] > 0.5 and "importance" in step]
    assert stale
    for step in stale:
        assert 0 < step["importance"] <= 2
        assert step["policy_drift"] > 1e-4, "and drift is told apart"


def test_interrupt_in_the_middle_of_a_rollout_leaves_no_process(tmp_path: Path) -> None:
    run = subprocess.Popen(
        command(tmp_path, *AHEAD, "steps=500"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    log = tmp_path / "grpo-find-seed0" / "metrics.jsonl"
    _until(lambda: log.exists() and log.read_text().count("\n") >= 1, run)
    descendants = psutil.Process(run.pid).children(recursive=True)
    assert descendants
    os.killpg(run.pid, signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130, error[-2000:]
    assert "Traceback" not in error
    _gone(descendants)
