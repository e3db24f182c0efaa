"""A file of JSON lines that its writer cannot fail at: what finds no room waits in memory."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Say = Callable[[str], None]


class Journal:
    """Appends records, one write each. Every failure of the file system is told once, in one line.

    After one the records are kept, and tried again with each further one; half a line that was
    written is taken back first. A process that is killed may leave one at the very end.

    Args:
        what: a record, in the plural ("steps").
        say: tells people.
    """

    def __init__(self, path: Path, what: str, say: Say) -> None:
        self.path, self.what, self._say = path, what, say
        self._size = _whole(path)[1]
        self._file: int | None = None
        self._waiting: list[Mapping[str, Any]] = []
        self._failed = False

    @property
    def waiting(self) -> Sequence[Mapping[str, Any]]:
        """Records that are not in the file yet."""
        return self._waiting

    def append(self, record: Mapping[str, Any]) -> bool:
        """Whether the file is whole, for the first time after a failure."""
        self._waiting.append(record)
        return self._write()

    def cut(self, last: int) -> bool:
        """Drop the records of steps beyond `last`, which are the newest ones; else as `append`.

        The file is made shorter in place: atomic, and on a full disk too.
        """
        self._waiting = [record for record in self._waiting if record["step"] <= last]
        self._size = min(self._size, _whole(self.path, last)[1])
        return self._write()

    def settle(self) -> None:
        """Ask the disk to hold what was written: what is made of it later must not outlive it."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                os.fsync(self._file)

    def close(self) -> None:
        """Try once more, and tell what is lost."""
        self._write(last=True)
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None

    def _write(self, last: bool = False) -> bool:
        try:
            self._flush()
        except OSError as error:
            if last and self._waiting:
                self._say(f"{self.path.name} {_lost(self._waiting, self.what)}: {error.strerror}")
            elif not self._failed:
                self._say(
                    f"{self.path.name} cannot be written: {error.strerror}; {len(self._waiting)} "
                    f"{self.what} are kept in memory until there is room"
                )
            self._failed = True
            return False
        healed, self._failed = self._failed, False
        if healed:
            self._say(f"{self.path.name} is whole again")
        return healed

    def _flush(self) -> None:
        if self._file is None:
            if not self._waiting and not self.path.exists():
                return
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._shorten()
        if not self._waiting:
            return
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in self._waiting)
        data = memoryview(lines.encode())
        end = self._size + len(data)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._shorten()
            raise
        self._size, self._waiting = end, []

    def _shorten(self) -> None:
        """Take back half a line, or dropped steps."""
        assert self._file is not None
        if os.fstat(self._file).st_size > self._size:
            os.ftruncate(self._file, self._size)


def atomic(path: Path, text: str) -> None:
    """Write a small file whole or not at all; the same text again is not written.

    Raises:
        OSError: it cannot be written. What was there before stays.
    """
    with contextlib.suppress(OSError, ValueError):
        if path.read_text(encoding="utf-8") == text:
            return
    beside = path.with_name(f"{path.name}.partial")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def records(path: Path) -> list[dict[str, Any]]:
    """What a file of lines holds, without a last one that a crash cut off.

    Raises:
        ValueError: a line is broken (file and line).
    """
    return _whole(path)[0]


def _whole(path: Path, last: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """Records up to step `last`, and the bytes they take."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    found: list[dict[str, Any]] = []
    size = 0
    for number, line in enumerate(lines, 1):
        ended = line.endswith(b"\n")
        try:
            record = json.loads(line)
        except ValueError:
            if not ended:
                break
            raise ValueError(
                f"{path}:{number}: broken JSON; remove the line to go on without that step"
            ) from None
        if last is not None and record["step"] > last:
            break
        found.append(record)
        size += len(line) * ended  # one that nobody ended is not written on to
    return found, size


def _lost(records: Sequence[Mapping[str, Any]], what: str) -> str:
    """'lacks 3 steps (7-9)'."""
    steps = [record["step"] for record in records]
    span = f"{steps[0]}-{steps[-1]}" if steps[0] != steps[-1] else f"{steps[0]}"
    return f"lacks {len(records)} {what} ({span})"
