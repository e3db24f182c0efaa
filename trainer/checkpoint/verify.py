"""Whether checkpoints are as they were written: by the size and hash of every file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.checkpoint.files import COMPLETE, complete, manifest
from trainer.checkpoint.hashes import HASH, THREADS, hashed

_NEW = "learner/state.json"
"""No checkpoint that has it was made before there were manifests."""


def intact(root: Path, within: str = "") -> Path | None:
    """The newest complete checkpoint whose files are as they were written; None: there is none.

    Each newer one that is damaged is told by a warning.

    Args:
        within: look only at files whose names begin so ("driver", "model/"), and warn of nothing.

    Raises:
        ValueError: there are complete ones, and all are damaged.
    """
    found = complete(root)
    told: list[str] = []
    for folder in reversed(found):
        wrong = damage(folder, within)
        if not wrong:
            if told and not within:
                warnings.warn(f"{folder} is gone on from instead", stacklevel=2)
            if not within and not manifest(folder):
                warnings.warn(
                    f"{folder} is of an older format: whether it is whole cannot be checked",
                    stacklevel=2,
                )
            return folder
        more = f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
        told.append(f"{folder.name}: {wrong[0]}{more}")
        if not within:
            warnings.warn(f"{folder} is damaged: {wrong[0]}{more}", stacklevel=2)
    if told:
        raise ValueError(
            f"{root}: no checkpoint is intact ({'; '.join(told)}); restore these files from a "
            "copy, or remove the folders of these checkpoints to begin the run anew"
        )
    return None


def damage(folder: Path, within: str = "") -> list[str]:
    """What is wrong with a complete checkpoint, file by file; nothing: it is intact.

    Of an older format nothing is known, and nothing is wrong.
    """
    try:
        told = manifest(folder)
        if not told:
            return [f"{COMPLETE} is empty"] if (folder / _NEW).exists() else []
        files = _files(told)
        there = dict(_entries(folder))
    except ValueError as error:
        return [str(error)]
    except OSError as error:
        return [f"{error.filename} cannot be read: {error.strerror}"]
    looked = sorted(name for name in {*files, *there} if name.startswith(within))
    with ThreadPoolExecutor(THREADS) as pool:
        wrong = pool.map(lambda name: _wrong(name, files.get(name), there.get(name)), looked)
        return [text for text in wrong if text]


def _files(told: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Size and hash by name, where a stranger may have written the names."""
    found: dict[str, tuple[int, str]] = {}
    for name, file in dict(told.get("files", {})).items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or pure.as_posix() != name:
            raise ValueError(f"{COMPLETE} names '{name}', which is no file of a checkpoint")
        try:
            found[name] = int(file["size"]), str(file[HASH])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{COMPLETE} says no size and {HASH} of {name}") from None
    return found


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """All that is no folder, without following links out of this one."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in (*files, *links):
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            if relative != COMPLETE:
                yield relative, path


def _wrong(name: str, expected: tuple[int, str] | None, path: Path | None) -> str | None:
    if path is None:
        return f"{name} is missing"
    if expected is None:
        return f"{name} is none of its files; remove it"
    if path.is_symlink():
        return f"{name} is a link, not a file"
    try:
        size, digest = path.stat().st_size, expected[1]
        if size != expected[0]:
            return f"{name} has {size} bytes and should have {expected[0]}"
        found = hashed(path)
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    if found != digest:
        return f"{name} has {HASH} {found[:12]}... and should have {digest[:12]}..."
    return None
