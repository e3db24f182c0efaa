"""The process that grades: it imports one verifier, reads items, writes verdicts.

Requests are length-prefixed pickles (the parent is trusted), replies are lines of JSON (a
verifier is not: nothing it sends is ever unpickled). What a verifier prints goes to stderr.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import resource
import signal
import struct
from typing import Any, get_args

from rewards.grader import failed, load
from rewards.verdict import Status, Verdict

HEADER = struct.Struct("!Q")
OUT_OF_MEMORY = 77
"""Exit status of a worker that hit its memory limit."""


def main() -> None:
    """Serve until the parent closes the pipe."""
    requests, replies = os.dup(0), os.dup(1)
    quiet = os.open(os.devnull, os.O_RDONLY)
    os.dup2(quiet, 0)
    os.dup2(2, 1)
    setup = _receive(requests)
    if setup is None:
        return
    try:
        grader = load(setup["spec"])
        grader.warm()  # before any deadline runs
    except BaseException as problem:
        _send(replies, {"failed": f"{type(problem).__name__}: {problem}"})
        return
    _limit_memory(setup["memory_mb"])
    _send(replies, {"ready": grader.name})
    while (item := _receive(requests)) is not None:
        # should the parent die while this item hangs, the kernel ends it all the same
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 2 * setup["deadline"] + 1)
        try:
            verdict = grader(*item)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            _send(replies, dataclasses.asdict(verdict))
        except (TypeError, ValueError) as problem:  # a verdict that JSON cannot hold
            _send(replies, dataclasses.asdict(failed(grader.name, f"verdict: {problem}")))


def _limit_memory(megabytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux: the parent has said so
        return
    limit = now + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _receive(fd: int) -> Any:
    header = _read(fd, HEADER.size)
    body = _read(fd, HEADER.unpack(header)[0]) if header else None
    return None if body is None else pickle.loads(body)


def _read(fd: int, size: int) -> bytes | None:
    """Exactly `size` bytes; None once the parent has closed its end."""
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _send(fd: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]


def frame(message: Any) -> bytes:
    """A request as it goes over the pipe."""
    body = pickle.dumps(message)
    return HEADER.pack(len(body)) + body


def verdict_of(line: bytes) -> Verdict | None:
    """The verdict that a reply carries; None if it is none."""
    try:
        verdict = Verdict(**json.loads(line))
    except (TypeError, ValueError):
        return None
    sane = isinstance(verdict.correct, bool) and isinstance(verdict.score, int | float)
    return verdict if sane and verdict.status in get_args(Status) else None
