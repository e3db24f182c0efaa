"""Crew: worker processes that can be killed, and the loop that feeds them.

Each worker is a plain subprocess that imports the verifier and nothing else, so it starts alike
from a thread, an event loop or a Ray actor whose parent has torch loaded. A worker holds one item
at a time: the pipes are bounded, and a sick item costs nobody but itself and its worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence

from rewards.grader import failed
from rewards.verdict import Verdict
from rewards.worker import OUT_OF_MEMORY, verdict_of

START_SECONDS = 120.0
MAX_STARTS = 3
"""Starts that may fail in a row before the remaining items are given up as errors."""
MAX_REPLY = 1 << 20
_COMMAND = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); from rewards.worker import main; main()"
)


class _Worker:
    """One process and what it is doing."""

    def __init__(self, setup: bytes) -> None:
        # numerical libraries would start a thread per core, and sympy's order follows the hashes
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, "\n".join(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is the parent's; and a kill reaches its children
        )
        assert self.process.stdin
        assert self.process.stdout
        self.requests, self.replies = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.requests, False)
        self.ready = False
        self.job: int | None = None
        self.since = time.monotonic()
        self.outbox, self.inbox = memoryview(setup), b""
        self.push()

    @property
    def idle(self) -> bool:
        return self.ready and self.job is None

    @property
    def dead(self) -> bool:
        # not reaped here: while it is a zombie, `end` cannot hit a stranger with its id
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, how) is not None

    def give(self, job: int, request: bytes) -> None:
        self.job, self.outbox, self.since = job, memoryview(request), time.monotonic()
        self.push()

    def push(self) -> None:
        """Write what fits into the pipe."""
        with contextlib.suppress(BlockingIOError):
            try:
                self.outbox = self.outbox[os.write(self.requests, self.outbox) :]
            except BrokenPipeError:
                self.outbox = memoryview(b"")  # it has died: the end of its output will say so

    def pull(self) -> bytes | None:
        """A whole reply, b'' if there is none yet, None if there will be none."""
        part = os.read(self.replies, 1 << 16)
        line, newline, rest = (self.inbox + part).partition(b"\n")
        self.inbox = rest if newline else line
        if newline:
            return line
        return b"" if part and len(line) < MAX_REPLY else None

    def end(self) -> str:
        """Kill the process and whatever it has started; returns how it ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        if status == OUT_OF_MEMORY:
            return "it reached its memory limit"
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _disband(workers: list[_Worker], owner: int) -> None:
    if os.getpid() == owner:  # and not a forked child of the owner
        while workers:
            workers.pop().end()


class Crew:
    """`size` workers that serve the verifier that `setup` names (see `rewards.worker.frame`).

    Raises:
        ValueError: the verifier does not start.
    """

    def __init__(self, setup: bytes, size: int, deadline: float, name: str) -> None:
        self.setup, self.size, self.deadline, self.name = setup, size, deadline, name
        self.killed = 0
        """Workers killed at the deadline."""
        self.crashed = 0
        """Workers that ended by themselves."""
        self._failures, self._trouble = 0, ""
        self._workers: list[_Worker] = []
        self.close = weakref.finalize(self, _disband, self._workers, os.getpid())
        self._hire()
        while not all(worker.ready for worker in self._workers):
            self._turn({})
            if self._failures:
                self.close()
                raise ValueError(f"verifier '{name}' does not start: {self._trouble}")

    def run(self, requests: Sequence[bytes]) -> list[tuple[Verdict, float]]:
        """(verdict, seconds) of each request, in order. Never raises for what a worker does."""
        todo = deque(enumerate(requests))
        done: dict[int, tuple[Verdict, float]] = {}
        try:
            while len(done) < len(requests):
                if todo:
                    self._hire()
                for worker in [w for w in self._workers if w.idle]:
                    if worker.dead:
                        self._dismiss(worker)
                    elif todo:
                        worker.give(*todo.popleft())
                self._turn(done)
                if self._failures >= MAX_STARTS and not self._workers:
                    lost = failed(self.name, f"no worker starts: {self._trouble}")
                    done |= {job: (lost, 0.0) for job, _ in todo}
                    todo.clear()
                    self._failures = 0
        finally:
            # after an exception: a late reply must not be read as the next call's
            for worker in [w for w in self._workers if w.job is not None]:
                self._dismiss(worker)
        return [done[job] for job in range(len(requests))]

    def _hire(self) -> None:
        while len(self._workers) < self.size and self._failures < MAX_STARTS:
            self._workers.append(_Worker(self.setup))

    def _dismiss(self, worker: _Worker) -> str:
        self._workers.remove(worker)
        return worker.end()

    def _turn(self, done: dict[int, tuple[Verdict, float]]) -> None:
        """Wait until a worker has something to say or is overdue, and deal with it."""
        poll = select.poll()
        for worker in self._workers:
            poll.register(worker.replies, select.POLLIN)
            if worker.outbox:
                poll.register(worker.requests, select.POLLOUT)
        dues = [self._due(worker) for worker in self._workers if not worker.idle]
        wait = max(0.0, min(dues, default=0.0) - time.monotonic())
        active = {fd for fd, _ in poll.poll(wait * 1000 + 1)}
        for worker in list(self._workers):
            if worker.outbox and worker.requests in active:
                worker.push()
            if worker.replies in active:
                self._listen(worker, done)
            elif not worker.idle and time.monotonic() >= self._due(worker):
                self._overdue(worker, done)

    def _due(self, worker: _Worker) -> float:
        return worker.since + (self.deadline if worker.ready else START_SECONDS)

    def _listen(self, worker: _Worker, done: dict[int, tuple[Verdict, float]]) -> None:
        reply = worker.pull()
        if reply == b"":
            return
        seconds = time.monotonic() - worker.since
        if not worker.ready:
            self._started(worker, reply)
        elif worker.job is None:
            self._dismiss(worker)  # it died, or spoke, without being asked
        elif reply is not None and (verdict := verdict_of(reply)):
            done[worker.job] = verdict, seconds
            worker.job = None
        else:
            job, self.crashed = worker.job, self.crashed + 1
            done[job] = failed(self.name, f"the worker ended: {self._dismiss(worker)}"), seconds

    def _started(self, worker: _Worker, reply: bytes | None) -> None:
        message = json.loads(reply) if reply else {}
        if "ready" in message:
            worker.ready, self._failures = True, 0
            return
        ending = self._dismiss(worker)
        self._failures, self._trouble = self._failures + 1, message.get("failed", ending)

    def _overdue(self, worker: _Worker, done: dict[int, tuple[Verdict, float]]) -> None:
        job, ready = worker.job, worker.ready
        self._dismiss(worker)
        if not ready:
            self._failures += 1
            self._trouble = f"not ready after {START_SECONDS:.0f} s"
        elif job is not None:
            self.killed += 1
            late = failed(self.name, f"no verdict after {self.deadline:g} s", "timeout")
            done[job] = late, self.deadline
