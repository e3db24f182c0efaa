"""Checkpoints: written beside, then renamed, then marked complete. Only complete ones count.

A checkpoint holds `model/` (a folder transformers loads), `learner/` (what the learners need to
go on), `driver.json` (data position, allocation, shaping, stage, step, weight version) and, where
rollouts go on over several steps, `carried.npz` (their tokens: trainer/carried.py).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

COMPLETE = "COMPLETE"
CARRIED = "carried"
"""The one entry of the driver's state that is arrays."""


def save(
    root: Path,
    step: int,
    write: Callable[[Path], None],
    driver: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write `root/step-NNNNNN` atomically and drop all but the newest `keep`.

    `write(folder)` puts the learners' part into the folder. A crash at any moment leaves the
    older checkpoints as they were and at most a `.partial` folder, which the next save removes.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob("*.partial"):
        shutil.rmtree(leftover)
    target, partial = root / f"step-{step:06d}", root / f"step-{step:06d}.partial"
    partial.mkdir()
    write(partial)
    words = {name: value for name, value in driver.items() if name != CARRIED}
    (partial / "driver.json").write_text(json.dumps(words, indent=1))
    if arrays := driver.get(CARRIED):
        np.savez(partial / f"{CARRIED}.npz", **arrays)
    for file in partial.rglob("*"):
        if file.is_file():
            _flush(file)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    _flush(root)
    (target / COMPLETE).touch()
    _flush(target)
    for old in complete(root)[:-keep]:
        (old / COMPLETE).unlink()  # unmarked first: a half-removed one is never resumed from
        shutil.rmtree(old)
    return target


def complete(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p.parent for p in root.glob(f"step-*/{COMPLETE}") if p.parent.suffix == "")


def newest(root: Path) -> Path | None:
    found = complete(root)
    return found[-1] if found else None


def driver_state(folder: Path) -> dict[str, Any]:
    """What `save` was given."""
    state: dict[str, Any] = json.loads((folder / "driver.json").read_text())
    path, arrays = folder / f"{CARRIED}.npz", {}
    if path.exists():
        with np.load(path) as file:
            arrays = dict(file)
    return {**state, CARRIED: arrays}


def _flush(path: Path) -> None:
    """Ask the disk to hold what was written: a rename must not outrun its contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
