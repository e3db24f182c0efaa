"""One table of arms: means over seeds, 95% intervals, paired tests between arms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.eval import statistics
from trainer.eval.statistics import Comparison, Estimate
from trainer.report import asked, tokens
from trainer.report.data import Arm, Evaluation, base_of, bases, pooled, read_arms
from trainer.report.options import Options

HEADLINE = {
    "accuracy": "accuracy",
    "think_tokens/mean": "thinking tokens",
    "anytime": "any-time",
    "cap_area": "area",
}
"""Metrics that arms are compared by."""
NOTHING = Options()
BESIDE = 8
"""Arms beside one another in the printed table."""


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


def headline(options: Options = NOTHING) -> dict[str, str]:
    """Metric -> heading of what arms are compared by."""
    return HEADLINE | {metric: metric for metric in options.show if metric not in HEADLINE}


def columns(
    found: Sequence[Arm], base: Evaluation | None, options: Options = NOTHING
) -> dict[str, str]:
    """Metric -> heading: the headline, then accuracy at each budget that all have."""
    evaluations = [e for arm in found for e in arm.finals] + ([base] if base else [])
    shared = set.intersection(*(set(e.budgets) for e in evaluations)) if evaluations else set()
    return headline(options) | {f"accuracy@{b}": f"@{b}" for b in sorted(shared)}


def lines(found: Sequence[Arm], base: Evaluation | None, options: Options = NOTHING) -> list[Line]:
    wanted = columns(found, base, options)
    out = [Line("base", 1, {m: base.estimate(m) for m in wanted})] if base else []
    known = {run.origin for arm in found for run in arm.runs if base and run.base is base}
    for arm in found:
        began = bases(found, base).get(arm.name)
        if began is not None and began is not base and arm.runs[0].origin not in known:
            known.add(arm.runs[0].origin)
            cells = {m: began.estimate(m) for m in wanted}
            out.append(Line(f"base of {arm.name}", 1, cells))
    for arm in found:
        if arm.finals:
            cells = {m: pooled(arm.finals, m) for m in wanted}
            out.append(Line(arm.name, len(arm.finals), cells))
    return out


def contrasts(found: Sequence[Arm], options: Options = NOTHING) -> list[Contrast]:
    """Every pair of arms, or all with one: paired by seed where two or more are shared, else by
    problem."""
    out = []
    opposite = options.opposite([arm.name for arm in found])
    one = [arm for arm in found if arm.name == opposite]
    for earlier, later in (
        [(one[0], arm) for arm in found if arm is not one[0]]
        if one
        else itertools.combinations(found, 2)
    ):
        for metric in headline(options):
            paired = _paired(earlier, later, metric)
            if paired is not None:
                units, result = paired
                out.append(Contrast(later.name, earlier.name, metric, units, result))
    return out


def summary_table(
    runs: Sequence[Path], base: Path | None = None, options: Options = NOTHING
) -> str:
    """The table as text for a console.

    Raises:
        ValueError: a folder is no run, or what `options` name is not there.
    """
    found = read_arms(runs, options)
    start = base_of(found, base)
    rows, heads = lines(found, start, options), headline(options)
    budgets = [metric for metric in columns(found, start, options) if metric not in heads]
    first = [[row.name, str(row.seeds), *(cell(row.cells[m], m) for m in heads)] for row in rows]
    text = _align([["arm", "seeds", *heads.values()], *first])
    if budgets and rows:
        # Budgets downwards: a terminal has more lines than columns.
        by_budget = [[m.split("@")[1], *(cell(row.cells[m], m) for row in rows)] for m in budgets]
        for some in _blocks(rows):
            cells = [[line[0], *(line[1:][i] for i in some)] for line in by_budget]
            names = ["accuracy at budget", *(rows[i].name for i in some)]
            text += ["", *_align([names, *cells])]
    text.append(interval_note(found))
    for cells in asked_tables(found):
        text += ["", *_align(cells)]
    for title, cells in token_tables(found, options):
        text += ["", title, *_align(cells)]
    if options.of_tokens:
        text += tokens.notes(found)
    compared = contrasts(found, options)
    if compared:
        text += ["", *_align([CONTRAST_HEADS, *map(contrast_cells, compared)])]
    return "\n".join(text)


def asked_tables(found: Sequence[Arm]) -> list[list[list[str]]]:
    """Each mode or number that was asked for, and how well numbers were kept: heads, then cells."""
    each = [
        [_began(line), line.name, *(cell(line.cells[m], m) for m in asked.CELLS)]
        for line in asked.lines(found)
    ]
    kept = [
        [_began(line), *(cell(line.cells[m], m) for m in asked.KEPT)] for line in asked.kept(found)
    ]
    tables = [
        [["asked for", "", *asked.CELLS.values()], *each],
        [["asked and used", *asked.KEPT.values()], *kept],
    ]
    return [table for table in tables if table[1:]]


def token_tables(found: Sequence[Arm], options: Options) -> list[tuple[str, list[list[str]]]]:
    """What was asked about generated tokens: title, then heads and cells."""
    out = []
    for block in tokens.blocks(found, options):
        head = ["arm", "seeds", "mean", f"less {block.against}", *CONTRAST_HEADS[3:]]
        cells = [_token_cells(line, block.digits) for line in block.lines]
        out.append((block.title, [head, *cells]))
    return out


def _token_cells(line: tokens.Line, digits: int) -> list[str]:
    value, contrast = line.value, line.contrast
    mean = line.missing or f"{value.value:,.{digits}f}"
    if not math.isnan(value.half_width):
        mean += f" +-{value.half_width:,.{digits}f}"
    rest = ["-"] * 5 if contrast is None else _tested(contrast, digits)
    return [line.name, str(line.seeds), mean, *rest]


def _tested(result: Comparison, digits: int) -> list[str]:
    d = result.difference
    interval = "-" if math.isnan(d.low) else f"{d.low:+,.{digits}f} to {d.high:+,.{digits}f}"
    return [
        f"{d.value:+,.{digits}f}",
        interval,
        p_value(result.p_t),
        p_value(result.p_flip),
        f"{d.n} seeds",
    ]


def _began(line: asked.Asked | asked.Kept) -> str:
    return f"{line.arm}, at its start" if line.base else line.arm


def _blocks(rows: Sequence[Line]) -> list[range]:
    """Columns of one table after the other: as many as a wide terminal shows."""
    return [range(i, min(i + BESIDE, len(rows))) for i in range(0, len(rows), BESIDE)]


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
    difference = _tested(contrast.result, 1 if "tokens" in contrast.metric else 3)[:-1]
    return [
        f"{contrast.later} - {contrast.earlier}",
        HEADLINE.get(contrast.metric, contrast.metric),
        *difference,
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
    before, after = _measured(earlier, metric), _measured(later, metric)
    seeds = sorted(before.keys() & after.keys())
    if len(seeds) > 1:
        a = [after[s].estimate(metric).value for s in seeds]
        b = [before[s].estimate(metric).value for s in seeds]
        units = f"{len(seeds)} seeds"
    elif before and after and metric in HEADLINE and _same_problems(earlier, later):
        one = after[min(seeds or after)].per_problem(metric)
        other = before[min(seeds or before)].per_problem(metric)
        shared = sorted(one.keys() & other.keys())
        a, b = [one[i] for i in shared], [other[i] for i in shared]
        units = f"{len(shared)} problems"
    else:
        return None
    result = statistics.paired(a, b)
    return None if math.isnan(result.difference.value) else (units, result)


def _measured(arm: Arm, metric: str) -> dict[int, Evaluation]:
    """Last evaluations by seed, of those that have the metric."""
    finals = {run.seed: run.final for run in arm.runs if run.final}
    return {s: e for s, e in finals.items() if not math.isnan(e.estimate(metric).value)}


def _same_problems(earlier: Arm, later: Arm) -> bool:
    """Problems of other data may have the same ids."""
    return earlier.runs[0].problems == later.runs[0].problems


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
