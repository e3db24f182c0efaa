"""What of a folder goes to a cluster: its files, less what no job needs, in one small archive."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from launch.fits import human
from trainer.runfolder import CONFIG, LOCK

LIMIT = 100 * 2**20
"""Ray keeps what is shipped in the memory of its head."""
TOLD = 3
NEVER = (
    ".*", "venv", "node_modules", "__pycache__", "*.pyc", "*.egg-info", "checkpoints", "wandb",
    "*.key", "*.pem", "*.p12", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*",
)  # fmt: skip
"""Names of files and folders: what is made anew, what is a run's, and what is nobody's business.
Secrets lie under names with a dot (.ssh, .aws, .netrc, .env), and nothing that a job needs does."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The same files are the same archive, which Ray then has already."""


def files(folder: Path, excludes: Sequence[str] = ()) -> dict[PurePosixPath, int]:
    """Files below the folder that are shipped, and their sizes. Run folders are not.

    Args:
        excludes: patterns of a name (`*.ckpt`), or of a path from the folder on (`data/raw`).

    Raises:
        ValueError: there is no such folder, or something in it cannot be read.
    """
    with _readable():
        return dict(sorted(_walk(folder, PurePosixPath(), (*NEVER, *excludes))))


def _walk(
    folder: Path, at: PurePosixPath, patterns: Sequence[str]
) -> Iterator[tuple[PurePosixPath, int]]:
    inside = list(os.scandir(folder))
    names = {entry.name for entry in inside}
    if {CONFIG, LOCK} <= names:  # a run's
        return
    for entry in inside:
        path = at / entry.name
        if any(fnmatch(entry.name, one) or fnmatch(str(path), one) for one in patterns):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), path, patterns)
        elif entry.is_file():  # a link to a file is the file
            yield path, entry.stat().st_size


def small(folder: Path, found: dict[PurePosixPath, int]) -> None:
    """Refuse to ship what is no code.

    Raises:
        ValueError: more than `LIMIT`, with where it lies.
    """
    total = sum(found.values())
    if total <= LIMIT:
        return
    sizes: dict[str, int] = {}
    for path, size in found.items():
        top = f"{path.parts[0]}/" if len(path.parts) > 1 else str(path)
        sizes[top] = sizes.get(top, 0) + size
    biggest = sorted(sizes, key=lambda top: (-sizes[top], top))[:TOLD]
    told = ", ".join(f"{top} {human(sizes[top])}" for top in biggest)
    raise ValueError(
        f"working_dir: {folder} is {human(total)}, and at most {human(LIMIT)} is shipped; biggest: "
        f"{told}; put data and models where all nodes see them, or name what the job does not need "
        "under excludes:"
    )


def pack(
    folder: Path,
    found: Mapping[PurePosixPath, int],
    archive: Path,
    made: Mapping[PurePosixPath, str],
) -> None:
    """Write the archive: what was found, and texts that were made for it.

    Raises:
        ValueError: a file cannot be read.
    """
    with _readable(), zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for path in found:
            source = folder / path
            out.writestr(_entry(path, source.stat().st_mode), source.read_bytes())
        for path, text in made.items():
            out.writestr(_entry(path, 0o100644), text)


def _entry(path: PurePosixPath, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(str(path), EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = (mode & 0xFFFF) << 16
    return entry


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
        raise ValueError(
            f"working_dir: {why}; name the folder to ship, or what cannot be read under excludes:"
        ) from None
