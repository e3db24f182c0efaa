"""What figures of an evaluation have in common: panels, budgets on an axis, words about bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from trainer.eval.statistics import Estimate
from trainer.report import labels, plots, style
from trainer.report.evaluation.models import EXPERIMENTS, Model, Point, Series
from trainer.report.labels import Label
from trainer.report.style import Figure

T = TypeVar("T")
RIGHT, WRONG = style.SERIES[2], style.SERIES[1]
PER = 3
"""Panels of models in one figure; the others come in further figures."""
BARS = "95% intervals over problems"


@dataclass(frozen=True)
class Sheet:
    """What the figures of one task are made of."""

    task: str
    models: tuple[Model, ...]
    prefix: str = ""
    """Of names of figures, where there are other tasks."""

    @property
    def baseline(self) -> Model | None:
        return next((m for m in self.models if m.baseline), None)

    def name(self, what: str) -> str:
        """Of a figure and its files."""
        return self.prefix + what

    def measured(self) -> str:
        """How much was measured, for captions."""
        found = [d for m in self.models for d in m.of(self.task)]
        problems = span([len(d.ids_M) for d in found])
        samples = span([d.most for d in found])
        plural = "" if samples == "1" else "s"
        return f"{problems} problem{'' if problems == '1' else 's'}, {samples} sample{plural} each."


def span(values: Sequence[int]) -> str:
    low, high = min(values, default=0), max(values, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def split(models: Sequence[T], make: Callable[[Sequence[T], str], Figure]) -> Iterator[Figure]:
    """Figures of a few models each, as many in all; numbered from the second on."""
    count, first = -(-len(models) // PER), 0
    for i in range(count):
        last = first + -(-(len(models) - first) // (count - i))
        yield make(models[first:last], "" if not i else f"-{i + 1}")
        first = last


def grid(canvas: Any, count: int, columns: int, **how: Any) -> list[Any]:
    """`count` axes, row by row, in so many columns."""
    rows = -(-count // columns)
    canvas.get_layout_engine().set(h_pad=0.07, w_pad=0.06)
    made = canvas.subplots(rows, columns, squeeze=False, **how)
    for axes in made.flat[count:]:
        axes.set_visible(False)
    return list(made.flat[:count])


def title(axes: Any, model: Model) -> None:
    """The model's name in its colour over a panel."""
    wide = axes.figure.get_figwidth()
    room = int((wide - 0.6) * 12 / axes.get_subplotspec().get_gridspec().ncols)
    axes.set_title(short(model.name, room), loc="left", color=model.colour, fontsize=9.5)


def short(name: str, room: int = 34) -> str:
    """The middle of a long name is left out."""
    if len(name) <= room:
        return name
    last = max(1, (room - 2) // 3)
    return f"{name[: max(1, room - 2 - last)]}..{name[-last:]}"


class Budgets:
    """A log2 axis of budgets: 0 an octave below the smallest other one, no limit beyond."""

    def __init__(self, points: Sequence[Point]) -> None:
        finite = sorted({p.budget for p in points if math.isfinite(p.budget)})
        self.finite = [int(b) for b in finite]
        self.free = any(math.isinf(p.budget) for p in points)
        at = plots.octaves(self.finite) if finite else np.zeros(0)
        self.places = dict(zip(finite, at.tolist(), strict=True))
        last = float(at[-1]) if at.size else 0.0
        wide = last - float(at[0]) if at.size else 0.0
        if self.free:
            self.places[math.inf] = last + max(1.0, 0.1 * wide) if finite else 0.0

    @property
    def last(self) -> float:
        return max(self.places.values(), default=0.0)

    def x(self, points: Sequence[Point]) -> np.ndarray:
        return np.array([self.places[p.budget] for p in points])

    def ticks(self, axes: Any) -> None:
        """Labels that do not touch: as many as there is room for, the ends always."""
        ncols = axes.get_subplotspec().get_gridspec().ncols
        inches = (axes.figure.get_figwidth() - 1.0) / ncols
        wide = max(self.last - min(self.places.values(), default=0.0), 1.0)
        kept: list[int] = []
        for budget in reversed(self.finite):
            gap = (self.places[kept[-1]] - self.places[budget]) / wide * inches if kept else 9.0
            if gap >= 0.34 + 0.06 * max(0, len(f"{budget}") - 3):
                kept.append(budget)
        kept = kept[::-1]
        at, text = [self.places[b] for b in kept], [f"{b}" for b in kept]
        if self.free:
            at, text = [*at, self.places[math.inf]], [*text, "no\nlimit"]
        axes.set_xticks(at, text)


def line(axes: Any, series: Series, x: np.ndarray, band: bool = True) -> Label:
    """Accuracies of a series with their band; the uncut point stands apart, with a bar."""
    y = np.array([p.accuracy.value for p in series.points])
    low, high = (np.array([getattr(p.accuracy, k) for p in series.points]) for k in ("low", "high"))
    look = series.look
    cut = np.array([math.isfinite(p.budget) for p in series.points])
    if band:
        axes.fill_between(x[cut], low[cut], high[cut], color=look["color"], alpha=0.13, lw=0)
    axes.plot(x[cut], y[cut], **look)
    for i in np.flatnonzero(~cut):
        link = {**look, "marker": "", "linewidth": 1, "linestyle": (0, (1, 2))}
        before = np.flatnonzero(cut)[-1:]
        axes.plot(x[[*before, i]], y[[*before, i]], **link)
        point(axes, x[i], series.points[i].accuracy, look)
    last = np.flatnonzero(~np.isnan(y))[-1:]
    at = (float(x[last][0]), float(y[last][0])) if last.size else (math.nan, math.nan)
    return Label(short(series.model.name), look["color"], *at, look)


def point(axes: Any, x: float, y: Estimate, look: dict[str, Any], size: float = 7.5) -> None:
    """A large marker with the bar of its interval."""
    if not math.isnan(y.low):
        axes.vlines(x, y.low, y.high, color=look["color"], lw=1.4, alpha=0.8)
    axes.plot([x], [y.value], **{**look, "markersize": size, "linestyle": "", "zorder": 4})


def share_axis(axes: Any, name: str = "accuracy") -> None:
    axes.set_ylabel(name)
    axes.set_ylim(0, 1.02)
    axes.set_yticks(np.arange(0, 1.01, 0.2))


def kinds_key(canvas: Any, kinds: Sequence[str], where: str = "outside lower left") -> None:
    """What the strokes mean, where there are several."""
    from matplotlib.lines import Line2D

    if len(kinds) < 2:
        return
    handles = []
    for kind in kinds:
        found = EXPERIMENTS[kind]  # type: ignore[index]
        face = style.MUTED if found.filled else style.PAPER
        handles.append(
            Line2D([], [], color=style.MUTED, linestyle=found.line, marker="o", lw=1.5,
                   markersize=5, markerfacecolor=face, markeredgecolor=style.MUTED)
        )  # fmt: skip
    names = [EXPERIMENTS[kind].title for kind in kinds]  # type: ignore[index]
    columns = 2 if canvas.get_figwidth() < labels.NARROW else 4
    canvas.legend(
        handles, names, loc=where, ncols=columns, frameon=False, fontsize=9,
        handlelength=2.8, labelcolor=style.MUTED,
    )  # fmt: skip
