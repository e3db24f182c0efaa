"""Accuracy against requested budgets, and used against requested tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trainer.report import labels, style
from trainer.report.evaluation.models import UNASKED, Series
from trainer.report.evaluation.panels import (
    BARS,
    Budgets,
    Sheet,
    grid,
    kinds_key,
    line,
    point,
    share_axis,
    short,
)
from trainer.report.labels import Label
from trainer.report.style import Figure

PANELS = (
    ("cut at the budget, nothing announced", ("cut",)),
    ("announced", ("enforced", "announced")),
    ("effort asked for", ("effort",)),
)


def figures(sheet: Sheet) -> Iterator[Figure]:
    shown = [
        (heading, found)
        for heading, kinds in PANELS
        if (found := [s for m in sheet.models for s in m.series(sheet.task, *kinds)])
        and any(len(s.points) > 1 for s in found)
    ]
    if shown:
        count, names = len(shown), len(sheet.models)
        yield Figure(
            sheet.name("accuracy-budget"),
            "Accuracy against requested budget",
            f"{_told(shown)} Bands and bars: {BARS}. {sheet.measured()}",
            lambda canvas, narrow: _by_budget(canvas, narrow, shown),
            wide=(7.6, labels.height(names, 3.9) if count == 1 else 3.6 + 0.2 * -(-names // 4)),
            narrow=(3.9, labels.height(names, 3.5 if count == 1 else 0.6 + 2.9 * count, True)),
        )
    yield from _kept(sheet)


def _told(shown: Sequence[tuple[str, list[Series]]]) -> str:
    kinds = {s.experiment.kind for _, found in shown for s in found}
    told = {
        "cut": "Cut: nothing is announced; the thought of one run is cut at each budget and the "
        "model must answer.",
        "enforced": "Announced and enforced: the prompt names the budget, where the thought is "
        "cut.",
        "announced": "Announced alone: the same samples, not cut.",
        "effort": "Effort: the prompt asks for it; nothing is cut.",
    }
    return " ".join(text for kind, text in told.items() if kind in kinds)


def _by_budget(canvas: Any, narrow: bool, shown: Sequence[tuple[str, list[Series]]]) -> bool:
    """Panels side by side, one below the other on a narrow page."""
    count = len(shown)
    made = grid(canvas, count, 1 if narrow else count, sharey=not narrow)
    for k, (axes, (heading, found)) in enumerate(zip(made, shown, strict=True)):
        ends = (
            _efforts(axes, found) if found[0].experiment.kind == "effort" else _budgets(axes, found)
        )
        share_axis(axes, "" if k and not narrow else "accuracy")
        if count > 1:
            axes.set_title(heading, loc="left", fontsize=9.5, color=style.INK)
        else:
            labels.column(axes, max((end.x for end in ends), default=0.0), ends)
    if count > 1:
        _models_key(canvas, [s for _, found in shown for s in found])
    kinds = list(dict.fromkeys(s.experiment.kind for _, found in shown for s in found))
    kinds_key(canvas, [k for k in kinds if k in ("enforced", "announced")])
    return True


def _budgets(axes: Any, found: Sequence[Series]) -> list[Label]:
    scale = Budgets([p for s in found for p in s.points])
    soft = {s.model.name for s in found if s.experiment.kind == "enforced"}
    ends = []
    for series in found:
        twice = series.experiment.kind == "announced" and series.model.name in soft
        ends.append((twice, line(axes, series, scale.x(series.points), band=not twice)))
    scale.ticks(axes)
    axes.set_xlabel("thinking budget, tokens")
    return [end for twice, end in ends if not twice and not math.isnan(end.y)]


def _efforts(axes: Any, found: Sequence[Series]) -> list[Label]:
    names = list(dict.fromkeys(p.name for s in found for p in s.points))
    shift = np.linspace(-0.12, 0.12, len(found)) if len(found) > 1 else [0.0]
    ends = []
    for offset, series in zip(shift, found, strict=True):
        x = np.array([names.index(p.name) + offset for p in series.points])
        asked = [p.accuracy.value for p in series.points if p.name != UNASKED]
        axes.plot(x[: len(asked)], asked, **{**series.look, "marker": ""})
        for at, p in zip(x, series.points, strict=True):
            point(axes, at, p.accuracy, series.look, 6.5)
        last = series.points[-1].accuracy.value
        ends.append(Label(short(series.model.name), series.model.colour, x[-1], last, series.look))
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.4, len(names) - 0.6)
    axes.set_xlabel("effort")
    return ends


def _models_key(canvas: Any, found: Sequence[Series]) -> None:
    from matplotlib.lines import Line2D

    models = {s.model.name: s.model for s in found}
    if len(models) < 2:
        return
    handles = [
        Line2D([], [], color=m.colour, marker=m.marker, markersize=5.5, lw=1.5,
               linestyle=(0, (4, 2)) if m.baseline else "-")
        for m in models.values()
    ]  # fmt: skip
    names = [short(m.name) for m in models.values()]
    canvas.legend(
        handles, names, loc="outside upper left", frameon=False, fontsize=9.5, handlelength=2.2,
        ncols=2 if canvas.get_figwidth() < labels.NARROW else 4,
        labelcolor=[m.colour for m in models.values()],
    )  # fmt: skip


def _kept(sheet: Sheet) -> Iterator[Figure]:
    """Requested against used, where numbers were announced."""
    found = [s for m in sheet.models for s in m.series(sheet.task, "announced")]
    if not found:
        return
    yield Figure(
        sheet.name("requested-used"),
        "Requested and used thinking tokens",
        "Budgets announced in the prompt and not enforced. Markers: median of all samples; bars: "
        f"10th to 90th percentile; line: used as requested. {sheet.measured()}",
        lambda canvas, _: _calibration(canvas, found),
        wide=(7.6, labels.height(len(found), 4.2)),
        narrow=(3.9, labels.height(len(found), 3.9, narrow=True)),
    )


def _calibration(canvas: Any, found: Sequence[Series]) -> bool:
    finite = [p for s in found for p in s.points if math.isfinite(p.budget)]
    if not finite:
        return False
    axes, scale = canvas.add_subplot(), Budgets([p for s in found for p in s.points])
    floor = 2.0 ** min(scale.places.values())
    wide = scale.last - min(scale.places.values()) or 1.0
    shift = np.linspace(-0.012, 0.012, len(found)) * wide if len(found) > 1 else [0.0]
    ends = []
    for offset, series in zip(shift, found, strict=True):
        quantiles = np.array([_used(p.digest.lengths_MS) for p in series.points])
        low, middle, high = np.log2(np.maximum(quantiles, floor)).T
        x, look = scale.x(series.points) + offset, series.look
        told = np.array([math.isfinite(p.budget) for p in series.points])
        axes.vlines(x, low, high, color=look["color"], lw=1.6, alpha=0.55)
        axes.plot(x[told], middle[told], **look)
        axes.plot(x[~told], middle[~told], **{**look, "linestyle": ""})
        ends.append(Label(short(series.model.name), look["color"], x[-1], middle[-1], look))
    at = [scale.places[b] for b in scale.finite]
    axes.plot([min(at), max(at)], [min(at), max(at)], color=style.INK, lw=0.9, alpha=0.55, zorder=1)
    scale.ticks(axes)
    low, high = axes.get_ylim()
    marks = [(0, math.log2(floor))] if 0 in scale.finite else []
    first = math.ceil(math.log2(floor) + 0.5) if marks else math.ceil(low)
    marks += [(2**e, float(e)) for e in range(first, math.floor(high) + 1)]
    axes.set_yticks([y for _, y in marks], [f"{n}" for n, _ in marks])
    axes.set_xlabel("requested thinking tokens")
    axes.set_ylabel("used thinking tokens")
    axes.grid(axis="x")
    labels.column(axes, scale.last + max(shift), ends)
    return True


def _used(lengths_MS: np.ndarray) -> np.ndarray:
    """10th, 50th and 90th percentile of all samples."""
    there = lengths_MS[lengths_MS >= 0]
    return np.quantile(there, [0.1, 0.5, 0.9]) if there.size else np.full(3, np.nan)
