"""One table of arms: means over seeds, 95% intervals, paired tests between arms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.eval import statistics
from trainer.eval.statistics import Comparison, Estimate
from trainer.report.data import Arm, Evaluation, arms, base_of, pooled, read_run

HEADLINE = {"accuracy": "accuracy", "think_tokens/mean": "thinking tokens", "anytime": "any-time"}
"""Metrics that arms are compared by."""


@dataclass(frozen=True)
class Line:
    """One arm (or the base) of the table."""

    name: str
    seeds: int
    cells: dict[str, Estimate]


@dataclass(frozen=True)
class Contrast:
    """later - earlier, for one headline metric."""

    later: str
    earlier: str
    metric: str
    units: str
    result: Comparison


def columns(found: Sequence[Arm], base: Evaluation | None) -> dict[str, str]:
    """Metric -> heading: the headline, then accuracy at each budget that all have."""
    evaluations = [e for arm in found for e in arm.finals] + ([base] if base else [])
    shared = set.intersection(*(set(e.budgets) for e in evaluations)) if evaluations else set()
    return HEADLINE | {f"accuracy@{b}": f"@{b}" for b in sorted(shared)}


def lines(found: Sequence[Arm], base: Evaluation | None) -> list[Line]:
    wanted = columns(found, base)
    out = [Line("base", 1, {m: base.estimate(m) for m in wanted})] if base else []
    for arm in found:
        if arm.finals:
            cells = {m: pooled(arm.finals, m) for m in wanted}
            out.append(Line(arm.name, len(arm.finals), cells))
    return out


def contrasts(found: Sequence[Arm]) -> list[Contrast]:
    """Every pair of arms: paired by seed where two or more are shared, else by problem."""
    out = []
    for earlier, later in itertools.combinations(found, 2):
        for metric in HEADLINE:
            paired = _paired(earlier, later, metric)
            if paired is not None:
                units, result = paired
                out.append(Contrast(later.name, earlier.name, metric, units, result))
    return out


def summary_table(runs: Sequence[Path], base: Path | None = None) -> str:
    """The table as text for a console."""
    found = arms(read_run(path) for path in runs)
    start = base_of(found, base)
    rows = lines(found, start)
    budgets = [metric for metric in columns(found, start) if metric not in HEADLINE]
    headline = [
        [row.name, str(row.seeds), *(cell(row.cells[m], m) for m in HEADLINE)] for row in rows
    ]
    text = _align([["arm", "seeds", *HEADLINE.values()], *headline])
    if budgets and rows:
        # Budgets downwards: a terminal has more lines than columns.
        by_budget = [[m.split("@")[1], *(cell(row.cells[m], m) for row in rows)] for m in budgets]
        text += ["", *_align([["accuracy at budget", *(row.name for row in rows)], *by_budget])]
    text.append(interval_note(found))
    compared = contrasts(found)
    if compared:
        text += ["", *_align([CONTRAST_HEADS, *map(contrast_cells, compared)])]
    return "\n".join(text)


def cell(estimate: Estimate, metric: str) -> str:
    """0.957 +-0.012, or 28.3 +-1.9 for tokens."""
    if math.isnan(estimate.value):
        return "-"
    digits = 1 if "tokens" in metric else 3
    text = f"{estimate.value:.{digits}f}"
    if math.isnan(estimate.half_width):
        return text
    return f"{text} +-{estimate.half_width:.{digits}f}"


CONTRAST_HEADS = ["paired", "metric", "difference", "95% interval", "p (t)", "p (flip)", "pairs"]


def contrast_cells(contrast: Contrast) -> list[str]:
    digits = 1 if "tokens" in contrast.metric else 3
    d = contrast.result.difference
    interval = "-" if math.isnan(d.low) else f"{d.low:+.{digits}f} to {d.high:+.{digits}f}"
    return [
        f"{contrast.later} - {contrast.earlier}",
        HEADLINE[contrast.metric],
        f"{d.value:+.{digits}f}",
        interval,
        p_value(contrast.result.p_t),
        p_value(contrast.result.p_flip),
        contrast.units,
    ]


def interval_note(found: Sequence[Arm]) -> str:
    counts = {len(arm.finals) for arm in found} - {0}
    if counts == {1}:
        return "+-: 95% t interval over problems (one seed: it says nothing about other seeds)"
    return "+-: 95% t interval over seeds; over problems where there is one seed, and for the base"


def p_value(p: float) -> str:
    if math.isnan(p):
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _paired(earlier: Arm, later: Arm, metric: str) -> tuple[str, Comparison] | None:
    before = {run.seed: run.final for run in earlier.runs if run.final}
    after = {run.seed: run.final for run in later.runs if run.final}
    seeds = sorted(before.keys() & after.keys())
    if len(seeds) > 1:
        a = [after[s].estimate(metric).value for s in seeds]
        b = [before[s].estimate(metric).value for s in seeds]
        units = f"{len(seeds)} seeds"
    elif before and after:
        one = after[min(seeds or after)].per_problem(metric)
        other = before[min(seeds or before)].per_problem(metric)
        shared = sorted(one.keys() & other.keys())
        a, b = [one[i] for i in shared], [other[i] for i in shared]
        units = f"{len(shared)} problems"
    else:
        return None
    result = statistics.paired(a, b)
    return None if math.isnan(result.difference.value) else (units, result)


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-justified first column, right-justified others, two spaces between."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
