"""Verdict: what a verifier says of one answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "wrong", "no_answer", "unparseable", "timeout", "error", "gold_error"]
UNKNOWN = frozenset({"timeout", "error", "gold_error"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """`correct` is what allocation and baselines read; `score` in [0, 1] is what is rewarded.

    timeout, error and gold_error are unknown: no loss, no statistics, counted.
    """

    correct: bool
    score: float
    status: Status
    answer: str | None = None
    """Canonical answer: equal strings are equal answers (majority votes read it)."""
    grader: str = ""
    """Name and version of the grader."""
    detail: str = ""
    """What went wrong, where something did."""

    @property
    def known(self) -> bool:
        return self.status not in UNKNOWN
