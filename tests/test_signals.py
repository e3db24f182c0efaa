"""Runs that are told to end, as terminals and schedulers do it: what is kept, and what is left."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.test_run import SMALL, _gone, _until, command, metrics, train, weights

pytestmark = pytest.mark.slow
EVAL = "evaluation={every: 2, problems: 8, budgets: [40], answer_tokens: 4}"


@pytest.fixture
def place() -> Iterator[Path]:
    """Short, as sockets lie below it; what the system's would be for temporary files."""
    folder = Path(tempfile.mkdtemp(prefix="stop"))
    (folder / "tmp").mkdir()
    yield folder
    shutil.rmtree(folder)


def settings(place: Path, *more: str) -> tuple[str, ...]:
    return (
        "steps=5",
        "rollout.max_tokens=48",
        f"rollout.engine={{name: tests.slowed_engine, folder: '{place}'}}",
        f"algorithm={{name: tests.held_algorithm, folder: '{place}'}}",
        *more,
    )


class Told:
    """A run that is about to be told something."""

    def __init__(self, place: Path, *more: str, output: str = "out") -> None:
        self.place, self.output = place, place / output
        self.folder, self.errors = self.output / "grpo-find-seed0", place / "errors"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command(self.output, *more), stdout=subprocess.DEVNULL, stderr=errors,
                env={**os.environ, "TMPDIR": str(place / "tmp")}, start_new_session=True,
            )  # fmt: skip

    def until(self, *, step: int | None = None, file: str = "") -> None:
        """Until a step is logged; then until `file` is made anew."""
        log = self.folder / "metrics.jsonl"
        if step is not None:
            _until(lambda: log.exists() and f'"step": {step},' in log.read_text(), self.process)
        if file:
            (self.place / file).unlink(missing_ok=True)
            _until((self.place / file).exists, self.process)

    def tell(self, number: int) -> None:
        """To all of its group, and Ray's processes hear it as they would in a job."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.below, self.shared = below, {name for p in below for name in shared(p)}
        assert "raylet" in [p.name() for p in below]
        groups = {os.getpgid(p.pid) for p in below}
        os.killpg(self.process.pid, number)
        if number == signal.SIGTERM:
            for group in groups - {self.process.pid}:
                os.killpg(group, number)

    def ends(self, code: int) -> str:
        """With that exit code, and nothing stays; what it said."""
        assert self.process.wait(60) == code, self.errors.read_text()[-3000:]
        _gone(self.below)  # and with them their ports
        assert not list((self.place / "tmp").glob("*laconic-*")), "no folder stays"
        assert not [name for name in self.shared if os.path.exists(name)]
        said = self.errors.read_text()
        assert "Traceback" not in said
        return said

    @property
    def kept(self) -> list[str]:
        return sorted(p.parent.name for p in self.folder.glob("checkpoints/*/COMPLETE"))


def shared(process: psutil.Process) -> set[str]:
    """Names in shared memory that it maps."""
    try:
        lines = Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return set()
    return set(re.findall(r"(/dev/shm/\S+)$", lines, re.MULTILINE))


def test_a_run_stopped_in_every_phase_equals_one_never_stopped(place: Path) -> None:
    own = settings(place, "steps=3", EVAL, "checkpoint.every=100")
    hold, slow = place / "hold", place / "slow"
    hold.touch()
    run = Told(place, *own)
    run.until(file="held")
    slow.touch()
    hold.unlink()
    run.until(step=1, file="generating")  # sampling for step 2, which is given up
    run.tell(signal.SIGTERM)
    said = run.ends(143)
    assert f"stopped at step 1 (checkpointed); go on with: laconic resume {run.folder}" in said
    assert run.kept == ["step-000001"]

    slow.unlink()
    hold.touch()
    run = Told(place, *own)
    run.until(file="held")
    slow.touch()
    hold.unlink()
    run.until(file="generating")  # the evaluation of step 2, which is given up and made again
    run.tell(signal.SIGTERM)
    assert "stopped at step 2 (checkpointed)" in run.ends(143)
    assert [s["step"] for s in metrics(run.folder)] == [0, 1]

    slow.unlink()
    run = Told(place, *own)
    _until(lambda: any(run.folder.glob("checkpoints/step-000003*")), run.process)
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.process.wait(60) in (0, 130)  # 0: it was over
    assert run.kept[-1] == "step-000003", "a checkpoint that was begun is completed"

    assert train(run.output, *own) == run.folder
    never = train(place / "never", *own)
    assert metrics(run.folder) == metrics(never)
    theirs = weights(never)
    assert all((array == theirs[name]).all() for name, array in weights(run.folder).items())


def test_a_run_that_samples_ahead_loses_and_repeats_nothing(place: Path) -> None:
    own = settings(place, "deterministic=false", "max_staleness=1", "checkpoint.every=100")
    (place / "hold").touch()
    run = Told(place, *own)
    run.until(file="held")
    (place / "slow").touch()
    (place / "hold").unlink()
    run.until(step=1, file="generating")
    run.tell(signal.SIGINT)
    assert re.search(r"stopped at step (\d) \(checkpointed\)", run.ends(130))[1] in "23"
    first = metrics(run.folder)[-1]["step"]

    (place / "hold").touch()
    run = Told(place, *own)
    run.until(file="held")
    run.until(file="generating")  # the next batch
    run.tell(signal.SIGHUP)
    (place / "hold").unlink()
    assert f"stopped at step {first + 1} (checkpointed)" in run.ends(129)

    (place / "slow").unlink()
    steps = metrics(train(run.output, *own))
    assert [s["step"] for s in steps] == [1, 2, 3, 4, 5]
    assert all(s["rollouts"] == 16 and s["staleness/max"] <= 1 for s in steps)
    newest = run.folder / "checkpoints" / run.kept[-1] / "driver.json"
    assert json.loads(newest.read_text())["stream"]["drawn"] == 5 * 4, "no prompt lost or twice"


def test_who_cannot_wait_leaves_at_once_and_the_last_checkpoint_stays(place: Path) -> None:
    own = settings(place, "checkpoint={every: 1, grace: 1}")
    run = Told(place, *own)
    run.until(step=1)
    (place / "hold").touch()
    run.until(file="held")
    kept = run.kept
    run.tell(signal.SIGINT)
    _until(lambda: "finishing the step" in run.errors.read_text(), run.process, 10)
    run.tell(signal.SIGINT)
    assert "interrupted; go on with" in run.ends(130)
    assert run.kept == kept

    run = Told(place, *own)
    run.until(file="held")
    run.tell(signal.SIGTERM)  # the step takes longer than the grace
    assert "a checkpoint within 1 s" in run.ends(143)
    assert run.kept == kept

    (place / "hold").unlink()
    (place / "slow").touch()
    run = Told(place, *own, output="other")
    run.until(file="generating")
    run.tell(signal.SIGTERM)
    assert "stopped in the first step; there is no checkpoint yet" in run.ends(143)


def test_what_a_killed_run_left_goes_with_the_next(place: Path) -> None:
    """But not what is another's: a run beside it goes on. vLLM leaves more than ours does."""
    engine = "vllm" if find_spec("vllm") else "torch"
    more = (f"rollout.engine.name={engine}", "steps=500")
    beside, killed = Told(place, *more, output="beside"), Told(place, *more)
    beside.until(step=1)
    killed.until(step=1)
    folders = set((place / "tmp").glob("laconic-ray-*"))
    below = psutil.Process(killed.process.pid).children(recursive=True)
    killed.process.kill()
    killed.process.wait()
    sweep = "from launch.cluster import sweep; sweep()"
    env = {**os.environ, "TMPDIR": str(place / "tmp")}
    subprocess.run([sys.executable, "-c", sweep], env=env, check=True, timeout=60)
    _gone(below, 10)
    left = set((place / "tmp").glob("*laconic-ray-*"))
    assert (len(folders), len(left)) == (2, 1)
    assert left < folders
    assert not list((place / "tmp").glob("vllm_*"))
    last = metrics(beside.folder)[-1]["step"]
    beside.until(step=last + 2)
    beside.tell(signal.SIGINT)
    assert "stopped at step" in beside.ends(130)


def test_sweeps_hand_signals_on(place: Path) -> None:
    """Its runs make checkpoints, also where it is killed; then the same sweep waits for them. Told
    by Ctrl-C, each finishes its step."""
    out = place / "out"
    words = ["sweep", "grpo/find", "--seeds", "0-1", "--jobs", "2", "--output", str(out)]
    logs = [out / f"grpo-find-seed{seed}" / "metrics.jsonl" for seed in (0, 1)]

    def begun(after: int) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
        run = subprocess.Popen(
            [sys.executable, "-m", "launch.cli", *words, *SMALL, "steps=500"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        _until(lambda: all(f.exists() and metrics(f.parent)[-1]["step"] > after for f in logs), run)
        return run, psutil.Process(run.pid).children(recursive=True)

    killed, below = begun(1)
    killed.kill()
    killed.communicate()
    again, below_again = begun(max(metrics(log.parent)[-1]["step"] for log in logs) + 1)
    _gone(below)
    os.killpg(again.pid, signal.SIGINT)
    said, error = again.communicate(timeout=60)
    assert (again.returncode, error) == (130, "laconic: interrupted\n")
    assert "FAILED" not in said
    _gone(below_again)
    for log in logs:
        steps = [line["step"] for line in metrics(log.parent)]
        assert steps == list(range(1, len(steps) + 1))
        last = log.parent / "checkpoints" / f"step-{steps[-1]:06d}"
        assert (last / "COMPLETE").exists()
        assert json.loads((log.parent / "resumes.jsonl").read_text())["step"] >= 2
