"""Killed at any instant, a checkpoint is the old one or the new one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("what", [(), pytest.param(("all",), marks=pytest.mark.slow)])
def test_killed_before_every_call_to_the_file_system(what: tuple[str], tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.killed", str(tmp_path), *what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = [int(word) for word in done.stdout.split()]
    assert len(counts) == (8 if what else 2)
    assert min(counts) > 30, "as many calls were there to be killed before"
