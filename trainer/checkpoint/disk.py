"""What a disk says when it takes no more, in words for people."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from trainer.checkpoint import files

REFUSALS = frozenset(
    (
        *(errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES),
        *(errno.EPERM, errno.ESTALE, errno.ENOTCONN, errno.ENOTEMPTY),
    )
)
"""Errors that are the disk's and may pass; any other is a mistake, of somebody's."""
SHORT = 0.9
"""Of the last checkpoint's size: with less room than that a new one is not begun."""


def refusal(error: BaseException, root: Path) -> OSError | None:
    """The disk's refusal that `error` is or comes from; None: it is something else."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        if isinstance(one, OSError) and (one.errno in REFUSALS or _gone(one, root)):
            return one
        inner = getattr(one, "cause", None)  # of what an actor raised
        one = inner if isinstance(inner, BaseException) else one.__cause__
    return None


def _gone(error: OSError, root: Path) -> bool:
    """Whether the folder of checkpoints was taken away."""
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        return False
    named = str(error.filename or "").startswith(str(root))
    return named or not root.is_dir()


def room(root: Path) -> tuple[int, int] | None:
    """Bytes that a checkpoint like the last one takes, and bytes that are free; None: not known."""
    last = files.newest(root)
    needed = files.size(last) if last else 0
    try:
        total, _, free = shutil.disk_usage(root)
    except OSError:
        return None
    return (needed, free) if needed and total else None


def check(root: Path) -> None:
    """Raise OSError, as the disk would later, where there is clearly too little room."""
    found = room(root)
    if found and found[1] < SHORT * found[0]:
        raise OSError(errno.ENOSPC, "No space left on device", str(root))


def why(error: OSError, root: Path) -> str:
    """'No space left on device: /runs/a/checkpoints, 1.2 GB needed, 300 MB free'."""
    text = f"{error.strerror or error}: {error.filename or root}"
    found = room(root) if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return f"{text}, {told(found[0])} needed, {told(found[1])} free" if found else text


def remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space"
    return "raise the limit (ulimit -f)" if error.errno == errno.EFBIG else "make it writable"


def told(size: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
