"""Checkpoints: written beside, then renamed, then marked complete. Only complete ones count.

A checkpoint holds `model/` (a folder transformers loads), `learner/` (what the learners need to
go on), `driver.json` (data position, allocation, shaping, stage, step, weight version) and, where
there are any, `driver.npz`: the arrays of that state (statistics of prompts, tokens of rollouts
that go on over several steps).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COMPLETE = "COMPLETE"
_ARRAY = "array in driver.npz"
"""Key of what stands in driver.json where the state has an array; its value is the array's name."""


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
    arrays: dict[str, NDArray[Any]] = {}
    (partial / "driver.json").write_text(json.dumps(apart(driver, "", arrays), indent=1))
    if arrays:
        np.savez(partial / "driver.npz", **arrays)  # type: ignore[arg-type]  # not its allow_pickle
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
    path, arrays = folder / "driver.npz", {}
    if path.exists():
        with np.load(path) as file:
            arrays = dict(file)
    state: dict[str, Any] = _together(json.loads((folder / "driver.json").read_text()), arrays)
    return state


def apart(value: Any, name: str, arrays: dict[str, NDArray[Any]]) -> Any:
    """`value` with each array in its mappings moved to `arrays`, under its path."""
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, Mapping):
        return {k: apart(v, f"{name}.{k}" if name else str(k), arrays) for k, v in value.items()}
    return value


def _together(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {_ARRAY}:
        return arrays[value[_ARRAY]]
    return {k: _together(v, arrays) for k, v in value.items()}


def _flush(path: Path) -> None:
    """Ask the disk to hold what was written: a rename must not outrun its contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
