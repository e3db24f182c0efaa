"""Ending child processes with everything they started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1
_tie = getattr(ctypes.CDLL(None), "prctl", None)
"""Looked up here: between fork and exec nothing may be imported."""


def interrupt_trees(
    pids: Iterable[int],
    grace: float | None = 15.0,
    number: int = signal.SIGINT,
    urgent: float = 15.0,
) -> None:
    """Ask process trees to leave (a signal to each root), then kill what is left of them.

    The trees are listed first: Ray's processes outlive a parent that dies, and are then nobody's.

    Args:
        grace: seconds that they get; None: as many as they need, until we are interrupted too.
        number: the signal.
        urgent: seconds that they get then: they are asked once more.
    """
    roots = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    everyone = _trees(roots)
    try:
        _signal(roots, number)
        psutil.wait_procs(roots if grace is None else everyone, timeout=grace)
    except KeyboardInterrupt:
        if grace is None:
            with contextlib.suppress(KeyboardInterrupt):  # a third one: at once
                _signal(roots, signal.SIGINT)
                psutil.wait_procs(roots, timeout=urgent)
    finally:
        end([*everyone, *_trees(roots)])


def dies_with_us() -> None:
    """In a child before it begins: hear our interrupt, though a script's background jobs inherit
    deaf ears; and be told to end where this process is killed and cannot do it (Linux)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if _tie is not None:
        _tie(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def kill_tree(pid: int) -> None:
    """Kill a process and everything below it, at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        end(_trees([psutil.Process(pid)]), patience=0.0)


def end(processes: Iterable[psutil.Process], patience: float = 5.0) -> None:
    """Kill what still runs of these, and wait until it does not."""
    left, until = list(processes), time.monotonic() + patience
    while left := [process for process in left if _runs(process)]:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if time.monotonic() > until:
            return
        time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    """One that is dead and not yet buried, which may be a slow one's business, does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def marked(folder: Path, mark: str, *, everywhere: bool = False) -> list[psutil.Process]:
    """Processes below this one, or of this user, that are of `folder`, and those below them.

    That is one whose environment says so as `mark`, or that holds a file open in it: who gives
    itself a title may write over its environment.
    """
    roots = []
    for process in psutil.process_iter() if everywhere else psutil.Process().children(True):
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(mark) == str(folder) or _holds(process, f"{folder}/"):
                roots.append(process)
    return list(dict.fromkeys(_trees(roots)))


def _holds(process: psutil.Process, folder: str) -> bool:
    files = Path(f"/proc/{process.pid}/fd").iterdir()
    return any(os.path.realpath(file).startswith(folder) for file in files)


def _trees(roots: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The roots that live and everything below them."""
    found = []
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [root, *root.children(recursive=True)]
    return found


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
