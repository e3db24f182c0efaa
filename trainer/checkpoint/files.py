"""Where checkpoints lie, and how one is written: killed at any instant, the old or the new stays.

A folder `step-N` counts if it holds `COMPLETE`, its manifest, which comes last. One that is
written again is `step-N.old` until then. Everything else of such a name is a leftover.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.checkpoint.contents import write_driver
from trainer.checkpoint.hashes import HASH, flush, settled

COMPLETE = "COMPLETE"
FORMAT = 1
_NAME = re.compile(r"step-(\d+)(\.old|\.partial)?")
_BESIDE = f"{COMPLETE}.partial"


def complete(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = (path.parent for path in root.glob(f"step-*/{COMPLETE}"))
    named = [(match, path) for path in found if (match := _NAME.fullmatch(path.name))]
    order = [(int(m[1]), not m[2], path) for m, path in named if m[2] != ".partial"]
    return [path for _, _, path in sorted(order)]


def newest(root: Path) -> Path | None:
    """The newest complete checkpoint; whether its files are whole is not looked at."""
    found = complete(root)
    return found[-1] if found else None


def step_of(folder: Path) -> int:
    """The step of the run that a checkpoint was made after."""
    match = _NAME.fullmatch(folder.name)
    assert match, folder
    return int(match[1])


def manifest(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: files (size and hash), step, stage, metrics, facts, ...

    Empty for one of an older format, which says nothing.

    Raises:
        ValueError: it cannot be read, or is not as it was written.
    """
    try:
        text = (folder / COMPLETE).read_text(encoding="utf-8")
        if not text.strip():
            return {}
        told: dict[str, Any] = json.loads(text)
        seal = told.pop(HASH)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        why = getattr(error, "strerror", None) or "it is no manifest"
        raise ValueError(f"{COMPLETE} cannot be read: {why}") from None
    if told.get("format") != FORMAT:
        raise ValueError(f"{COMPLETE} is of format {told.get('format')}, known is {FORMAT}")
    if seal != _seal(told):
        raise ValueError(f"{COMPLETE} is not as it was written")
    return told


def size(folder: Path) -> int:
    """Bytes of a checkpoint by its manifest; 0: not known."""
    try:
        return sum(int(file["size"]) for file in manifest(folder).get("files", {}).values())
    except ValueError:
        return 0


def write(
    root: Path,
    step: int,
    fill: Callable[[Path], None],
    driver: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write `root/step-NNNNNN` and return it. Older ones stay; what a crash left behind goes.

    Args:
        fill: puts the learners' part into the folder that it is given.
        driver: see `contents`.
        about: what else the manifest says, as JSON.
        texts: small files by name.

    Raises:
        OSError: the disk refuses it, or took the run's folder away; nothing of it stays.
    """
    root.mkdir(exist_ok=True)
    clean(root)
    target, partial = root / f"step-{step:06d}", root / f"step-{step:06d}.partial"
    if partial.exists():  # it could not be cleaned: told by the reason
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        fill(partial)
        write_driver(partial, driver)
        for name, text in (texts or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        own = {"format": FORMAT, "step": step, "stage": driver.get("stage")}
        told = {**own, "laconic": _version(), **(about or {}), "files": settled(partial)}
        _commit(partial, target, json.dumps(told | {HASH: _seal(told)}, indent=1) + "\n")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if not (target / COMPLETE).exists():
            shutil.rmtree(target, ignore_errors=True)
        raise
    return target


def _commit(partial: Path, target: Path, text: str) -> None:
    """All that takes room is there before the first rename."""
    (partial / _BESIDE).write_text(text, encoding="utf-8")
    flush(partial / _BESIDE)
    flush(partial)
    old = target.with_suffix(".old")
    if (target / COMPLETE).exists():
        if old.exists():
            shutil.rmtree(old)
        target.rename(old)
    partial.rename(target)
    flush(target.parent)
    (target / _BESIDE).rename(target / COMPLETE)
    flush(target)


def clean(root: Path) -> None:
    """Remove what is no checkpoint, or not any more, as far as the disk allows it.

    One that was being written again, and was not, has its name back.
    """
    for link in (path for path in root.glob("*.partial") if path.is_symlink()):
        with contextlib.suppress(OSError):
            link.unlink()
    for path in root.glob("step-*"):
        match = _NAME.fullmatch(path.name)
        if match is None or path.is_symlink():
            continue
        superseded = match[2] == ".old" and (path.with_suffix("") / COMPLETE).exists()
        if match[2] == ".partial" or superseded or not (path / COMPLETE).exists():
            drop(path)
    for old in root.glob(f"step-*.old/{COMPLETE}"):
        if not old.parent.with_suffix("").exists():
            with contextlib.suppress(OSError):
                old.parent.rename(old.parent.with_suffix(""))


def drop(folder: Path) -> OSError | None:
    """Remove a checkpoint: unmarked first, so that a half-removed one is never gone on from."""
    try:
        with contextlib.suppress(FileNotFoundError):
            (folder / COMPLETE).unlink()
            flush(folder)
        shutil.rmtree(folder)
    except OSError as error:
        return error
    return None


def _seal(told: Mapping[str, Any]) -> str:
    return hashlib.new(HASH, json.dumps(told, sort_keys=True).encode()).hexdigest()


def _version() -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("laconic")
    return None
