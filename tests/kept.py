"""Small checkpoints with a file of every kind, and disks that take no more."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

RECIPE = "recipe.yaml"
KINDS = (
    *("COMPLETE", "driver.json", "driver.npz", RECIPE, "model/config.json"),
    *("model/model.safetensors", "learner/state.json", "learner/rank00000-000.safetensors"),
)
"""All files of what `fill` and `state` make."""


def fill(folder: Path, size: int = 1000) -> None:
    """A learner's part of about `size` bytes."""
    for name in ("model/model.safetensors", "learner/rank00000-000.safetensors"):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(bytes(range(250)) * (size // 500))
    for name in ("model/config.json", "learner/state.json"):
        (folder / name).write_text('{"made": "here"}')


def state(step: int) -> dict[str, Any]:
    """A driver's, with an array."""
    return {"stage": 0, "first": 0, "step": step, "allocation": {"seen": np.arange(step)}}


class Disk:
    """A folder on a disk of few bytes. Where nothing may be mounted: files of few bytes."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        self.mounted = not subprocess.run(command, capture_output=True).returncode
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def crowd(self, free: int) -> None:
        """Leave about `free` bytes."""
        if self.mounted:
            (self.folder / "ballast").write_bytes(bytes(self.size - self.used() - free))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (free // 4, self._limits[1]))

    def used(self) -> int:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sum(-(-path.stat().st_size // 4096) * 4096 for path in files)

    def relieve(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Where nothing may be mounted: too full for anything."""
        remount = ["mount", "-o", "remount,{}", str(self.folder)]
        if self.mounted:
            subprocess.run([word.format("ro") for word in remount], check=True)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limits[1]))
        try:
            yield
        finally:
            if self.mounted:
                subprocess.run([word.format("rw") for word in remount], check=True)
            self.relieve()

    def close(self) -> None:
        self.relieve()
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Disk]:
    made = Disk(folder, size)
    try:
        yield made
    finally:
        made.close()
