"""`laconic doctor`: what this machine has, what is needed, and the fix; one line a check.

Nodes of a cluster are looked at by launch/probe.py, and what is found is judged in launch/nodes.py.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from launch.joining import split

GIB = 2**30
RAY_S = 60.0
Status = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line. `fix` is shown unless all is well."""

    status: Status
    name: str
    found: str
    need: str
    fix: str = ""
    where: str = ""
    """Nodes of a cluster; '': this machine."""

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        return f"{self.status:<5} {self.name:<13} {where}{self._said}"

    @property
    def line(self) -> str:
        """The same within a list of failures."""
        return f"{self.where + ': ' if self.where else ''}{self.name}: {self._said}"

    @property
    def _said(self) -> str:
        fix = f"; {self.fix}" if self.fix and self.status != "ok" else ""
        return f"{self.found} (needs {self.need}){fix}"


def doctor(
    recipe: str = "",
    settings: Sequence[str] = (),
    *,
    address: str | None = None,
    deep: bool = False,
) -> int:
    """Print every check; 1 if one failed.

    Args:
        recipe: what is to be run, if it is known.
        address: a running Ray cluster, all of whose nodes are checked; None: this machine alone.

    Raises:
        ValueError: no such address, or a mistake in the recipe.
    """
    if address is not None and address != "auto":
        split(address)
    if not _show(_python, _packages):
        return 1  # the other checks need the packages
    groups: list[Callable[[], Iterable[Check]]] = [_machine, _gpu, *([_ray] if deep else [])]
    if address or recipe:
        from launch.probe import examined

        groups = [*groups[:2], partial(examined, recipe, settings, address or ""), *groups[2:]]
    return int(not _show(*groups))


def _show(*groups: Callable[[], Iterable[Check]]) -> bool:
    """Print the checks as they are made; whether none failed."""
    good = True
    for group in groups:
        for check in group():
            print(check, flush=True)
            good &= check.status != "FAIL"
    return good


def _python() -> Iterator[Check]:
    good = sys.version_info >= (3, 11)
    version = platform.python_version()
    yield Check("ok" if good else "FAIL", "python", version, ">= 3.11", "install Python 3.11")


def _packages() -> Iterator[Check]:
    """Every dependency of the package against its pin."""
    try:
        needed = pins()
    except importlib.metadata.PackageNotFoundError:
        yield Check("FAIL", "laconic", "not installed", "the package", "pip install -e .")
    except ImportError:
        yield Check("FAIL", "packaging", "not installed", "any version", "pip install -e .")
    else:
        for name, need in needed.items():
            yield package(name, need, installed(name))


def pins() -> dict[str, str]:
    """What the package needs of which dependency."""
    required = importlib.metadata.requires("laconic") or []
    from packaging.requirements import Requirement

    needed = map(Requirement, required)
    return {one.name: str(one.specifier) for one in needed if one.marker is None}  # no extras


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package(name: str, need: str, found: str | None, where: str = "") -> Check:
    """A version against what is needed of it."""
    from packaging.specifiers import SpecifierSet

    good = found is not None and SpecifierSet(need).contains(found, prereleases=True)
    fix = f"pip install '{name}{need}'"
    return Check("ok" if good else "FAIL", name, found or "not installed", need, fix, where)


def _machine() -> Iterator[Check]:
    import psutil

    from trainer.preflight import cpus

    yield _level("cpu", cpus(), 2, 1, "{:.0f} cores", "give the process more cores")
    memory = min(psutil.virtual_memory().total, cgroup("memory.max"))
    yield _level("memory", memory / GIB, 6, 3, "{:.1f} GiB", "lower --jobs and rollout.workers")
    disk = shutil.disk_usage(Path.cwd()).free / GIB
    yield _level("disk", disk, 5, 1, "{:.1f} GiB free here", "free space or change folder")
    if Path("/dev/shm").is_dir():
        shared = shutil.disk_usage("/dev/shm").total / GIB
        fix = "Ray falls back to a slower folder; in Docker use --shm-size=2g"
        yield _level("/dev/shm", shared, 1, 0, "{:.2f} GiB", fix)
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    fix = f"ulimit -n 65536 (the hard limit is {most})"
    files = files if files != resource.RLIM_INFINITY else 1 << 30
    yield _level("open files", files, 4096, 512, "{:.0f}", fix)


def _level(name: str, found: float, good: float, least: float, form: str, fix: str) -> Check:
    return Check(level(found, good, least), name, form.format(found), f">= {good:g}", fix)


def level(found: float, good: float, least: float) -> Status:
    """ok from `good` up, FAIL below `least`, warn between."""
    return "ok" if found >= good else "warn" if found >= least else "FAIL"


def cgroup(name: str) -> float:
    """A limit of this container; infinity where there is none."""
    try:
        return float(Path("/sys/fs/cgroup", name).read_text())
    except (OSError, ValueError):  # no such file, or 'max'
        return float("inf")


def gpus() -> list[str]:
    """Those that this process may use, as `all_gpus`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return []
    found = all_gpus()
    return found if visible is None else found[: len(visible.split(","))]


def all_gpus() -> list[str]:
    """'name, memory' of the GPUs of this machine; nothing is imported to find out."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in done.stdout.splitlines() if line.strip()]


def _gpu() -> Iterator[Check]:
    found = gpus()
    what = "; ".join(found) if found else "none: everything runs on the CPU"
    yield Check("ok", "gpu", what, "none for the tiny recipes")


def _ray() -> Iterator[Check]:
    """Start and stop a Ray of our own in a process that can be killed."""
    code = (
        "import ray; ray.init(address='local', num_cpus=1, include_dashboard=False, "
        "log_to_driver=False, logging_level='ERROR', object_store_memory=2**27);"
        "assert ray.get(ray.remote(lambda: 7).remote()) == 7; ray.shutdown()"
    )
    # as launch/cluster.py: on loopback
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    env = {**os.environ, **quiet}
    fix = "often memory, open files or a hostname that is unknown"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=env, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = child.communicate(timeout=RAY_S)
    except subprocess.TimeoutExpired:
        from launch.processes import kill_tree

        kill_tree(child.pid)
        yield Check("FAIL", "ray starts", f"not within {RAY_S:.0f} s", "a local Ray", fix)
        return
    last = output.strip().splitlines()[-1] if output.strip() else f"exit code {child.returncode}"
    good = child.returncode == 0
    found = "started, ran a task and stopped" if good else last
    yield Check("ok" if good else "FAIL", "ray starts", found, "a local Ray", fix)
