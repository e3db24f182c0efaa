"""The inside: a launcher that stays, process 1 of each answer, a child for each of its tests.

The launcher and process 1 are ours and never run the program. A child is born for one test, gives
up everything and then runs it; it holds the test's input and nothing of any expected output. What
it returns are bytes that the host compares, so there is nothing in here to be forged.

Standard library only; started by `rewards.sandbox.host`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import types
from typing import Any

from rewards.sandbox import child, walls, wire

TICK = 0.02
"""Seconds between two looks at the processor time of a child."""
_PARENT_GONE = 1.0
_READ = 1 << 16


def main() -> None:
    """Launcher: fork a guest for every socket that comes in; end with the host."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    control, parent = socket.socket(fileno=0), os.getppid()
    child.prepare()
    control.settimeout(_PARENT_GONE)
    wire.send(control, {"path": sys.path})
    while os.getppid() == parent:
        try:
            mark, fds, _, _ = socket.recv_fds(control, 1, 1)
        except TimeoutError:
            continue
        if not mark:
            break
        with contextlib.suppress(OSError):  # no process to be had: the host sees its end closed
            if os.fork() == 0:
                control.close()
                _guest(socket.socket(fileno=fds[0]))
        os.close(fds[0])
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, 0)  # the last of the guests: the host has hung up on them too


def _guest(host: socket.socket) -> None:
    """In a process of its own: raise the walls, start process 1 behind them, wait. No return."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        walls.die_with_parent()
        job, source = wire.receive(host)
        if job["walls"]:
            walls.unshare()
            wire.send(host, {"map": os.getpid()})
            wire.receive(host)
            if not walls.mapped():
                walls.map_alone()
            walls.die_with_parent()  # forgotten with the change of user
        first = os.fork()
        if first == 0:
            _first(host, job, source)
        host.close()
        os.waitpid(first, 0)
    except (EOFError, BrokenPipeError):
        pass
    except Exception as problem:
        with contextlib.suppress(OSError):
            wire.send(host, {"failed": _why(problem)})
    finally:
        os._exit(0)


def _first(host: socket.socket, job: dict[str, Any], source: bytes) -> None:
    """Process 1: serve tests until the host hangs up. No return."""
    try:
        walls.die_with_parent()
        walls.no_new_privileges()
        if job["walls"]:
            walls.own_root(job["visible"], job["hidden"])
            socket.sethostname("sandbox")
            folder = "/tmp"
        else:
            folder = job["scratch"]
        program = child.namespace(job)
        wire.send(host, {"ready": True})
        while True:
            test, given = wire.receive(host)
            if job["walls"]:
                walls.fresh_folder(job["folder_mb"] + (len(given) >> 20))
            head, out, value = _run(host, job, program, source, test, given, folder)
            wire.send(host, {**head, "out": len(out)}, out + value)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except Exception as problem:
        with contextlib.suppress(OSError):
            wire.send(host, {"failed": _why(problem)})
    finally:
        os._exit(0)


def _why(problem: Exception) -> str:
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror  # names the call already
    return f"{type(problem).__name__}: {problem}"


def _run(
    host: socket.socket,
    job: dict[str, Any],
    program: types.ModuleType,
    source: bytes,
    test: dict[str, Any],
    given: bytes,
    folder: str,
) -> tuple[dict[str, Any], bytes, bytes]:
    """How one test ended, what was printed, what was returned."""
    stdin = _file(folder, given if test["how"] == "stdin" else b"")
    out, out_end = os.pipe()
    value, value_end = os.pipe()
    up, up_end = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child.main(job, program, source, test, given, (stdin, out_end, value_end, up_end), folder)
    for fd in (stdin, out_end, value_end, up_end):
        os.close(fd)
    try:
        caught = {out: bytearray(), value: bytearray()}
        end = _watch(host, pid, caught, job, test["wall"], start)
        _end_all(pid, job["walls"])
        status, usage = os.wait4(pid, 0)[1:]
        if not os.read(up, 1):
            if end is None and os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
                raise EOFError("killed by others: the host makes another guest")
            raise RuntimeError(f"a child does not start: {caught[value].decode()[:200]}")
        head = {
            "end": end or ("signal" if os.WIFSIGNALED(status) else "exit"),
            "code": os.waitstatus_to_exitcode(status),
            "cpu": usage.ru_utime + usage.ru_stime,
            "wall": time.monotonic() - start,
        }
        if end is None and head["cpu"] >= job["seconds"]:
            head["end"] = "cpu"
        return head, bytes(caught[out]), bytes(caught[value])
    finally:
        for fd in (out, value, up):
            os.close(fd)


def _file(folder: str, content: bytes) -> int:
    """A descriptor to read `content` from; its name is gone."""
    path = os.path.join(folder, "stdin")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        return os.open(path, os.O_RDONLY)
    finally:
        os.close(fd)
        os.unlink(path)


def _watch(
    host: socket.socket,
    pid: int,
    caught: dict[int, bytearray],
    job: dict[str, Any],
    wall: float,
    start: float,
) -> str | None:
    """Read what comes until the child has ended or must; which limit it reached."""
    clock = (~pid << 3) | 2  # its processor time: clock_getcpuclockid(3)
    handle = os.pidfd_open(pid)
    poll = select.poll()
    for fd in (handle, *caught):
        poll.register(fd, select.POLLIN)
    poll.register(host, select.POLLRDHUP)
    try:
        while True:
            for fd, _ in poll.poll(TICK * 1000):
                if fd == host.fileno():
                    raise EOFError("the host has hung up")
                if fd == handle:
                    return _rest(caught, job["output"])
                if not _take(fd, caught[fd], job["output"]):
                    poll.unregister(fd)
            if any(len(content) > job["output"] for content in caught.values()):
                return "output"
            if time.monotonic() - start > wall:
                return "wall"
            with contextlib.suppress(OSError):  # it ends just now
                if time.clock_gettime(clock) > job["seconds"]:
                    return "cpu"
    finally:
        os.close(handle)


def _take(fd: int, content: bytearray, limit: int) -> bool:
    part = os.read(fd, min(_READ, limit + 1 - len(content)))
    content += part
    return bool(part) and len(content) <= limit


def _rest(caught: dict[int, bytearray], limit: int) -> str | None:
    """What is still in the pipes of a child that has ended."""
    for fd, content in caught.items():
        os.set_blocking(fd, False)
        with contextlib.suppress(BlockingIOError):
            while _take(fd, content, limit):
                pass
        if len(content) > limit:
            return "output"
    return None


def _end_all(pid: int, walled: bool) -> None:
    """Nothing of a test outlives it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if walled:
            os.kill(-1, signal.SIGKILL)  # all but process 1, which is us
        else:
            os.killpg(pid, signal.SIGKILL)
