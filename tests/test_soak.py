"""Many small steps of one driver with a fault every ten: nothing is lost, and nothing piles up.

LACONIC_SOAK=300 takes 300 steps instead of 70. The figures are printed (pytest -s).
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from pathlib import Path

import psutil
import pytest

from tests import killing
from tests.killing import Kill, Running

STEPS = int(os.environ.get("LACONIC_SOAK", "70"))
EVERY = 10
"""Steps between faults."""
TINY = (
    f"steps={STEPS}",
    "rollouts_per_prompt=2",
    "rollout.max_tokens=16",
    "evaluation=null",
    f"checkpoint.every={EVERY}",
    "tracking.samples=0",
    "guard.truncated=1.0",
    "faults.heartbeat=2",
)
FAULTS = (
    ("verifier", signal.SIGKILL),
    ("engine", signal.SIGKILL),
    ("grader", signal.SIGKILL),
    ("engine", signal.SIGSTOP),
    ("learner", signal.SIGKILL),
)
BOUNDS = {
    "driver MiB": 8,
    "driver files": 4,
    "driver threads": 4,
    "gcs MiB": 10,
    "gcs files": 8,
    "raylet MiB": 10,
    "raylet files": 8,
    "learner files": 4,
    "engine files": 4,
    "/dev/shm": 4,
}
"""What the median of the last third may be above that of the second tenth to the third. Ray's
server remembers actors that have ended."""
MIB = 2**20


def figures(run: Running) -> dict[str, float]:
    """Of the processes that live as long as the run; of learners and engines the most that one has:
    rank 0 has more than the others."""
    out: dict[str, float] = {"/dev/shm": len(os.listdir("/dev/shm"))}
    for role in ("driver", "gcs", "raylet", "learner", "engine"):
        each = [psutil.Process(process.pid) for process in run.of(role)]
        out[f"{role} MiB"] = max(one.memory_full_info().uss for one in each) / MIB
        out[f"{role} files"] = max(one.num_fds() for one in each)
        out[f"{role} threads"] = max(one.num_threads() for one in each)
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_faults_leave_no_trace(
    tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    chance, seen = random.Random(STEPS), dict[int, dict[str, float]]()
    settings = killing.words("plain", tmp_path, *TINY)
    run, began = Running(["train", *settings], tmp_path / "run-seed0"), time.monotonic()
    try:
        for number, at in enumerate(range(EVERY, STEPS, EVERY)):
            assert run.wait(lambda at=at: run.reached("step", at)), run.text()[-2000:]
            seen[at] = figures(run)
            role, signum = FAULTS[number % len(FAULTS)]
            kill = Kill(role, "step", at + chance.randrange(EVERY // 2), chance.uniform(0, 0.3))
            assert run.kill(kill, chance, signum), run.text()[-2000:]
        assert run.end() == 0, run.text()[-2000:]
        seconds = time.monotonic() - began
    finally:
        killing.stop(run.process)
    _tell(seen, seconds, run.folder)
    assert killing.steps(run.folder) == list(range(1, STEPS + 1))
    assert sorted(killing.seen(run.folder)["draws"]) == list(range(2 * STEPS))
    assert {fault["role"] for fault in killing.faults(run.folder)} == {
        "learner", "rollout", "grader",
    }  # fmt: skip
    left = [path.name for path in short.iterdir() if not path.name.startswith("torchinductor_")]
    assert left == []
    found = list(seen.values())
    early, late = found[len(found) // 10 : len(found) // 3 + 1], found[-(len(found) // 3) :]
    for name, most in BOUNDS.items():
        grown = _median(late, name) - _median(early, name)
        assert grown <= most, f"{name}: {grown:.1f} more"


def _median(found: list[dict[str, float]], name: str) -> float:
    return statistics.median_low(one[name] for one in found)  # Ray's have passing peaks


def _tell(seen: dict[int, dict[str, float]], seconds: float, folder: Path) -> None:
    print(f"\n{STEPS} steps, {len(seen)} faults, {seconds:.0f} s")
    for name in next(iter(seen.values())):
        values = [one[name] for one in seen.values()]
        slope = 100 * statistics.linear_regression(list(seen), values).slope
        each = " ".join(f"{value:.1f}" for value in values)
        print(f"  {name}: {slope:+.2f} per 100 steps; {each}")
    for fault in killing.faults(folder):
        print(f"  step {fault['step']}: {fault['what']} ({fault['seconds']:.1f} s)")
