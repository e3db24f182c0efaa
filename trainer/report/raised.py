"""Alarms that runs raised, read back from their metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trainer import alarms
from trainer.report.data import Run


@dataclass(frozen=True)
class Raised:
    """One alarm of one stage of a run."""

    name: str
    steps: list[int]
    why: str
    """What it said when it was raised first."""

    @property
    def spans(self) -> str:
        """'steps 4-9, 12'"""
        parts: list[list[int]] = []
        for step in self.steps:
            if parts and step == parts[-1][-1] + 1:
                parts[-1][1:] = [step]
            else:
                parts.append([step])
        return "steps " + ", ".join("-".join(map(str, part)) for part in parts)


def watched(run: Run) -> bool:
    """Whether alarms were looked for at all: not before there were any, nor in sft stages."""
    return any(name.startswith(alarms.PREFIX) for record in run.steps for name in record)


def raised(run: Run) -> Iterator[Raised]:
    """By stage, then in the order of `alarms.RULES`."""
    first = 0
    for stage in run.config.get("stages") or ():
        last = first + int(stage.get("steps", 0))
        history = [alarms.kept(r, first) for r in run.steps if first <= r["step"] <= last]
        for name in alarms.RULES:
            at = [i for i, record in enumerate(history) if record.get(alarms.PREFIX + name)]
            if at:
                why = _why(history[: at[0] + 1], name, stage.get("alarms"))
                yield Raised(name, [history[i]["step"] for i in at], why)
        first = last


def _why(history: list[dict[str, Any]], name: str, settings: dict[str, Any] | None) -> str:
    try:
        return alarms.check(history, alarms.AlarmConfig(**settings or {})).get(name, "")
    except ValidationError:
        return ""  # settings of another version
