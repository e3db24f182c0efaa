"""The process that grades: it reads items, writes verdicts, and ends with its parent.

Requests are length-prefixed pickles (the owner is trusted), replies are lines of JSON (a
verifier is not: nothing it sends is ever unpickled). What a verifier prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import io
import json
import os
import pickle
import resource
import signal
import struct
import sys
from typing import Any, get_args

from rewards.grader import Grader, failed, load
from rewards.verdict import Status, Verdict

HEADER = struct.Struct("!Q")
OUT_OF_MEMORY = 77
"""Exit status of a worker that hit its memory limit."""
_PDEATHSIG, _SUBREAPER = 1, 36  # prctl(2)


def serve(fd: int, grader: Grader | None) -> None:
    """Grade what comes over the socket `fd` until the other end is closed.

    The first message is the setup; a `grader` of None is loaded from it.
    """
    setup = receive(fd)
    if setup is None:
        return
    if grader is None:
        grader = loaded(fd, setup["spec"])
    if grader is None:
        return
    _limit_memory(setup["memory_mb"])
    send(fd, {"ready": grader.name, "pid": os.getpid()})
    while True:
        try:
            item = receive(fd)
            if item is None:
                return
            verdict = grader(*item)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        try:
            send(fd, dataclasses.asdict(verdict))
        except (TypeError, ValueError) as problem:  # a verdict that JSON cannot hold
            send(fd, dataclasses.asdict(failed(grader.name, f"verdict: {problem}")))


def alone() -> None:
    """A worker of its own program, for verifiers that cannot be forked: they have threads."""
    *_, fd, parent = sys.argv
    hush()
    bind_to(int(parent), signal.SIGKILL)
    with contextlib.suppress(OSError):
        serve(int(fd), None)


def loaded(fd: int, spec: Any) -> Grader | None:
    """The verifier, imported and warm; None, and the other end is told why, if it fails."""
    try:
        grader = load(spec)
        grader.warm()  # before any deadline runs
    except BaseException as problem:
        send(fd, {"failed": f"{type(problem).__name__}: {problem}"})
        return None
    return grader


def hush() -> None:
    """Standard input is empty, and standard output goes where the errors go.

    And signals are heard: a run's own processes block those that would end them too early.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP})
    quiet = os.open(os.devnull, os.O_RDONLY)
    os.dup2(quiet, 0)
    os.close(quiet)
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what is printed before a kill is seen


def bind_to(parent: int, number: int) -> None:
    """The kernel sends this process the signal `number` when its parent ends (Linux).

    Descendants that lose their own parents become this process's children, so that whoever ends
    it can find them. To be called in the process itself; the parent is the thread that made it.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    libc.prctl(_PDEATHSIG, int(number), 0, 0, 0)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def _limit_memory(megabytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux: the owner has said so
        return
    limit = now + (megabytes << 20)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]  # what a verifier starts has its own limits
    least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (least, hard))


def receive(fd: int) -> Any:
    """The next message; None once the other end is closed."""
    header = _read(fd, HEADER.size)
    body = _read(fd, HEADER.unpack(header)[0]) if header else None
    return None if body is None else pickle.loads(body)


def _read(fd: int, size: int) -> bytes | None:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def send(fd: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]


def frame(message: Any) -> bytes:
    """A request as it goes over the socket; equal messages of plain data give equal bytes."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer)
    pickler.fast = True  # without references, which depend on which equal objects are the same one
    try:
        pickler.dump(message)
        body = buffer.getvalue()
    except (ValueError, RecursionError):  # what refers to itself needs them
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
