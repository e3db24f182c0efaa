"""Two evaluations of the same problems: B against A, paired problem by problem.

Differences are B - A with a t interval and a sign-flip p, corrected by Holm's method over tasks;
tokens are a ratio of sums B / A. A claim to be more efficient needs both ends: not worse by more
than a margin that was stated before, and fewer tokens.

Shape suffixes: M problems, S samples of a problem.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.eval import claims, metric, statistics
from trainer.eval.claims import Bound
from trainer.eval.metric import Metric
from trainer.eval.sides import Side, check, differences, read
from trainer.eval.statistics import Floats
from trainer.eval.summary import NOTE, aligned, number
from trainer.eval.table import UNCUT, Table

MOVED = 0.5
"""A problem is gained (or lost) where its share of right answers rises (or falls) by so much."""
LISTED = 5
"""Of them, named in the printed table."""


@dataclass(frozen=True, slots=True)
class Line:
    """One column of one table of both."""

    task: str
    name: str
    """As in metrics: accuracy@512, prompt/accuracy@512, anytime."""
    a: Metric
    b: Metric
    difference: Metric
    """B - A."""
    p_t: float
    p_flip: float
    p_holm: float
    """`p_flip` after Holm's correction over the tasks that have this name."""
    tokens: Metric | None
    """B / A, thought and answer; None where a line has no tokens of its own."""
    not_worse: Bound
    cheaper: Bound | None

    @property
    def verdict(self) -> str:
        """What the intervals say, the stronger first."""
        if self.difference.low > 0:
            return "better"
        if self.not_worse.holds and self.cheaper is not None and self.cheaper.holds:
            return "as good, fewer tokens"
        if self.difference.high < 0:
            return "worse"
        return "as good" if self.not_worse.holds else "undecided"


@dataclass(frozen=True, slots=True)
class Moved:
    """Problems of a task that B solves and A does not, or the other way round, uncut."""

    task: str
    gained: list[tuple[str, float, float]]
    """id, share right in A and in B; the largest change first."""
    lost: list[tuple[str, float, float]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A."""

    a: Path
    b: Path
    margin: float
    lines: list[Line]
    moved: list[Moved]
    notes: list[str] = field(default_factory=list)
    """What else differs between the two."""

    def metrics(self) -> dict[str, Metric]:
        """For requirements: TASK/NAME is the difference, TASK/tokens_ratio@BUDGET that of tokens;
        all/NAME the mean difference over the tasks that have it all."""
        out: dict[str, Metric] = {}
        for line in self.lines:
            out[f"{line.task}/{line.name}"] = line.difference
            if line.tokens is not None:
                out[f"{line.task}/{_ratio_name(line.name)}"] = line.tokens
        tasks = {line.task for line in self.lines}
        for name in dict.fromkeys(line.name for line in self.lines):
            parts = [line.difference for line in self.lines if line.name == name]
            if len(parts) == len(tasks) > 1:
                out[f"all/{name}"] = metric.macro(parts)
        return out

    def inferior(self) -> list[str]:
        """Why B is not as good as A within the margin on fewer tokens, uncut; none where it is."""
        out = []
        for line in self.lines:
            if line.name.rpartition("@")[2] != UNCUT or line.cheaper is None:
                continue
            low, high = line.not_worse.bound, line.cheaper.bound
            if math.isnan(low):
                out.append(f"{line.task}: fewer than two problems are graded in both")
                continue
            if not line.not_worse.holds:
                out.append(
                    f"{line.task}: accuracy may have fallen by {-low:.4f}, more than {self.margin}"
                )
            if not line.cheaper.holds:
                out.append(f"{line.task}: tokens may be {high:.3f} times those of A, not below 1")
        if not any(line.name == f"accuracy@{UNCUT}" for line in self.lines):
            out.append("no task was measured uncut and told nothing")
        return out

    def as_json(self) -> dict[str, Any]:
        """Everything, for --json."""
        return {
            "a": str(self.a),
            "b": str(self.b),
            "margin": self.margin,
            "notes": self.notes,
            "differences": metric.as_json(self.metrics()),
            "lines": [
                {
                    "task": line.task,
                    "name": line.name,
                    **metric.as_json({"a": line.a, "b": line.b}),
                    "p_t": _plain(line.p_t),
                    "p_flip": _plain(line.p_flip),
                    "p_holm": _plain(line.p_holm),
                    "verdict": line.verdict,
                }
                for line in self.lines
            ],
            "moved": {m.task: {"gained": m.gained, "lost": m.lost} for m in self.moved},
        }

    def text(self) -> str:
        """For a console."""
        tasks = list(dict.fromkeys(line.task for line in self.lines))
        parts = [f"{task}\n{aligned(self._cells(task))}" for task in tasks]
        return "\n\n".join([self._head(), *parts, *map(_told, self.moved), NOTE])

    def _head(self) -> str:
        return "\n".join([f"A: {self.a}", f"B: {self.b}", *self.notes])

    def _cells(self, task: str) -> list[list[str]]:
        head = ["metric", "A", "B", "B - A", "95% interval", "fixed", "pop", "p", "p (Holm)"]
        head += ["tokens B / A", "95% interval", f"verdict (margin {self.margin:g})"]
        return [head, *(_cells(line) for line in self.lines if line.task == task)]


def compare(a: Path, b: Path, margin: float = 0.01) -> Comparison:
    """B against A.

    Args:
        a, b: evaluation folders, or run folders, whose last evaluation is read.
        margin: how much accuracy may fall and still be as good; stated before one looks.

    Raises:
        ValueError: no evaluation, or the two differ in problems, prompts, golds, graders or caps.
    """
    before, after = read(a), read(b)
    check(before, after)
    lines = [
        line for first, second in _paired(before, after) for line in _lines(first, second, margin)
    ]
    moved = [_moved(f, s) for f, s in _paired(before, after) if not f.asked]
    return Comparison(
        Path(a), Path(b), margin, _corrected(lines), moved, differences(before, after)
    )


def _paired(a: Side, b: Side) -> list[tuple[Table, Table]]:
    """Tables of both, problems in the same order."""
    other = {(table.task, table.asked): table for table in b.tables}
    return [
        (table, other[key].of(table.ids_M))
        for table in a.tables
        if (key := (table.task, table.asked)) in other
    ]


def _lines(a: Table, b: Table, margin: float) -> list[Line]:
    """A line for each column that both have, and for the any-time accuracy over the same grid."""
    out = []
    for name in a.columns:
        if name in b.columns:
            i, j = a.columns.index(name), b.columns.index(name)
            tokens = (a.known(a.tokens_MSJ[..., i]), b.known(b.tokens_MSJ[..., j]))
            correct = (a.correct_MSJ[..., i], b.correct_MSJ[..., j])
            out.append(_line(a.task, _named(a, name), correct, tokens, margin))
    if not a.asked and a.budgets and a.budgets == b.budgets:
        each = [statistics.anytime(t.correct_MSJ[..., :-1], t.budgets, "log") for t in (a, b)]
        out.append(_line(a.task, "anytime/log", (each[0], each[1]), None, margin))
    return out


def _named(table: Table, column: str) -> str:
    """The name that metrics have for the accuracy in this column."""
    if not table.asked:
        return f"accuracy@{column}"
    if table.mode == "effort":
        return f"effort/accuracy@{table.asked}"
    return f"prompt/{'soft_' if column == UNCUT else ''}accuracy@{table.asked}"


def _line(
    task: str,
    name: str,
    correct: tuple[Floats, Floats],
    tokens: tuple[Floats, Floats] | None,
    margin: float,
) -> Line:
    a_M, b_M = map(statistics.over_samples, correct)
    a, b = (metric.from_samples(side, statistics.SHARE) for side in correct)
    paired = statistics.paired(b_M, a_M)
    errors = [one.se_fixed for one in (a, b) if one.se_fixed is not None]
    fixed = math.hypot(*errors) if len(errors) == 2 else None
    samples = a.samples + b.samples
    difference = metric.over_problems(b_M - a_M, samples, fixed, statistics.CHANGE)
    ratio, cheaper = None, None
    if tokens is not None:
        before_M, after_M = map(statistics.over_samples, tokens)
        ratio = metric.of_means(statistics.ratio, tokens[1], tokens[0], shared=False)
        cheaper = claims.cheaper(after_M, before_M)
    worse = claims.not_worse(b_M, a_M, margin)
    p = paired.p_flip
    return Line(task, name, a, b, difference, paired.p_t, p, p, ratio, worse, cheaper)


def _corrected(lines: Sequence[Line]) -> list[Line]:
    """Holm over the tasks, for each name apart."""
    out = list(lines)
    for name in {line.name for line in lines}:
        at = [i for i, line in enumerate(lines) if line.name == name]
        for i, p in zip(at, claims.holm([lines[i].p_flip for i in at]), strict=True):
            out[i] = replace(lines[i], p_holm=float(p))
    return out


def _moved(a: Table, b: Table) -> Moved:
    rates = [statistics.over_samples(table.correct_MSJ[..., -1]) for table in (a, b)]
    change_M = rates[1] - rates[0]
    order = np.argsort(-np.abs(change_M), kind="stable")
    rows = [(a.ids_M[m], float(rates[0][m]), float(rates[1][m]), change_M[m]) for m in order]
    gained = [(name, was, now) for name, was, now, change in rows if change >= MOVED]
    lost = [(name, was, now) for name, was, now, change in rows if change <= -MOVED]
    return Moved(a.task, gained, lost)


def _cells(line: Line) -> list[str]:
    d, ratio = line.difference, line.tokens
    values = [number(line.name, line.a.value), number(line.name, line.b.value)]
    errors = ["-" if e is None else f"{e:.3f}" for e in (d.se_fixed, d.se_pop)]
    told = ["-", "-"] if ratio is None else [f"{ratio.value:.3f}", _interval(ratio, "")]
    tested = [_p(line.p_flip), _p(line.p_holm)]
    change = [f"{d.value:+.3f}", _interval(d, "+"), *errors, *tested]
    return [line.name, *values, *change, *told, line.verdict]


def _interval(found: Metric, sign: str) -> str:
    return "-" if math.isnan(found.low) else f"[{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def _p(p: float) -> str:
    return "-" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def _told(moved: Moved) -> str:
    def some(rows: Sequence[tuple[str, float, float]]) -> str:
        named = ", ".join(f"{name} ({was:.2f} to {now:.2f})" for name, was, now in rows[:LISTED])
        return f"{len(rows)}{': ' if rows else ''}{named}{', ...' if len(rows) > LISTED else ''}"

    return f"{moved.task}: gained {some(moved.gained)}\n{moved.task}: lost {some(moved.lost)}"


def _ratio_name(name: str) -> str:
    return name.replace("accuracy@", "tokens_ratio@")


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
