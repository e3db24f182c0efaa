"""Stacked bars per budget or effort: tokens of thought and answer, and how samples ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trainer.report import style
from trainer.report.evaluation.digest import KINDS, mean_columns
from trainer.report.evaluation.models import EXPERIMENTS, Experiment, Kind, Point, Series
from trainer.report.evaluation.panels import RIGHT, WRONG, Sheet, grid, share_axis, split, title
from trainer.report.style import Figure

INFINITY = "\u221e"
COLOURS: Mapping[str, tuple[str, float]] = {
    "right": (RIGHT, 0.95),
    "right, forced": (RIGHT, 0.45),
    "wrong, forced": (WRONG, 0.45),
    "wrong": (WRONG, 0.95),
    "unparseable": (style.SERIES[6], 0.9),
    "repeated itself": (style.SERIES[3], 0.9),
    "no room to answer": (style.SERIES[4], 0.9),
    "no answer": (style.MUTED, 0.75),
    "verdict unknown": (style.RULE, 1.0),
}
"""Colour and opacity, from the bottom of a bar upwards."""
assert set(COLOURS) == set(KINDS)


def figures(sheet: Sheet) -> Iterator[Figure]:
    for kind, experiment in EXPERIMENTS.items():
        every = [s for m in sheet.models for s in m.series(sheet.task, kind)]
        yield from _of_kind(sheet, every, experiment)


def _of_kind(sheet: Sheet, every: Sequence[Series], kind: Experiment) -> Iterator[Figure]:
    """Thoughts that are announced and enforced say nothing of leaks: only how they ended."""
    which = "" if kind.kind == "cut" else f"-{kind.kind}"

    def tokens(some: Sequence[Series], number: str) -> Figure:
        return Figure(
            sheet.name(f"think-answer{which}{number}"),
            f"Tokens of thought and answer, {kind.title}",
            "Mean tokens of a sample, thought below and answer on top; \u221e: without a limit. "
            "Where budgets are announced nothing is cut here: an answer that grows as the thought "
            f"shrinks is thinking that moved behind the end marker. {sheet.measured()}",
            lambda canvas, narrow: _panels(canvas, narrow, some, _tokens),
            **_size(len(some)),
        )

    def ended(some: Sequence[Series], number: str) -> Figure:
        return Figure(
            sheet.name(f"ended{which}{number}"),
            f"How samples ended, {kind.title}",
            "Share of samples, mean over problems; \u221e: without a limit. Forced: the "
            "thought was closed at the budget. No room to answer: the response met its cap within "
            f"the thought. {sheet.measured()}",
            lambda canvas, narrow: _panels(canvas, narrow, some, _ended),
            **_size(len(some), 0.45),
        )

    if kind.kind != "enforced":
        yield from split(every, tokens)
    yield from split(every, ended)


def _size(count: int, more: float = 0.25) -> dict[str, Any]:
    return {"wide": (7.6, 2.9 + more), "narrow": (3.9, 0.7 + more + 2.3 * count)}


def _panels(canvas: Any, narrow: bool, some: Sequence[Series], draw: Any) -> bool:
    made = grid(canvas, len(some), 1 if narrow else len(some), sharey=True)
    shown: dict[str, tuple[str, float]] = {}
    for k, (axes, series) in enumerate(zip(made, some, strict=True)):
        shown |= draw(axes, series)
        title(axes, series.model)
        points = series.points
        wide = (canvas.get_figwidth() - 0.8) / (1 if narrow else len(some))
        _names(axes, points, wide)
        axes.set_xlabel(
            _what(series.experiment.kind) if narrow is False or axes is made[-1] else ""
        )
        if k and not narrow:
            axes.set_ylabel("")
    _key(canvas, shown, narrow)
    return True


def _what(kind: Kind) -> str:
    return {"effort": "effort", "announced": "announced thinking tokens"}.get(
        kind, "thinking budget, tokens"
    )


def _names(axes: Any, points: Sequence[Point], inches: float) -> None:
    """Every bar's name where they fit, else every second's."""
    names = [INFINITY if p.name == "inf" else p.name for p in points]
    room = inches / max(len(names), 1) / 0.075
    step = max(1, math.ceil((max(map(len, names)) + 0.6) / room))
    last = len(names) - 1
    kept = [i for i in range(len(names)) if (last - i) % step == 0]
    axes.set_xticks(kept, [names[i] for i in kept])


def _tokens(axes: Any, series: Series) -> dict[str, tuple[str, float]]:
    at = np.arange(len(series.points))
    think, answer = (
        np.array([mean_columns(values(p))[p.column] for p in series.points])
        for values in (lambda p: p.digest.think_MJ, lambda p: p.digest.answer_MJ)
    )
    axes.bar(at, think, 0.78, color=series.model.colour, alpha=0.85, lw=0)
    axes.bar(at, answer, 0.78, bottom=think, color=series.model.colour, alpha=0.38, lw=0)
    axes.set_ylabel("tokens")
    return {"thought": (style.MUTED, 0.85), "answer": (style.MUTED, 0.38)}


def _ended(axes: Any, series: Series) -> dict[str, tuple[str, float]]:
    shares = np.array([p.digest.kinds_JK[p.column] for p in series.points])
    at, floor = np.arange(len(series.points)), np.zeros(len(series.points))
    shown = {}
    for name, (colour, alpha) in COLOURS.items():
        share = np.nan_to_num(shares[:, KINDS.index(name)])
        if share.any():
            axes.bar(at, share, 0.86, bottom=floor, color=colour, alpha=alpha, lw=0)
            shown[name] = (colour, alpha)
        floor = floor + share
    share_axis(axes, "share of samples")
    axes.grid(False)
    return shown


def _key(canvas: Any, shown: Mapping[str, tuple[str, float]], narrow: bool) -> None:
    from matplotlib.patches import Patch

    order = [name for name in COLOURS if name in shown] or list(shown)
    handles = [Patch(color=shown[name][0], alpha=shown[name][1], lw=0) for name in order]
    canvas.legend(
        handles, order, loc="outside lower left", ncols=2 if narrow else 6, frameon=False,
        fontsize=9, handlelength=1.1, labelcolor=style.MUTED, columnspacing=1.2,
    )  # fmt: skip
