"""The owner's ends of the template process and of the workers that are forked from it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

from rewards.service.backlog import Job
from rewards.service.template import COMMAND, FORK, KILL, ORDER
from rewards.service.worker import OUT_OF_MEMORY

START_SECONDS = 120.0
"""For imports; and for a fork, on a machine that does a great deal else."""
END_SECONDS = 5.0
MAX_REPLY = 1 << 20


class Template:
    """The process that forks (`rewards.service.template`). To be made by the thread that closes it.

    The kernel ends the process with the thread that made it: it must live as long as the pool.
    """

    def __init__(self, setup: bytes) -> None:
        # numerical libraries would start a thread per core, and sympy's order follows the hashes
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.socket, theirs = socket.socketpair()
        with theirs:
            code = COMMAND.format(module="template", entry="main")
            tail = "\n".join(sys.path), str(theirs.fileno()), str(os.getpid())
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *tail],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **one, "PYTHONHASHSEED": "0"},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is the owner's
            )
        self.due = time.monotonic() + START_SECONDS
        self.ready = False
        self.proved = False
        """A worker of it has become ready."""
        self._inbox = b""
        self.socket.settimeout(START_SECONDS)
        with contextlib.suppress(OSError):  # it has died: the end of its output will say so
            self.socket.sendall(setup)
        self.socket.setblocking(False)

    def fork(self, number: int, theirs: socket.socket) -> None:
        with contextlib.suppress(OSError):
            socket.send_fds(self.socket, [ORDER.pack(FORK, number)], [theirs.fileno()])

    def kill(self, number: int) -> None:
        with contextlib.suppress(OSError):
            self.socket.send(ORDER.pack(KILL, number))

    def events(self) -> list[dict[str, Any]] | None:
        """What it has said since; None: it has ended."""
        try:
            part = self.socket.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not part:
            return None
        *lines, self._inbox = (self._inbox + part).split(b"\n")
        return [json.loads(line) for line in lines]

    def end(self, workers: Iterable[int]) -> str:
        """End it and the processes `workers`, for whom nobody else is left; how it ended."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # reaches it even if a fork of ours holds a copy
        self.socket.close()
        patience = END_SECONDS if self.ready else 0.0
        try:
            status = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if status:  # else it has done so itself
            for pid in workers:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        return ending(status)


class Worker:
    """One process that grades, and what it is doing."""

    def __init__(self, number: int, setup: bytes, template: Template) -> None:
        self.number = number
        self.socket, theirs = socket.socketpair()
        with theirs:
            template.fork(number, theirs)
        self.socket.setblocking(False)
        self.pid: int | None = None
        """Known once it is ready."""
        self.job: Job | None = None
        self.slow = False
        """It is at its item for so long that another has taken its place."""
        self.served = 0
        self.since = time.monotonic()
        """When its item was all written, or it was asked for."""
        self.outbox, self._inbox = memoryview(setup), b""
        self.push()

    @property
    def idle(self) -> bool:
        return self.pid is not None and self.job is None

    @property
    def gone(self) -> bool:
        """Its end is closed; only an idle one has nothing to say before that."""
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def give(self, job: Job) -> None:
        self.job, self.outbox, self.since = job, memoryview(job.request), time.monotonic()
        self.served += 1
        self.push()

    def push(self) -> None:
        """Write what fits into the socket."""
        try:
            while self.outbox:
                self.outbox = self.outbox[self.socket.send(self.outbox) :]
                self.since = time.monotonic()
        except BlockingIOError:
            pass
        except OSError:
            self.outbox = memoryview(b"")  # it has died: the end of its output will say so

    def pull(self) -> bytes | None:
        """A whole reply, b'' if there is none yet, None if there will be none."""
        try:
            part = self.socket.recv(1 << 16)
        except BlockingIOError:
            return b""
        except OSError:
            return None
        line, newline, rest = (self._inbox + part).partition(b"\n")
        self._inbox = rest if newline else line
        if newline:
            return line
        return b"" if part and len(line) < MAX_REPLY else None


def ending(status: int) -> str:
    """An exit status as `subprocess` gives it, in words."""
    if status == OUT_OF_MEMORY:
        return "it reached its memory limit"
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
