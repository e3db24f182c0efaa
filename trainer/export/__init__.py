"""Exported models: Hugging Face folders that are told of budgets by their own chat template.

`asks(folder)` says how; `trainer/export/README.md` what such a folder holds. Light to import.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from samplers.budget import Asks

FILE = "budget_config.json"
"""What an exported folder says of its budgets."""
VERSION = 1
"""Of that file's form."""


def read(folder: Path | str) -> dict[str, Any] | None:
    """budget_config.json of a model folder; None where there is none, so that it is no export.

    Raises:
        ValueError: broken, or written by a later version.
    """
    file = Path(folder) / FILE
    try:
        found = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: broken JSON ({error}); export the model again") from None
    version = found.get("version") if isinstance(found, dict) else None
    if version != VERSION:
        raise ValueError(
            f"{file}: version {version!r}, and this laconic reads {VERSION}; export the model again"
        )
    return dict(found)


def asks(folder: Path | str) -> Asks | None:
    """How an exported model is told of a budget: by variables of its chat template.

    None where the folder is no export: ask its renderer (`samplers.budget.asks_of`).

    Raises:
        ValueError: as `read`, or asks that are none.
    """
    found = read(folder)
    if found is None:
        return None
    try:
        return Asks(**found["asks"])
    except (KeyError, TypeError, ValidationError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{Path(folder) / FILE}: asks: {why}; export the model again") from None
