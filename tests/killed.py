"""Writes a checkpoint again and again, killed before each of its calls to the file system.

Run as a program: python -m tests.killed FOLDER [all]. What holds after each kill is asserted here.
With the lights out, files that were written and not yet flushed lose their second half, too.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kept import state
from trainer import checkpoint
from trainer.checkpoint import hashes, keeping

CALLS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.fsync")
KEEP = checkpoint.CheckpointConfig(keep=1, best="eval/accuracy")


def save(root: Path, step: int, made: str, value: float) -> None:
    about = {"metrics": {"eval/accuracy": value}}
    checkpoint.write(root, step, tiny, state(step) | {"made": made}, about)
    keeping.prune(root, step, KEEP)


def tiny(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"weights")


def killed(work: Callable[[], Any], before: int, lights_out: bool) -> bool:
    """Whether `work`, in a process of its own, was killed before call number `before`."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    calls, dirty = 0, set[str]()

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal calls
        if event not in CALLS:
            return
        if event == "os.rename":
            source, target = (str(a) for a in arguments[:2])
            moved = {p for p in dirty if p == source or p.startswith(f"{source}/")}
            dirty.difference_update(moved)
            dirty.update(p.replace(source, target, 1) for p in moved)
        calls += 1
        if calls == before:
            for path in filter(os.path.exists, [*dirty] if lights_out else []):
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            dirty.add(str(arguments[0]))

    def flushed(descriptor: int) -> None:
        heard("os.fsync", ())
        dirty.discard(os.readlink(f"/proc/self/fd/{descriptor}"))

    os.fsync, hashes.THREADS = flushed, 1
    sys.addaudithook(heard)
    work()
    os._exit(0)


def check(root: Path, allowed: set[str]) -> str:
    """What is there is one of these states; cleaning changes nothing but leftovers."""
    before = checkpoint.intact(root)
    found = checkpoint.driver_state(before)["made"] if before else "nothing"
    assert found in allowed, (found, allowed)
    checkpoint.clean(root)
    after = checkpoint.intact(root)
    assert (checkpoint.driver_state(after)["made"] if after else "nothing") == found
    names = {path.name for path in root.iterdir()} if root.exists() else set()
    assert names <= {"best", "step-000001", "step-000002"}, names
    assert not list(root.glob("*.partial"))
    best = root / "best"
    assert not best.is_symlink() or (best / "COMPLETE").exists(), "it leads to a whole one"
    return found


def every(folder: Path, begun: list[Any], last: Any, allowed: set[str], lights_out: bool) -> int:
    """Kill `save(*last)` before each of its calls, from a folder with `begun`; how many."""
    number = 0
    found = set()
    while True:
        number += 1
        root = folder / "checkpoints"
        shutil.rmtree(root, ignore_errors=True)
        for one in begun:
            root.mkdir(exist_ok=True)
            save(root, *one)

        def work(root: Path = root) -> None:
            root.mkdir(exist_ok=True)
            save(root, *last)

        dead = killed(work, number, lights_out)
        found.add(check(root, allowed))
        if not dead:
            assert found == allowed, (found, allowed)
            return number
        save(root, *last)  # whoever goes on
        assert check(root, {last[1]}) == last[1]


def main(folder: Path, whole: bool) -> None:
    os.fsync = lambda _: None  # the disk is none of a kill's business
    a, b, again = (1, "old", 0.5), (2, "new", 0.7), (2, "older", 0.9)
    for lights_out in (False, True):
        if whole:
            print(every(folder, [], a, {"nothing", "old"}, lights_out))
            print(every(folder, [a, again], b, {"older", "new"}, lights_out))
        if whole or lights_out:
            print(every(folder, [again], b, {"older", "new"}, lights_out))
        if whole or not lights_out:
            print(every(folder, [a], b, {"old", "new"}, lights_out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["all"])
