"""The gold answers of public sets, from where LACONIC_DATA says, and a grader tried on them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rewards.verdict import Verdict
from tests import corpus_rows
from tests.forms import forms
from tests.perturbations import perturbed

Items = list[tuple[str | None, str, dict[str, Any]]]
Grade = Callable[[Items], Sequence[Verdict]]
SETS = (
    "math500.jsonl",
    "aime24.jsonl",
    "amc23.jsonl",
    "gsm8k_test.json",
    "math_train.json",
    "aime_train.json",
)


class Tried(NamedTuple):
    """What a grader said of every form and every perturbation of some golds."""

    golds: int
    forms: int
    rejected: list[tuple[str, str, str, str]]
    """False rejects: (form, gold, answer text, status)."""
    perturbations: int
    accepted: list[tuple[str, str, str, str]]
    """False accepts."""
    unknown: int
    """Verdicts that are none (time-outs, errors, faults of a gold); counted among neither."""


def path(name: str) -> Path:
    """Where a set should lie."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    return Path(os.environ.get("LACONIC_DATA") or beside) / name


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a set; skips the test where it is not at hand."""
    if not path(name).is_file():
        pytest.skip(f"{name} not found: set LACONIC_DATA to the folder that holds it")
    text = path(name).read_text()
    lines = name.endswith(".jsonl")
    return [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)


def answers(name: str) -> list[str]:
    """The golds of a set in order; rows without one (four in MATH) are left out."""
    golds = [_gold(row) for row in rows(name)]
    return [gold for gold in golds if gold]


def field() -> list[str]:
    """Golds in the manner of OlympiadBench, Minerva, HMMT, college texts."""
    return [row["gold"] for row in corpus_rows.rows("golds.jsonl")]


def examine(
    golds: Sequence[str],
    grade: Grade,
    only: Sequence[str] | None = None,
) -> Tried:
    """Every form and perturbation of the distinct golds, or of those in `only`.

    The wrong answers of a gold include those of two other rows: the next and the seventh next.
    """
    distinct = list(dict.fromkeys(golds))
    asked: list[tuple[bool, str]] = []
    items: Items = []
    for at, gold in enumerate(distinct):
        if only is not None and gold not in only:
            continue
        others = tuple(distinct[(at + step) % len(distinct)] for step in (1, 7))
        for right, cases in ((True, forms(gold)), (False, perturbed(gold, others))):
            for form, text in cases:
                asked.append((right, form))
                items.append((text, gold, {}))
    counts = {True: 0, False: 0}
    faults: dict[bool, list[tuple[str, str, str, str]]] = {True: [], False: []}
    unknown = 0
    for (right, form), (written, gold, _), verdict in zip(asked, items, grade(items), strict=True):
        unknown += not verdict.known
        counts[right] += verdict.known
        if verdict.known and verdict.correct != right:
            faults[right].append((form, gold, str(written), verdict.status))
    tried = len(distinct) if only is None else len(only)
    return Tried(tried, counts[True], faults[True], counts[False], faults[False], unknown)


def _gold(row: dict[str, Any]) -> str:
    answer = row["answer"]
    if answer is None:
        answer = row.get("solution", "").rpartition("####")[2]
    return f"{answer:g}" if isinstance(answer, float) else str(answer).strip()
