"""exact: the answer is the gold, character for character, white space at both ends aside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.grader import Examples
from rewards.verdict import Verdict
from samplers.seam import Component

GRADER = "exact/1"
QUICK = True
"""Cannot hang: may run in the calling process."""
READS = ()


class Config(Component):
    ignore_case: bool = False
    """Compare letters whatever their case."""


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    """Verdict of one answer. An empty gold is a gold_error, an empty answer no_answer."""
    answer, wanted = text.strip(), gold.strip()
    if config.ignore_case:
        answer, wanted = answer.lower(), wanted.lower()
    if not wanted:
        return Verdict(False, 0.0, "gold_error", None, GRADER, "the gold answer is empty")
    if not answer:
        return Verdict(False, 0.0, "no_answer", None, GRADER)
    right = answer == wanted
    return Verdict(right, float(right), "ok" if right else "wrong", answer, GRADER)


def examples(gold: str, meta: Mapping[str, Any], config: Config) -> Examples:
    """A right answer text; a wrong one would prove nothing."""
    return Examples((gold,))
