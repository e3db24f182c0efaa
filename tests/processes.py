"""Which processes live, and waiting for what must happen to them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

import psutil


def until(true: Callable[[], object], seconds: float = 30.0) -> bool:
    """Wait for what must happen; how long it takes is not what is tested."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def exists(pid: int) -> bool:
    """Alive, or dead and not reaped."""
    return psutil.pid_exists(pid)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def below(pids: Sequence[int]) -> list[int]:
    """These processes and all that they have started."""
    found = list(pids)
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return sorted(set(found))
