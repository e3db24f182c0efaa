"""Disks that are full or cannot be written, for real."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

Switch = Callable[[bool], None]


@contextlib.contextmanager
def small(folder: Path, size: str = "64k") -> Iterator[tuple[Path, Switch]]:
    """A folder, and what fills (True) its disk or makes room again (False).

    A mounted one where that is allowed. Else the process may write no file beyond its present
    length, which fails in the same calls.
    """
    if not _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        with _limited(folder) as fill:
            yield folder, fill
        return
    filler = folder / "filler"

    def fill(full: bool) -> None:
        filler.unlink(missing_ok=True)
        if full:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(b"x" * 512):
                    pass

    try:
        yield folder, fill
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def _limited(folder: Path) -> Iterator[Switch]:
    def fill(full: bool) -> None:
        longest = max((p.stat().st_size for p in folder.rglob("*") if p.is_file()), default=0)
        limit(longest if full else None)

    try:
        yield fill
    finally:
        limit(None)


def limit(size: int | None) -> None:
    """No file of this process may grow beyond `size` bytes (python ignores SIGXFSZ)."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def read_only(folder: Path, on: bool) -> None:
    """A disk of `small` becomes read-only, or its files do where nothing can be mounted."""
    if not _mount("-o", f"remount,{'ro' if on else 'rw'}", str(folder)):
        for path in (folder, *folder.rglob("*")):
            path.chmod((0o555 if on else 0o755) if path.is_dir() else (0o444 if on else 0o644))


def _mount(*words: str) -> bool:
    if os.geteuid():
        return False
    return subprocess.run(["mount", *words], capture_output=True).returncode == 0
