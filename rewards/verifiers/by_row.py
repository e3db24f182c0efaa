"""by_row: each row is graded by the verifier that its `verifier` column names.

    verifier: {name: by_row, verifiers: [math, {name: code, seconds: 5}, {science: choice}]}

A list of what rows may name: a verifier (`math`, `my_pkg.my_file:fn`), one with settings
(`{name: code, ...}`, named `code`), or names of your own for either (`{science: choice}`,
`{science: {name: choice, statements: agree}}`). A row that names none of them, or none at all where
there is no `default`, is a gold_error: unknown, never a silent 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import PrivateAttr, field_validator, model_validator

from rewards.grader import Examples, Grader, failed, load
from rewards.service.pool import DEADLINE
from rewards.verdict import Verdict
from samplers import seam
from samplers.seam import Component

GRADER = "by_row/1"
QUICK = False
COLUMN = "verifier"
"""The field of meta that names the row's verifier."""


class Config(Component):
    verifiers: tuple[str | dict[str, Any], ...]
    """What rows may name: verifiers, verifiers with settings, {name in the data: verifier}."""
    default: str = ""
    """Which of them grades rows that name none. Empty: such rows are gold_errors."""
    _graders: dict[str, Grader] = PrivateAttr(default_factory=dict)

    @field_validator("verifiers", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return [given] if isinstance(given, Mapping | str) else given

    @model_validator(mode="after")
    def _loads(self) -> Config:
        pairs = [pair for one in self.verifiers for pair in _pairs(one)]
        names = [name for name, _ in pairs]
        if not names:
            raise ValueError("verifiers: got none; list the verifiers that rows may name")
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(
                f"verifiers: '{repeated}' is there twice; give one of them a name of its own, as "
                f"in {{my_{repeated}: {repeated}}}, and use it in the data"
            )
        if self.default and self.default not in names:
            raise ValueError(f"default: '{self.default}' is none of {', '.join(names)}; name one")
        for name, spec in pairs:
            if seam.split(spec)[0] == "by_row":
                raise ValueError(f"verifiers: '{name}' is by_row itself; list its verifiers here")
            try:
                self._graders[name] = load(spec)
            except ValueError as error:
                reason = " ".join(str(error).split()).removeprefix("verifier: ")
                raise ValueError(f"verifiers: '{name}': {reason}") from None
        return self


def title(config: Config) -> str:
    graders = ", ".join(f"{name}: {grader.name}" for name, grader in config._graders.items())
    return f"{GRADER} ({graders})"


def deadline(config: Config) -> float:
    """That of the slowest."""
    return max(grader.deadline or DEADLINE for grader in config._graders.values())


def warm(config: Config) -> None:
    """Import what any of them needs."""
    for grader in config._graders.values():
        grader.warm()


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    """Verdict of the row's own verifier."""
    grader = _chosen(meta, config)
    return grader if isinstance(grader, Verdict) else grader(text, gold, meta)


def fast(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict | None:
    """What the row's own verifier knows at once."""
    grader = _chosen(meta, config)
    return grader if isinstance(grader, Verdict) else grader.at_once(text, gold, meta)


def examples(gold: str, meta: Mapping[str, Any], config: Config) -> Examples:
    """Those of the row's own verifier; of a row without one its gold, which is then refused."""
    grader = _chosen(meta, config)
    return Examples((gold,)) if isinstance(grader, Verdict) else grader.examples(gold, meta)


def _chosen(meta: Mapping[str, Any], config: Config) -> Grader | Verdict:
    """The grader of a row, or why it has none."""
    name = str(meta.get(COLUMN) or "") or config.default
    if grader := config._graders.get(name):
        return grader
    known = ", ".join(config._graders)
    says = f"names '{name[:40]}', which is none of" if name else "names no verifier; by_row knows"
    return failed(GRADER, f"the row {says} {known}", "gold_error")


def _pairs(entry: str | Mapping[str, Any]) -> list[tuple[str, str | Mapping[str, Any]]]:
    """(name in the data, verifier) of one entry of `verifiers`."""
    if isinstance(entry, str) or "name" in entry:
        return [(seam.split(entry)[0], entry)]
    return list(entry.items())
