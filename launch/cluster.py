"""A Ray for one run: started, and swept away with all that it made, at the latest by the next one.

Its folder is locked by the process that started it, and the kernel opens the lock when that ends:
unlike a process id, this holds also between containers that share the place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from launch.joining import join
from launch.processes import end, marked
from launch.signals import Terminated, shielded

STORE_BYTES = 512 * 2**20
"""Shared memory that rollouts travel in; weights have their own (samplers/ring.py)."""
PREFIX = "laconic-ray-"
MARK = "LACONIC_RAY"
"""In the environment of every process of a Ray of ours: its folder."""
NOTES = "shared-{pid}"
"""Files in the folder that list shared memory: see `leavings`."""
SHARED = re.compile(r"(\d+)\s+(/dev/shm/(?:vllm_|torch_|psm_|nccl-)[^/]*)$")
"""What libraries make there by themselves; people keep models there too."""
HEARD_MS = 200
"""How often a call that waits inside Ray looks for signals; 1000 by default."""
ALONE_S = 10
"""How long processes wait for a Ray server of ours that is gone, and then end; 60 by default, which
suits one across a network."""
_SIGNALS = {signal.SIGTERM, signal.SIGHUP}
_mine: list[Path] = []
"""Folders of this process, innermost last."""


@contextlib.contextmanager
def cluster(cpus: int, address: str | None = None) -> Iterator[None]:
    """A Ray of our own on this machine, quiet and on loopback, or the one at `address`.

    `cpus` are Ray's logical CPUs: on a CPU machine the plan sets them, because a placement
    group that asks for more than Ray counts would wait for ever and say nothing.

    Raises:
        ValueError: there is no Ray at `address` that this process can join.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_get_check_signal_interval_milliseconds", str(HEARD_MS))
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of several ranks one is told
    if not address:
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")  # a dashboard's
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(ALONE_S))
    import ray

    if ray.is_initialized():  # a notebook's own
        yield
        return
    if address:
        with _joined(address):
            yield
        return
    sweep()
    with _folder() as folder:
        try:
            with _deaf(), _marking(folder), _loopback():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    _temp_dir=str(folder),
                    _node_ip_address="127.0.0.1",
                    object_store_memory=STORE_BYTES,
                )
            _say_nothing()
            yield
        finally:
            with shielded():
                _end(folder)


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    """Somebody else's: it gets its places back, and is left as it was."""
    import ray

    try:
        with _deaf():
            join(address)
        _say_nothing()
        yield
    finally:
        with shielded():
            ray.shutdown()


def _say_nothing() -> None:
    """Ray prints a paragraph to our standard output for every worker that dies, whatever it was
    told about logs: the run says itself what it lost and did."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A new one, locked as long as this process lives."""
    new = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
    lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = new.rename(new.with_name(new.name[1:]))  # who sweeps sees only what is locked
        _mine.append(folder)
        try:
            yield folder
        finally:
            _mine.remove(folder)
    finally:
        os.close(lock)


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Ray replaces 127.0.0.1 by an address of the network and listens at all there are; but not
    where it thinks it cannot form clusters (macOS, Windows). Nor are there HTTP servers, which
    take jobs from all users of the machine, where ray[default] is installed."""
    from ray._private import ray_constants, utils

    variable, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    lacks = utils.get_dashboard_dependency_error
    os.environ[variable], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")
    try:
        yield
    finally:
        utils.get_dashboard_dependency_error = lacks
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[variable]


@contextlib.contextmanager
def _marking(folder: Path) -> Iterator[None]:
    """Processes that are started meanwhile bear our mark."""
    os.environ[MARK] = str(folder)
    try:
        yield
    finally:
        del os.environ[MARK]


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes started here hear of the end from us alone.

    A preempted job's SIGTERM goes to all of its processes, and Ray's would leave before there is a
    checkpoint. What is blocked stays so in whatever they start. Ray also sets a handler for the
    driver: whoever had one gets it back.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    except SystemExit:  # that handler's: another thread took the signal
        raise Terminated(signal.SIGTERM) from None
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(folder: Path) -> None:
    """Leave Ray, and see to it that nothing of it stays."""
    import ray

    ours = marked(folder, MARK)
    with _impatient(ours):
        ray.shutdown()
    _clear(folder, ours)


@contextlib.contextmanager
def _impatient(ours: list[psutil.Process]) -> Iterator[None]:
    """Ray asks its processes to leave one after the other, and gives each a second; they do not
    hear it. As soon as the driver has let go of them, they are ended."""
    from ray._private import worker

    held = lambda: hasattr(worker.global_worker, "core_worker")  # noqa: E731
    done, known = threading.Event(), held()

    def watch() -> None:
        while not done.wait(0.01):
            if known and not held():
                end(ours)
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()


def abandon() -> None:
    """End everything that this process started, at once, and clear up behind it."""
    ours = psutil.Process().children(recursive=True)
    for folder in reversed(_mine):
        _clear(folder, ours)
    end(ours)


def sweep() -> None:
    """Clear up behind processes of ours that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # not ours, in use, or just gone
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _clear(folder, marked(folder, MARK, everywhere=True))
            finally:
                os.close(lock)


@contextlib.contextmanager
def swept() -> Iterator[Path]:
    """A folder for a Ray that this process starts by other means. Afterwards nothing stays of
    processes that bear it as their `MARK`, nor of what they made."""
    sweep()
    with _folder() as folder:
        try:
            yield folder
        finally:
            with shielded():
                _clear(folder, marked(folder, MARK, everywhere=True))


@contextlib.contextmanager
def leavings() -> Iterator[None]:
    """In an actor, around what makes files that nobody removes when it is killed.

    Temporary ones come to lie in the folder, which is cleared. Of shared memory with a name there
    is a list there.
    """
    folder = os.environ.get(MARK)
    if not folder or not os.path.isdir(folder):  # a Ray that is not ours
        yield
        return
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before
        found = set()
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                    if match := SHARED.search(line):
                        found.add(f"{match[1]} {match[2]}\n")
        if found:
            Path(folder, NOTES.format(pid=os.getpid())).write_text("".join(sorted(found)))


def _clear(folder: Path, processes: list[psutil.Process]) -> None:
    end(processes)
    for note in folder.glob(NOTES.format(pid="*")):
        for line in note.read_text().splitlines():
            inode, _, path = line.partition(" ")
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == int(inode):  # a name may have come to another
                    os.unlink(path)
    for _ in range(20):  # who was just ended may still have written
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.1)
