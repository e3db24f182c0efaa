"""Ending child processes with everything they started."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable

import psutil


def interrupt_trees(pids: Iterable[int], grace: float = 15.0) -> None:
    """Ask process trees to leave (SIGINT to each root), then kill what is left after `grace`.

    The trees are listed first: Ray's processes outlive a parent that dies, and are then nobody's.
    """
    roots, everyone = [], []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            everyone += [root, *root.children(recursive=True)]
            roots.append(root)
    try:
        for root in roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                root.send_signal(signal.SIGINT)
        _, left = psutil.wait_procs(everyone, timeout=grace)
    except BaseException:  # a second Ctrl-C: at once
        left = everyone
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def kill_tree(pid: int) -> None:
    """Kill a process and everything below it, at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
