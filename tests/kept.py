"""Small checkpoints with a file of every kind, and disks that take no more."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests import disks

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
    """A disk of few bytes. Where nothing may be mounted: files of few bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mounted = folder, folder.is_mount()
        self._processes = [os.getpid()]

    def crowd(self, free: int, process: int | None = None) -> None:
        """Leave about `free` bytes, for `process` and its descendants."""
        if self.mounted:
            room = shutil.disk_usage(self.folder).free
            (self.folder / "ballast").write_bytes(bytes(room - free))
            return
        if process is not None:
            below = psutil.Process(process).children(recursive=True)
            self._processes = [process, *(one.pid for one in below)]
        self._limit(free // 4)

    def relieve(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)
        self._limit(None)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Where nothing may be mounted: too full for anything."""
        if self.mounted:
            disks.read_only(self.folder, True)
        else:
            self._limit(0)
        try:
            yield
        finally:
            if self.mounted:
                disks.read_only(self.folder, False)
            self.relieve()

    def _limit(self, size: int | None) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for process in self._processes:
            with suppress(ProcessLookupError):
                limits = hard if size is None else size, hard
                resource.prlimit(process, resource.RLIMIT_FSIZE, limits)


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Disk]:
    folder.mkdir()
    with disks.small(folder, str(size)):
        made = Disk(folder)
        try:
            yield made
        finally:
            made.relieve()
