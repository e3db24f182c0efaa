"""A run's folder: whose it is, whether it is finished, and with which configuration."""

from __future__ import annotations

import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from trainer import checkpoint
from trainer.config import Recipe, resolve

CONFIG, DONE, LOCK = "config.yaml", "DONE", ".lock"
FREE = {"tracking", "checkpoint", "faults", "output"}
"""Fields that move no number: a run may be continued with others."""


def resolved(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML: what config.yaml holds."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def finished(recipe: Recipe) -> bool:
    """Whether this very run is already done.

    Raises:
        ValueError: as `same`.
    """
    same(recipe)
    return (recipe.folder / DONE).is_file()


def same(recipe: Recipe) -> None:
    """Refuse a folder with the results of another configuration; an attempt without any may go.

    Raises:
        ValueError: it holds a finished run, or checkpoints, of another configuration (apart from
            the fields in `FREE`).
    """
    folder, config = recipe.folder, recipe.folder / CONFIG
    if not (folder / DONE).is_file() and checkpoint.newest(folder / "checkpoints") is None:
        return
    here = _completed(yaml.safe_load(config.read_text())) if config.is_file() else None
    changed = _first_difference(_binding(here), _binding(yaml.safe_load(resolved(recipe))))
    if changed:
        raise ValueError(
            f"{folder} holds a run with another configuration ({changed}); choose another "
            "output=... or name=..., or remove the folder"
        )


def _completed(config: Any) -> Any:
    """A stored configuration with the defaults of fields that are newer than its run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return yaml.safe_load(resolved(resolve(config)))
        except (ValueError, TypeError, AttributeError):
            return config  # not one of ours, or not any more: told by its differences


def _binding(config: Any) -> Any:
    """`config` without the fields that a continued run may change."""
    if not isinstance(config, dict):
        return config
    return {field: value for field, value in config.items() if field not in FREE}


def _first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """'optim.lr is 0.1 there, 0.2 here', or None."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new])]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return None if old == new else f"{path or 'everything'} is {old!r} there, {new!r} here"
    found = (_first_difference(a, b, f"{path}.{k}" if path else str(k)) for k, a, b in pairs)
    return next((text for text in found if text), None)


@contextmanager
def claim(folder: Path, other: str = "output=... or seed=...") -> Iterator[None]:
    """Hold the folder for this process. The system drops the lock of a process that dies.

    Args:
        other: what chooses another folder.

    Raises:
        ValueError: another process holds it, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+")
    except OSError as error:
        why = f"{folder} cannot be written: {error.strerror}"
        raise ValueError(f"{why}; choose another {other}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise ValueError(
                f"{folder} is in use by {owner}; wait for it, stop it, or choose another {other}"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)
            fcntl.flock(lock, fcntl.LOCK_UN)
