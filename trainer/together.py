"""Work that may fail on one rank alone: all ranks hear of it, and none waits for the one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trainer import zero

T = TypeVar("T")


def everywhere(work: Callable[[], T]) -> list[T]:
    """What `work` returned on each rank, in rank order. Collective; `work` itself must not be.

    Raises:
        ValueError: `work` raised one on some rank; so do all ranks.
        OSError: a file could not be read or written, likewise; with its errno where there is one.
        RuntimeError: anything else, likewise.
    """
    value, failure, cause = None, None, None
    try:
        value = work()
    except Exception as error:
        cause, failure = error, _told(error)
    found = zero.gather_objects((value, failure))
    for rank, (_, failed) in enumerate(found):
        if failed is not None:
            raise _again(rank, *failed) from cause
    return [value for value, _ in found]


def _told(error: Exception) -> tuple[str, int | None, str, str | None]:
    """(kind, errno, words, file) of an error: what other ranks need to raise it too."""
    if type(error).__name__ == "SafetensorError":
        error = disk_error(error, None)
    if isinstance(error, OSError):
        words = str(error) if error.errno is None else error.strerror or ""
        file = None if error.filename is None else str(error.filename)
        return "OSError", error.errno, words, file
    if isinstance(error, ValueError):
        return "ValueError", None, str(error), None
    return "RuntimeError", None, f"{type(error).__name__}: {error}", None


def _again(rank: int, kind: str, errno: int | None, words: str, file: str | None) -> Exception:
    if kind == "ValueError":
        return ValueError(words)
    words = f"rank {rank}: {words}"
    if kind == "RuntimeError":
        return RuntimeError(words)
    return OSError(words) if errno is None else OSError(errno, words, file)


def disk_error(error: Exception, path: Path | None) -> OSError:
    """What safetensors says in words alone, as the OSError it was."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is None:
        return OSError(f"{path}: {error}" if path else str(error))
    errno = int(found[1])
    return OSError(errno, os.strerror(errno), None if path is None else str(path))
