"""Ray's own processes are killed: the run ends and says so, nothing stays, and it can go on."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import killing
from tests.killing import Kill, Running

SETTINGS = (
    *("steps=500", "evaluation=null", "checkpoint.every=1"),
    *("learner.ranks=1", "rollout.workers=1"),
)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray's folders come to lie: short, as sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def killed(run: Running, role: str, step: int) -> tuple[str, list[psutil.Process]]:
    """What the run said that lost this process after that step, and the processes that it had."""
    assert run.wait(lambda: run.reached("step", step)), run.text()
    below = run.process.children(recursive=True)
    assert run.kill(Kill(role), random.Random(0))
    assert run.end() == 1, run.text()
    assert "Traceback" not in run.text()
    return run.text(), below


@pytest.mark.slow
def test_a_run_that_loses_ray_says_so_and_goes_on_from_its_checkpoint(
    tmp_path: Path, place: Path
) -> None:
    run = Running(["train", *killing.words("plain", tmp_path, *SETTINGS)], tmp_path / "run-seed0")
    text, below = killed(run, "raylet", 2)
    said = [line for line in text.splitlines() if line.startswith("laconic: ")]
    assert len(said) == 1
    assert psutil.wait_procs(below, timeout=10)[1] == []
    assert not list(place.glob("*laconic-ray-*"))
    newest = max((run.folder / "checkpoints").glob("step-*/COMPLETE")).parent.name
    for part in ("raylet", f"`laconic resume {run.folder}` goes on from {newest}"):
        assert part in said[0]

    run = Running(["resume", str(run.folder)], run.folder)
    last = killing.steps(run.folder)[-1]
    text, below = killed(run, "gcs", last + 1)
    assert f"goes on from step {int(newest[-6:])}" in text
    (line,) = [line for line in text.splitlines() if line.startswith("laconic: ")]
    newest = max((run.folder / "checkpoints").glob("step-*/COMPLETE")).parent.name
    for part in ("Ray's head", f"`laconic resume {run.folder}` goes on from {newest}"):
        assert part in line
    assert psutil.wait_procs(below, timeout=10)[1] == []
    assert not list(place.glob("*laconic-ray-*"))

    last = killing.steps(run.folder)[-1]
    run = Running(["resume", str(run.folder), f"steps={last + 1}"], run.folder)
    assert run.end() == 0, run.text()
    assert killing.steps(run.folder) == list(range(1, last + 2))
