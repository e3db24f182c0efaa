"""Grader: a verifier with its settings, made total: it always returns a Verdict."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rewards.verdict import Verdict
from samplers import seam

MAX_CANONICAL = 1024
"""Longer canonical answers travel as their hash: equal strings stay equal answers."""

Spec = str | Mapping[str, Any]
Item = tuple[str | None, str, Mapping[str, Any]]
"""(answer text, gold, meta); a text of None: no answer was reached."""


@dataclass(frozen=True, slots=True)
class Grader:
    name: str
    quick: bool
    """It cannot hang: it may run in the calling process."""
    judge: Callable[[str, str, Mapping[str, Any]], Verdict]
    examples: Callable[[str], tuple[str, str | None]] | None = None
    """Of a gold, a right answer text and (or None) a wrong one."""
    warm: Callable[[], object] = lambda: None
    """Imports what the first item would otherwise wait for."""

    def __call__(self, text: str, gold: str, meta: Mapping[str, Any]) -> Verdict:
        """Never raises but for MemoryError: what goes wrong inside is an `error` verdict."""
        try:
            verdict = self.judge(text, gold, meta)
        except MemoryError:
            raise
        except (Exception, SystemExit) as problem:  # a user's function may do anything
            return failed(self.name, f"{type(problem).__name__}: {problem}")
        if not isinstance(verdict, Verdict):
            return failed(self.name, f"returned {type(verdict).__name__}, not a Verdict")
        if not (math.isfinite(verdict.score) and 0 <= verdict.score <= 1):
            return failed(self.name, f"score {verdict.score} is outside [0, 1]")
        if verdict.answer is not None and len(verdict.answer) > MAX_CANONICAL:
            digest = hashlib.blake2b(verdict.answer.encode(errors="replace"), digest_size=16)
            verdict = replace(verdict, answer=f"blake2b:{digest.hexdigest()}")
        return verdict


def failed(grader: str, detail: str, status: Any = "error") -> Verdict:
    """A verdict that is unknown because something went wrong."""
    return Verdict(False, 0.0, status, None, grader, detail[:300])


def load(spec: Spec) -> Grader:
    """The grader that a recipe's `verifier` names.

    Ours by file name, a user's module by dotted path, a user's function as my_pkg.my_file:fn
    (`rewards.custom`). A module has `grade(text, gold, meta, config) -> Verdict` and may have
    `Config`, `GRADER` (name/version), `QUICK`, `examples(gold)` and `warm()`.

    Raises:
        ValueError: no such verifier, or settings it does not take.
    """
    name, settings = seam.split(spec)
    if ":" in name:
        from rewards import custom

        return custom.grader(name, settings)
    module, config = seam.resolve("rewards.verifiers", spec)
    if not callable(getattr(module, "grade", None)):
        raise ValueError(
            f"verifier: module '{name}' has no grade(text, gold, meta, config); "
            "write one, or name a function as my_pkg.my_file:fn"
        )

    def judge(text: str, gold: str, meta: Mapping[str, Any]) -> Verdict:
        return module.grade(text, gold, meta, config)

    examples = getattr(module, "examples", None)
    title = getattr(module, "GRADER", name)
    warm = getattr(module, "warm", lambda: None)
    return Grader(title, bool(getattr(module, "QUICK", False)), judge, examples, warm)
