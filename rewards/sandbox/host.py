"""The outside: asks the launcher for guests and asks a guest to run a program on inputs.

    with Guest(source, Limits()) as guest:
        ran = guest.call("add", (1, 2))       # ran.value == 3
        ran = guest.script(b"1 2")            # ran.out == b"3\\n"

One launcher a process, started when first needed. Nothing that is expected of a program is ever
sent: it is compared here. What others kill (the kernel for want of memory, an operator) is made
anew and its test run again, a few times: it says nothing of the program.
"""

from __future__ import annotations

import functools
import glob
import json
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rewards.sandbox import scratch, walls, wire

START_SECONDS = 30.0
END_SECONDS = 3.0
PACKAGES = "/packages"
"""Folder in which a program sees packages."""
GRACE_SECONDS = 15.0
"""What a guest may take beyond a test's own limit before everything in it is killed."""
TRIES = 3
"""A program is killed so often before that is its own doing, its guest before it is an error."""
_ROOT = str(Path(__file__).resolve().parent.parent.parent)
_BOOT = (
    "import sys; path = list(sys.path); sys.path.append({root!r}); "
    "from rewards.sandbox import guest; sys.path[:] = path; guest.main()"
)
End = Literal["exit", "signal", "cpu", "wall", "output"]


class SandboxError(RuntimeError):
    """The sandbox itself failed; it says nothing of the program."""


class GoneError(SandboxError):
    """One of its processes has ended."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one test of a program may use, and what it may see."""

    seconds: float = 4.0
    """Processor time, all threads together."""
    memory_mb: int = 512
    """Address space, in MiB."""
    output_mb: float = 1.0
    """What it may print, and what it may return, in MiB."""
    folder_mb: int = 16
    """Its only writable folder, in MiB."""
    prelude: str = ""
    """Run before the program, in its namespace."""
    packages: tuple[str, ...] = ()
    """Top-level packages installed here that can be imported; "*": all of them."""
    walls: bool = True
    """False: limits on resources only, for machines that allow no walls."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How one test of a program went."""

    end: End
    """Ended by itself, by a signal, or at a limit: processor time, wall time, output."""
    code: int
    """Exit status, negative for a signal."""
    cpu: float
    wall: float
    out: bytes
    """What it printed."""
    reply: bytes
    """JSON that its harness wrote: a value, or an error."""
    lost: float = 0.0
    """Seconds of earlier tries of it that were killed."""

    def said(self) -> Mapping[str, Any]:
        """The harness's reply; empty where there is none that can be read."""
        try:
            said = json.loads(self.reply)
        except (ValueError, RecursionError):  # ValueError: a number of too many digits as well
            return {}
        return said if isinstance(said, dict) else {}


class Launcher:
    """The process that guests are forked from: it has imported what they need."""

    def __init__(self) -> None:
        scratch.clear()
        self.control, theirs = socket.socketpair()
        # a fixed seed: the order of a set, and with it a verdict, is the same every time
        environment = {"PYTHONHASHSEED": "0"}
        if "LD_LIBRARY_PATH" in os.environ:  # without it some interpreters do not start
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-P", "-B", "-X", "utf8", "-c", _BOOT.format(root=_ROOT)],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
        )
        theirs.close()
        self.close = weakref.finalize(self, _stop, self.process, self.control, os.getpid())
        self.control.settimeout(START_SECONDS)
        try:
            self.path: list[str] = wire.receive(self.control)[0]["path"]
        except (EOFError, OSError) as problem:
            self.close()
            kind = SandboxError if isinstance(problem, TimeoutError) else GoneError
            raise kind(f"the launcher does not start: {problem}") from None

    @property
    def alive(self) -> bool:
        if not self.close.alive or self.process.poll() is not None:
            return False
        poll = select.poll()
        poll.register(self.control, select.POLLIN)  # it says nothing more: closed by its end
        return not poll.poll(0)

    def connect(self) -> socket.socket:
        """A socket to a new guest."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self.control, [b"g"], [theirs.fileno()])
        except ConnectionError as problem:
            ours.close()
            self.close()
            raise GoneError(f"the launcher is gone: {problem}") from None
        return ours


def _stop(process: subprocess.Popen[bytes], control: socket.socket, owner: int) -> None:
    control.close()
    if os.getpid() == owner:
        try:
            process.wait(END_SECONDS)  # it ends by itself, after its guests
        except subprocess.TimeoutExpired:
            process.kill()  # they die with it
            process.wait()


_lock = threading.Lock()
_launchers: dict[int, Launcher] = {}


def launcher() -> Launcher:
    """This process's launcher, a new one if it has died."""
    with _lock:
        for pid in [p for p in _launchers if p != os.getpid()]:
            _launchers.pop(pid).close()  # of the process we were forked from: ours of its socket
        found = _launchers.get(os.getpid())
        if found is None or not found.alive:
            if found is not None:
                found.close()
            found = _launchers[os.getpid()] = Launcher()
        return found


os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.Lock()))


class Guest:
    """One program behind walls, until closed. Its processes are made when first needed.

    Raises:
        SandboxError: at a call, the walls cannot be raised or do not stand.
    """

    def __init__(self, source: str, limits: Limits) -> None:
        self._source, self._limits = source.encode(errors="replace"), limits
        self._socket: socket.socket
        self._up = False
        self._scratch: scratch.Scratch | None = None
        self._spare = TRIES - 1

    def _open(self) -> None:
        try:
            self._launcher = launcher()
            self._socket, self._up = self._launcher.connect(), True
            self._scratch = None if self._limits.walls else scratch.Scratch()
        except OSError as problem:
            raise SandboxError(f"no guest: {problem}") from None
        job = _job(self._limits, tuple(self._launcher.path))
        self._socket.settimeout(START_SECONDS)
        self._tell(job | {"scratch": self._scratch and self._scratch.path}, self._source)
        said, _ = self._hear()
        if "map" in said:
            self._tell({"mapped": os.geteuid() == 0 and walls.map_for(said["map"])})
            self._hear()

    def call(self, name: str, args: tuple[Any, ...], named: Mapping[str, Any], wall: float) -> Ran:
        """Call function `name`, or the method of that name of class Solution."""
        return self._run({"how": "call", "name": name}, marshal.dumps((args, dict(named))), wall)

    def script(self, given: bytes, wall: float) -> Ran:
        """Run the program with `given` as its standard input."""
        return self._run({"how": "stdin"}, given, wall)

    def _run(self, test: dict[str, Any], given: bytes, wall: float) -> Ran:
        """A try that is killed costs a guest, and one of the tries that all tests have together."""
        began = time.monotonic()
        while True:
            start = time.monotonic()
            try:
                ran = self._try(test, given, wall)
                if not self._spare or ran.end != "signal" or ran.code != -signal.SIGKILL:
                    return replace(ran, lost=start - began)
            except SandboxError as problem:
                if not self._spare or not isinstance(problem, GoneError):
                    self.close()
                    raise
            self._spare -= 1
            self.close()

    def _try(self, test: dict[str, Any], given: bytes, wall: float) -> Ran:
        if not self._up:
            self._open()
        self._socket.settimeout(wall + GRACE_SECONDS)
        self._tell(test | {"wall": wall}, given)
        head, body = self._hear()
        printed = head.pop("out")
        return Ran(**head, out=body[:printed], reply=body[printed:])

    def _tell(self, head: dict[str, Any], body: bytes = b"") -> None:
        try:
            wire.send(self._socket, head, body)
        except OSError as problem:
            raise self._lost(problem) from None

    def _hear(self) -> tuple[dict[str, Any], bytes]:
        try:
            head, body = wire.receive(self._socket)
        except (EOFError, OSError) as problem:
            raise self._lost(problem) from None
        if "failed" in head:
            raise SandboxError(head["failed"])
        return head, body

    def _lost(self, problem: Exception) -> SandboxError:
        if isinstance(problem, TimeoutError):
            self._launcher.close()  # and every guest with it
            return SandboxError("the guest does not answer")
        return GoneError(f"the guest is gone: {problem}")

    def close(self) -> None:
        """End whatever still runs. It takes the kernel a moment after this returns."""
        if self._up:
            self._socket.close()
        if self._scratch is not None:
            self._scratch.remove()
        self._up, self._scratch = False, None

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@functools.lru_cache(maxsize=16)
def _job(limits: Limits, path: tuple[str, ...]) -> dict[str, Any]:
    """What a guest is told before it has seen anything of the program."""
    shown = _visible(path)
    packages = _packages(limits.packages) if limits.walls else {}
    site = [PACKAGES] if limits.walls else [sysconfig.get_path("purelib")]
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {
        "walls": limits.walls,
        "visible": shown | packages,
        "hidden": _installed(shown),
        "path": [*path, *(site if limits.packages else ())],
        "environment": single if limits.packages else {},
        "seconds": limits.seconds,
        "memory_mb": limits.memory_mb,
        "output": int(limits.output_mb * (1 << 20)),
        "folder_mb": limits.folder_mb,
        "prelude": limits.prelude,
    }


def _visible(path: Sequence[str]) -> dict[str, str]:
    """Folders with the standard library and shared libraries: name -> real path."""
    library = sysconfig.get_path("stdlib")
    near = os.path.dirname(library)  # where an interpreter of its own keeps its libraries
    triple = sysconfig.get_config_var("MULTIARCH") or "none"
    shared = [f"/lib/{triple}", f"/usr/lib/{triple}", "/lib64", "/usr/lib64"]
    if not any(os.path.isdir(folder) for folder in shared[:2]):
        shared += ["/lib", "/usr/lib"]
    names = [library, *path, *shared] + ([near] if near != "/usr/lib" else [])
    names = [name for name in sorted(set(names)) if os.path.isdir(name)]
    outer = [n for n in names if not any(n.startswith(f"{other}/") for other in names)]
    return {name: os.path.realpath(name) for name in outer}


def _installed(visible: Mapping[str, str]) -> list[str]:
    """Folders of installed packages inside those."""
    patterns = ("{}/{}-packages", "{}/python*/{}-packages")
    found = (
        glob.glob(pattern.format(name, kind))
        for name in visible
        for kind in ("site", "dist")
        for pattern in patterns
    )
    return sorted({path for paths in found for path in paths})


def _packages(names: Sequence[str]) -> dict[str, str]:
    """Where installed packages are seen from inside -> where they are."""
    site = sysconfig.get_path("purelib")
    if "*" in names:
        return {PACKAGES: os.path.realpath(site)}
    parts = [p for name in names for p in (name, f"{name}.py", f"{name}.libs")]
    found = {part: os.path.join(site, part) for part in parts}
    return {
        f"{PACKAGES}/{part}": os.path.realpath(path)
        for part, path in found.items()
        if os.path.exists(path)
    }


_SPY = """
def leaks():
    import os, socket
    def can(act):
        try:
            act()
        except BaseException:
            return False
        return True
    return [name for name, act in {
        "start processes": os.fork,
        "open sockets": socket.socket,
        "see /proc": lambda: os.listdir("/proc/self"),
        "write outside its folder": lambda: open("/written", "w"),
        "read /etc": lambda: os.listdir("/etc"),
        "become root": lambda: os.setuid(0),
        "see other processes": lambda: os.kill(os.getppid() or 1, 0),
    }.items() if can(act)]
"""


@functools.cache
def fault(limits: Limits) -> str:
    """Why programs cannot be walled off here; '' if they can. Tried once."""
    try:
        with Guest(_SPY, limits) as guest:
            said = guest.call("leaks", (), {}, 20.0).said()
    except SandboxError as problem:
        return str(problem)
    if "value" not in said:
        return f"a trial program failed: {said.get('error', 'no reply')}"
    return f"a trial program could {', '.join(said['value'])}" if said["value"] else ""


def close() -> None:
    """End this process's launcher and its guests."""
    with _lock:
        if found := _launchers.pop(os.getpid(), None):
            found.close()


def require(limits: Limits) -> None:
    """Raise ValueError where programs cannot be run as `limits` say; warn where without walls."""
    if not sys.platform.startswith("linux"):
        raise ValueError("code: programs can be walled off on Linux only; grade on a Linux machine")
    if not limits.walls:
        warnings.warn(
            "unsafe_local_exec: programs that a model wrote run with your rights; they can read "
            "your files", stacklevel=2,
        )  # fmt: skip
    elif why := fault(limits):
        raise ValueError(
            f"code: no sandbox can be made on this machine ({why}); allow user namespaces, or, if "
            "programs that a model wrote may run with your rights, set unsafe_local_exec: true"
        )
