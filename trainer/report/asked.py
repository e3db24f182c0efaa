"""Lines of the report on what was asked for: each mode or number of tokens of each arm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.eval.asked import COUNTED
from trainer.eval.statistics import Estimate
from trainer.report.data import Arm, Evaluation, pooled

CELLS = {
    "accuracy": "accuracy",
    "think_tokens": "thinking tokens",
    "answer_tokens": "answer tokens",
    "tokens": "response tokens",
}
"""Metric of a name -> heading."""
KEPT = {"asked/deviation": "deviation", "asked/rank_correlation": "rank correlation"}
assert set(COUNTED) < set(CELLS)


@dataclass(frozen=True)
class Asked:
    """One way of asking an arm, or the base that it began from."""

    arm: str
    base: bool
    name: str
    cells: dict[str, Estimate]


@dataclass(frozen=True)
class Kept:
    """How well an arm, or its base, keeps to the numbers that are asked for."""

    arm: str
    base: bool
    cells: dict[str, Estimate]


def names(evaluation: Evaluation) -> list[str]:
    """What was asked for, in its order."""
    found = (m.removeprefix("asked/") for m in evaluation.summary["metrics"] if m[:6] == "asked/")
    return list(dict.fromkeys(name.rpartition("/")[0] for name in found if "/" in name))


def lines(found: Sequence[Arm]) -> list[Asked]:
    """Of each arm that is asked in several ways: its base, then what it became."""
    return [
        Asked(
            arm.name,
            base,
            name,
            {metric: pooled(evaluations, f"asked/{name}/{metric}") for metric in CELLS},
        )
        for arm, base, evaluations in _sides(found)
        for name in names(evaluations[0])
    ]


def kept(found: Sequence[Arm]) -> list[Kept]:
    return [
        Kept(arm.name, base, {metric: pooled(evaluations, metric) for metric in KEPT})
        for arm, base, evaluations in _sides(found)
        if "asked/deviation" in evaluations[0].summary["metrics"]
    ]


def _sides(found: Sequence[Arm]) -> Iterator[tuple[Arm, bool, list[Evaluation]]]:
    """An arm's base is that of its first seed: all began from the same."""
    for arm in found:
        base = arm.runs[0].base
        for is_base, evaluations in ((True, [base] if base else []), (False, arm.finals)):
            if evaluations and names(evaluations[0]):
                yield arm, is_base, evaluations
