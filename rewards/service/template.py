"""The process that workers are forked from: it imports the verifier once and then only forks.

A worker that had to be killed is replaced in milliseconds instead of the seconds that the imports
of computer algebra take. The owner asks for workers over a Unix socket, each with the worker's own
socket; the process kills them on request, reaps them, and says how they ended. It ends when its
owner does, and all that it has started ends with it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from rewards.grader import Grader
from rewards.service import worker

COMMAND = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); "
    "from rewards.service.{module} import {entry}; {entry}()"
)
ORDER = struct.Struct("!cQ")
FORK, KILL = b"F", b"K"
END_SECONDS = 2.0
"""After that long it stops looking for descendants that cannot be killed."""
_SIGNALS = {signal.SIGTERM, signal.SIGCHLD}


def main() -> None:
    """Serve the owner, whose socket and process id are the last two arguments."""
    *_, fd, owner = sys.argv
    worker.hush()
    worker.bind_to(int(owner), signal.SIGTERM)
    channel = socket.socket(fileno=int(fd))
    with contextlib.suppress(OSError):  # the owner is gone
        setup = worker.receive(channel.fileno())
        grader = worker.loaded(channel.fileno(), setup["spec"]) if setup else None
        if grader is None:
            return
        gc.collect()
        gc.freeze()  # a collection in a worker need not copy these pages
        nursery = Nursery(channel, grader)
        try:
            worker.send(channel.fileno(), {"ready": grader.name})
            nursery.serve()
        finally:
            nursery.end()
    os._exit(0)  # nothing here is worth an interpreter's farewell


class Nursery:
    """The workers that have been forked and are not reaped."""

    def __init__(self, channel: socket.socket, grader: Grader) -> None:
        self.channel, self.grader = channel, grader
        self.workers: dict[int, int] = {}
        """Process id -> the owner's number for it."""
        self.own = _children()
        """What the verifier's imports have started stays."""
        self.threaded = _threads() > 1
        """A fork has one thread; the locks that the others hold would never be released in it."""
        self.bell, self.ringer = socket.socketpair()
        self.bell.setblocking(False)
        self.ringer.setblocking(False)
        signal.set_wakeup_fd(self.ringer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.leaving = False
        """The owner has ended. Said by a flag: an exception could cut the ending itself short."""
        signal.signal(signal.SIGTERM, self._leave)

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self.bell, select.POLLIN)
        poll.register(self.channel, select.POLLIN)
        while not self.leaving:
            active = {fd for fd, _ in poll.poll()}
            if self.bell.fileno() in active:
                with contextlib.suppress(BlockingIOError):
                    self.bell.recv(1 << 12)
                self._reap()
            if self.channel.fileno() in active and not self._obey():
                return

    def end(self) -> None:
        """Kill every worker and whatever it has started."""
        for pid in self.workers:
            _kill(pid)
        until = time.monotonic() + END_SECONDS
        while self._reap(quiet=True) and time.monotonic() < until:
            time.sleep(0.001)

    def _leave(self, *_: object) -> None:
        self.leaving = True

    def _obey(self) -> bool:
        """Do what the owner asks; False once it has gone."""
        order, fds = b"", []
        while len(order) < ORDER.size:
            part, passed, _, _ = socket.recv_fds(self.channel, ORDER.size - len(order), 1)
            fds += passed
            if not part:
                return False
            order += part
        what, number = ORDER.unpack(order)
        if what == FORK:
            self._fork(number, fds[0])
            os.close(fds[0])
        else:
            for pid in [p for p, n in self.workers.items() if n == number]:
                _kill(pid)
        return True

    def _fork(self, number: int, fd: int) -> None:
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                self._work(fd, parent)
            self.workers[pid] = number
        except OSError as problem:  # no process left: the owner is told as of any that ended
            why = f"it cannot be forked ({problem.strerror})"
            worker.send(self.channel.fileno(), {"dead": number, "why": why})
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _work(self, fd: int, parent: int) -> NoReturn:
        """The life of a worker."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.setsid()  # Ctrl-C is the owner's; and a kill reaches its children
            worker.bind_to(parent, signal.SIGKILL)
            for end in (self.channel, self.bell, self.ringer):
                end.close()
            if self.threaded:
                os.set_inheritable(fd, True)
                code = COMMAND.format(module="worker", entry="alone")
                path = "\n".join(sys.path)
                os.execv(sys.executable, [sys.executable, "-c", code, path, str(fd), str(parent)])
            worker.serve(fd, self.grader)
            status = 0
        except OSError:
            pass  # the owner has closed its end
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def _reap(self, quiet: bool = False) -> bool:
        """Bury the dead and kill what they have left behind; False: nothing is left."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                number = self.workers.pop(pid, None)
                if number is None:
                    continue
                _kill(pid, os.killpg)  # the rest of its group
                if not quiet:
                    code = os.waitstatus_to_exitcode(status)
                    worker.send(self.channel.fileno(), {"dead": number, "status": code})
        strays = _children() - self.own - set(self.workers)
        for pid in strays:  # in a session of their own; they came here when their worker ended
            _kill(pid)
        return bool(strays or self.workers)


def _threads() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/task"))
    return threading.active_count()


def _children() -> set[int]:
    """Process ids of the children of this process, the dead that are not reaped among them."""
    me = os.getpid()
    with contextlib.suppress(OSError), open(f"/proc/self/task/{me}/children") as file:
        return set(map(int, file.read().split()))
    return set()


def _kill(pid: int, *ways: Callable[[int, int], None]) -> None:
    """End a process and its group; one that is reaped already: its group alone."""
    for way in ways or (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            way(pid, signal.SIGKILL)
