"""Which checkpoints are kept: the newest, and the best by a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint import files
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.hashes import flush

BEST = "best"
"""Name of the link to the best one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete checkpoint, oldest first where there are several."""

    name: str
    step: int
    value: float | None = None
    """Of the metric that says how good it is; None: not known."""


def wanted(found: Sequence[Entry], at: int, config: CheckpointConfig) -> list[str]:
    """Names of those to keep, the best one first if it is known, else the newest.

    Those beyond step `at`, where training is, are of a future that will be another one.
    """
    past = [entry for entry in found if entry.step <= at]
    last = {entry.step: entry for entry in past}  # of one that was written again, the new one
    past = [entry for entry in past if last[entry.step] is entry]
    known = [entry for entry in past if entry.value is not None and config.best]
    sign = 1 if config.best_mode == "max" else -1
    best = sorted(known, key=lambda entry: (sign * (entry.value or 0), entry.step), reverse=True)
    kept = [*best[: config.keep_best], *reversed(past[-config.keep :])]
    return list(dict.fromkeys(entry.name for entry in kept))


def entries(root: Path, metric: str | None) -> list[Entry]:
    """The complete checkpoints that are there."""
    return [
        Entry(folder.name, files.step_of(folder), _value(folder, metric))
        for folder in files.complete(root)
    ]


def _value(folder: Path, metric: str | None) -> float | None:
    try:
        value = files.manifest(folder).get("metrics", {}).get(metric) if metric else None
    except ValueError:
        return None
    return value if isinstance(value, int | float) else None


def prune(root: Path, at: int, config: CheckpointConfig) -> list[OSError]:
    """Drop what is not wanted after the checkpoint of step `at`, and lead to the best.

    Returns what the disk refused: it is tried again at the next.
    """
    found, refused = entries(root, config.best), list[OSError]()
    keep = wanted(found, at, config)
    values = {entry.name: entry.value for entry in found}
    link = root / BEST
    try:
        if keep and config.best and values[keep[0]] is not None:
            point(link, root / keep[0])
        elif link.is_symlink() and Path(link.readlink()).name not in keep:
            link.unlink()
    except OSError as error:
        refused.append(error)
    dropped = [files.drop(root / entry.name) for entry in found if entry.name not in keep]
    return [*refused, *filter(None, dropped)]


def point(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, relatively: a crash leaves it as it was, or as it is to be."""
    beside = link.with_name(f"{link.name}.partial")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target.relative_to(link.parent))
    beside.replace(link)
    flush(link.parent)


def save(
    root: Path,
    step: int,
    fill: Callable[[Path], None],
    driver: Mapping[str, Any],
    keep: int,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint and drop all but the newest `keep`. Else as `files.write`."""
    root.mkdir(parents=True, exist_ok=True)
    made = files.write(root, step, fill, driver, about)
    prune(root, step, CheckpointConfig(keep=keep))
    return made


def abandon(root: Path, newest: Path | None) -> None:
    """Training goes on from `newest`: what is beyond it was found damaged, and is removed."""
    files.clean(root)
    for folder in files.complete(root):
        if newest is None or files.step_of(folder) > files.step_of(newest):
            files.drop(folder)
