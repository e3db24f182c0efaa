"""task: a procedural task of ours (or yours) says how good an answer is.

The module of the task (`samplers/tasks/<name>.py`, or your own) may define `score(answer, meta)`:
the answer text without white space around it, and the prompt's meta with its gold as `gold`, to a
bool or a share in [0, 1]; None where it cannot judge. A task without it asks for its gold, letter
by letter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from rewards.grader import Examples
from rewards.verdict import Verdict
from rewards.verifiers import exact
from samplers import seam
from samplers.seam import Component

GRADER = "task/1"
QUICK = False
"""A user's score may hang."""


class Config(Component):
    task: str
    """Name of the task in samplers/tasks, or the import path of your own module."""
    correct_at: float = Field(1.0, gt=0, le=1)
    """A score of at least this counts as correct."""

    @field_validator("task")
    @classmethod
    def _there(cls, task: str) -> str:
        seam.find("samplers.tasks", task)
        return task


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    """Verdict of one answer."""
    if (known := fast(text, gold, meta, config)) is not None:
        return known
    answer = text.strip()
    score = _module(config).score(answer, {**meta, "gold": gold})
    if isinstance(score, Verdict):
        return score
    if score is None:
        return Verdict(False, 0.0, "error", None, GRADER, "the task could not judge")
    correct = bool(score >= config.correct_at)
    return Verdict(correct, float(score), "ok" if correct else "wrong", answer, GRADER)


def fast(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict | None:
    """An empty answer, and tasks that ask for their gold."""
    if not text.strip():
        return Verdict(False, 0.0, "no_answer", None, GRADER)
    if hasattr(_module(config), "score"):
        return None
    return exact.grade(text, gold, meta, exact.Config())


def examples(gold: str, meta: Mapping[str, Any], config: Config) -> Examples:
    """The gold."""
    return Examples((gold,))


def _module(config: Config) -> Any:
    return seam.find("samplers.tasks", config.task)
