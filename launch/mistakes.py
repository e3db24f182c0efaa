"""Whose mistake an error is: told by our own code in one line, or come out of a library.

Our code raises ValueError for what a user can mend. A ValueError that numpy or torch raises is a
defect of ours, and keeps its traceback.
"""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STOREYS = tuple(f"{ROOT / name}{os.sep}" for name in ("samplers", "rewards", "trainer", "launch"))
_PLACE = re.compile(r'^ *File "([^"]+)", line \d+.*\n(.*)$', re.MULTILINE)


def told(error: BaseException) -> bool:
    """Whether a `raise` of ours made it; extensions in C leave no frame of their own."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and _ours(frames[-1].filename, frames[-1].line or "")


def told_remotely(error: BaseException) -> bool:
    """The same of a Ray task's error, whose text holds the far traceback."""
    places = _PLACE.findall(str(error))
    return bool(places) and _ours(*places[-1])


def _ours(file: str, line: str) -> bool:
    return os.path.realpath(file).startswith(STOREYS) and line.lstrip().startswith("raise")


def text(error: ValueError) -> str:
    """What to tell: the message, or pydantic's report in our words."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    from samplers.seam import Component
    from trainer.components import explain

    return explain(error, Component)
