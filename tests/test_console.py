"""Risk: a terminal, a pipe or a log file that is gone or full takes the run with it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import disks

SHOWS = """
import os, sys
from trainer.console import Console
console = Console(3, "run")
for step in range(3):
    console.step({"step": step, "accuracy": 0.5})
    console.say("a line")
    os.write(2, b"made %d\\n" % step)  # sys.stderr is a live view's
    sys.stdin.readline()
console.close()
print("the folder")
"""


def shows(out: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SHOWS],
        stdin=subprocess.PIPE, stdout=out, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def goes_on(run: subprocess.Popen[str]) -> None:
    """It makes all steps, and ends well."""
    _, error = run.communicate("\n\n\n", timeout=60)
    assert run.returncode == 0, error
    assert [line for line in error.splitlines() if line.startswith("made")] == ["made 1", "made 2"]
    assert "Traceback" not in error
    assert "Exception" not in error


def first_step(run: subprocess.Popen[str]) -> None:
    assert run.stderr is not None
    assert run.stderr.readline() == "made 0\n"


@pytest.mark.parametrize("connected", [os.pipe, pty.openpty])
def test_a_reader_that_leaves_or_a_terminal_that_is_gone(
    connected: Callable[[], tuple[int, int]],
) -> None:
    ours, theirs = connected()
    run = shows(theirs)
    os.close(theirs)
    first_step(run)
    os.close(ours)
    goes_on(run)


def test_output_that_was_closed_before() -> None:
    run = subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", SHOWS],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    first_step(run)
    goes_on(run)


def test_a_log_on_a_disk_that_fills_and_has_room_again(tmp_path: Path) -> None:
    code = SHOWS.replace("import os, sys", "import os, sys; from tests import disks").replace(
        "sys.stdin.readline()", "disks.limit(1 if step == 0 else None)"
    )
    log = tmp_path / "log"
    with log.open("w") as file:
        run = subprocess.run(
            [sys.executable, "-c", code], stdout=file, stderr=subprocess.PIPE, text=True
        )
    assert run.returncode == 0, run.stderr
    shown = log.read_text()
    assert "step 0" in shown
    assert "step 2" in shown
    assert shown.endswith("the folder\n")


def test_a_log_on_a_disk_that_stays_full(tmp_path: Path) -> None:
    with disks.small(tmp_path) as (folder, fill), (folder / "log").open("w") as file:
        run = shows(file.fileno())
        first_step(run)
        fill(True)
        goes_on(run)
