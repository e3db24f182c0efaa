"""The corpora beside: lists of answers with what a grader must say of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "corpus"


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of one corpus file, in order."""
    return [json.loads(line) for line in (FOLDER / name).read_text().splitlines()]


def text_of(row: dict[str, Any]) -> str:
    """The answer text of a row of math.jsonl: given whole, or what its box holds."""
    return str(row["text"]) if "text" in row else rf"Hence \boxed{{{row['answer']}}}."
