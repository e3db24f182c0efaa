"""Grader: a verifier with its settings, made total: it always returns a Verdict."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rewards.verdict import Verdict
from samplers import seam

MAX_CANONICAL = 1024
"""Longer canonical answers travel as their hash: equal strings stay equal answers."""

MAX_SETTING = 32
"""Characters of a setting that stand in the name of a grader."""

Spec = str | Mapping[str, Any]
Item = tuple[str | None, str, Mapping[str, Any]]
"""(answer text, gold, meta); a text of None: no answer was reached."""


class Examples(NamedTuple):
    """Answer texts that a gold must accept and must reject; both empty: nobody knows any."""

    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


def _none(gold: str, meta: Mapping[str, Any]) -> Examples:
    return Examples()


@dataclass(frozen=True, slots=True)
class Grader:
    name: str
    """Name, version and settings that are not the defaults: verdicts of equal names are comparable,
    and may be kept."""
    quick: bool
    """It cannot hang: it may run in the calling process."""
    judge: Callable[[str, str, Mapping[str, Any]], Verdict]
    fast: Callable[[str, str, Mapping[str, Any]], Verdict | None] | None = None
    """The verdict where it takes microseconds and cannot hang, else None."""
    relevant: Callable[[str], str] = str
    """The part of an answer text that the verdict depends on, itself an answer text."""
    reads: frozenset[str] | None = None
    """Fields of meta that it looks at; None: all."""
    examples: Callable[[str, Mapping[str, Any]], Examples] = _none
    warm: Callable[[], object] = lambda: None
    """Imports what the first item would otherwise wait for."""
    deadline: float | None = None
    """Seconds that one item may take, where that follows from its settings."""
    version: str = ""
    """How its own verdicts are signed, if at all; those get its name."""

    def __call__(self, text: str, gold: str, meta: Mapping[str, Any]) -> Verdict:
        """Never raises but for MemoryError: what goes wrong inside is an `error` verdict."""
        verdict = self._total(self.judge, text, gold, meta)
        return failed(self.name, "returned None, not a Verdict") if verdict is None else verdict

    def at_once(self, text: str, gold: str, meta: Mapping[str, Any]) -> Verdict | None:
        """The verdict if it can be had in the calling process, else None. Total as well."""
        call = self.judge if self.quick else self.fast
        return None if call is None else self._total(call, text, gold, meta)

    def essence(self, item: Item) -> Item:
        """The item without what its verdict does not depend on: equal ones need asking once."""
        text, gold, meta = item
        if self.reads is not None:
            meta = {name: meta[name] for name in sorted(self.reads & set(meta))}
        return None if text is None else self.relevant(text), gold, meta

    def _total(
        self, call: Callable[..., Any], text: str, gold: str, meta: Mapping[str, Any]
    ) -> Verdict | None:
        try:
            verdict = call(text, gold, meta)
        except MemoryError:
            raise
        except (Exception, SystemExit) as problem:  # a user's function may do anything
            return failed(self.name, f"{type(problem).__name__}: {problem}")
        if verdict is None:
            return None
        if not isinstance(verdict, Verdict):
            return failed(self.name, f"returned {type(verdict).__name__}, not a Verdict")
        if not (math.isfinite(verdict.score) and 0 <= verdict.score <= 1):
            return failed(self.name, f"score {verdict.score} is outside [0, 1]")
        if verdict.answer is not None and len(verdict.answer) > MAX_CANONICAL:
            digest = hashlib.blake2b(verdict.answer.encode(errors="replace"), digest_size=16)
            verdict = replace(verdict, answer=f"blake2b:{digest.hexdigest()}")
        if verdict.grader in ("", self.version) and verdict.grader != self.name:
            verdict = replace(verdict, grader=self.name)
        return verdict


def failed(grader: str, detail: str, status: Any = "error") -> Verdict:
    """A verdict that is unknown because something went wrong."""
    return Verdict(False, 0.0, status, None, grader, detail[:300])


def titled(version: str, config: Any) -> str:
    """`version` and the settings that are not its defaults, long ones as their hash."""
    told = [version]
    changed = config.model_dump(mode="json", exclude_defaults=True) if config else {}
    for name, value in changed.items():
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=4).hexdigest()
        told.append(f"{name}={text if len(text) <= MAX_SETTING else digest}")
    return " ".join(told)


def load(spec: Spec) -> Grader:
    """The grader that a recipe's `verifier` names.

    Ours by file name, a user's module by dotted path, a user's function as my_pkg.my_file:fn
    (`rewards.custom`). A module has `grade(text, gold, meta, config) -> Verdict` and may have
    `Config`, `GRADER` (name/version), `QUICK` (cannot hang), `READS` (fields of meta),
    `fast(text, gold, meta, config) -> Verdict | None`, `relevant(text, config) -> str`,
    `examples(gold, meta, config) -> Examples`, `deadline(config) -> seconds`, `title(config)`
    (else GRADER and what differs from the defaults) and `warm()` or `warm(config)`.

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

    def bound(fn: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: fn(*args, config)

    given: dict[str, Any] = {
        field: bound(getattr(module, field))
        for field in ("fast", "relevant", "examples")
        if hasattr(module, field)
    }
    if hasattr(module, "warm"):
        own = inspect.signature(module.warm).parameters  # of its settings, where it asks for them
        given["warm"] = bound(module.warm) if own else module.warm
    if hasattr(module, "READS"):
        given["reads"] = frozenset(module.READS)
    if hasattr(module, "deadline"):
        given["deadline"] = module.deadline(config)
    given["version"] = getattr(module, "GRADER", name)
    title = module.title(config) if hasattr(module, "title") else titled(given["version"], config)
    quick = bool(getattr(module, "QUICK", False))
    return Grader(title, quick, bound(module.grade), **given)
