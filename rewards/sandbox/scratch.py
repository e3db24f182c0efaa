"""Folders of programs that run without walls. Who is killed leaves his; the next one clears them.

A folder is locked by the process that made it, and the kernel opens the lock when that ends: unlike
a process id, this holds also between containers that share the place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "laconic-answer-"
YOUNG = 60.0
"""Seconds: a younger folder may not have got its lock yet."""


class Scratch:
    """A new folder at `path`, until removed."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix=PREFIX)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def clear() -> None:
    """Remove what dead processes of ours have left."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # not ours, in use, or just gone
            _clear(path)


def _clear(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(folder)
        if found.st_uid == os.geteuid() and time.time() - found.st_mtime > YOUNG:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(folder)
