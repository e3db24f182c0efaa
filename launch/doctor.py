"""`laconic doctor`: what this machine has, what is needed, and the fix; one line a check."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GIB = 2**30
RAY_S = 60.0


@dataclass(frozen=True, slots=True)
class Check:
    """One line. `fix` is shown unless all is well."""

    status: Literal["ok", "warn", "FAIL"]
    name: str
    found: str
    need: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f"; {self.fix}" if self.fix and self.status != "ok" else ""
        return f"{self.status:<5} {self.name:<13} {self.found} (needs {self.need}){fix}"


def doctor(*, deep: bool = False) -> int:
    """Print every check; 1 if one failed."""
    if not _show(_python, _packages):
        return 1  # the other checks need the packages
    return int(not _show(_machine, _gpu, *([_ray] if deep else [])))


def _show(*groups: Callable[[], Iterator[Check]]) -> bool:
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
        required = importlib.metadata.requires("laconic") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("FAIL", "laconic", "not installed", "the package", "pip install -e .")
        return
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Check("FAIL", "packaging", "not installed", "any version", "pip install -e .")
        return
    for requirement in map(Requirement, required):
        if requirement.marker is None:  # the extras are not needed
            yield _package(requirement.name, str(requirement.specifier), requirement.specifier)


def _package(name: str, need: str, specifier: object) -> Check:
    fix = f"pip install '{name}{need}'"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check("FAIL", name, "not installed", need, fix)
    good = specifier.contains(found, prereleases=True)  # type: ignore[attr-defined]
    return Check("ok" if good else "FAIL", name, found, need, fix)


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
    """ok from `good` up, FAIL below `least`, warn between."""
    status: Literal["ok", "warn", "FAIL"]
    status = "ok" if found >= good else "warn" if found >= least else "FAIL"
    return Check(status, name, form.format(found), f">= {good:g}", fix)


def cgroup(name: str) -> float:
    """A limit of this container; infinity where there is none."""
    try:
        return float(Path("/sys/fs/cgroup", name).read_text())
    except (OSError, ValueError):  # no such file, or 'max'
        return float("inf")


def gpus() -> list[str]:
    """Names of the GPUs that this process may use; nothing is imported to find out."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    if visible == "" or shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = [line for line in done.stdout.splitlines() if line.strip()]
    return found if visible is None else found[: len(visible.split(","))]


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
