"""Programs in the sandbox, and the processes that run them."""

from __future__ import annotations

import contextlib
import json
import sys

import psutil
import pytest

from rewards.grader import load
from rewards.sandbox import host
from rewards.verdict import Verdict
from rewards.verifiers import code

WALLED = pytest.mark.skipif(
    not sys.platform.startswith("linux") or bool(host.fault(code.limits(code.Config()))),
    reason="no sandbox can be made on this machine",
)
SQUARES = json.dumps({"inputs": [[3], [4]], "outputs": [9, 16], "fn_name": "solve"})
QUICK = {"name": "code", "seconds": 0.4, "memory_mb": 192}


def fenced(source: str) -> str:
    return f"So:\n```python\n{source}\n```\n"


def graded(source: str, gold: str = SQUARES, **settings: object) -> Verdict:
    return load({**QUICK, **settings})(fenced(source), gold, {})


def below() -> set[int]:
    """Processes under this one, the launcher aside, zombies included."""
    launcher = host.launcher().process.pid
    found = {p.pid for p in psutil.Process().children(recursive=True)}
    return found - {launcher}


def guests() -> list[psutil.Process]:
    """Launchers and all that they have started, under this process; its own launcher aside."""
    own = host.launcher().process.pid
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.pid != own and "rewards.sandbox" in " ".join(process.cmdline()):
                found.append(process)
    return found
