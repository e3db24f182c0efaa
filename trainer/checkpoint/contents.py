"""The driver's part of a checkpoint: JSON, and the arrays of it beside. Nothing is ever pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STATE, ARRAYS = "driver.json", "driver.npz"
_ARRAY = "array in driver.npz"
"""Key of what stands in driver.json where the state has an array; its value is the array's name."""


def write_driver(folder: Path, driver: Mapping[str, Any]) -> None:
    """What `driver_state` gives back.

    Raises:
        OSError: the disk refuses it.
    """
    arrays: dict[str, NDArray[Any]] = {}
    text = json.dumps(apart(driver, "", arrays), indent=1)
    (folder / STATE).write_text(text, encoding="utf-8")
    if arrays:
        pickled = [name for name, array in arrays.items() if array.dtype.hasobject]
        assert not pickled, f"{pickled} would be pickled, and never be read"
        np.savez(folder / ARRAYS, **arrays)  # type: ignore[arg-type]  # not its allow_pickle


def driver_state(folder: Path) -> dict[str, Any]:
    """What was saved of the driver.

    Raises:
        ValueError: it cannot be read.
    """
    path, arrays = folder / ARRAYS, {}
    try:
        if path.exists():
            with np.load(path) as file:
                arrays = dict(file)
        state: dict[str, Any] = _together(json.loads((folder / STATE).read_text()), arrays)
    except Exception as error:  # a damaged archive makes zipfile raise whatever comes
        why = " ".join(str(error).split())
        raise ValueError(f"{folder} is damaged: its driver's state cannot be read: {why}") from None
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
