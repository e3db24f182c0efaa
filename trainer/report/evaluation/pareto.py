"""Accuracy against realised tokens: every model, budget and effort, and what none of them beats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.eval.statistics import Estimate
from trainer.report import labels, style
from trainer.report.evaluation.models import UNASKED, Model, Point, Series
from trainer.report.evaluation.panels import BARS, Sheet, kinds_key, share_axis, short
from trainer.report.labels import Label
from trainer.report.style import Figure

NAMES = 12
"""More efforts and rules than this are not named."""
WIDE_RANGE = 6.0
"""A logarithmic axis where the most tokens are more than so many times the least."""


def figures(sheet: Sheet) -> Iterator[Figure]:
    found = [s for m in sheet.models for s in m.series(sheet.task)]
    found = [s for s in found if any(_known(p) for p in s.points)]
    exits = [x for m in sheet.models for x in _exits(m, sheet.task)]
    ended = "Stars: thoughts ended by a stopping rule, offline on the cuts. " if exits else ""
    if found:
        yield Figure(
            sheet.name("pareto"),
            "Accuracy against tokens",
            "Mean tokens of thought and answer at each budget or effort; large markers: without a "
            f"limit. Bars: {BARS}, both ways. Grey steps: the frontier, what no measured point "
            f"beats in both. {ended}Dotted: equal tokens per solve (tokens / accuracy); dashed: "
            f"equal E3 (accuracy squared / tokens, per 1,000 tokens). {sheet.measured()}",
            lambda canvas, narrow: _draw(canvas, narrow, found, exits),
            wide=(7.6, 4.9),
            narrow=(3.9, 4.3),
        )


@dataclass(frozen=True)
class Exit:
    """A stopping rule, as saved thoughts tell it."""

    model: Model
    name: str
    accuracy: Estimate
    tokens: Estimate


def _exits(model: Model, task: str) -> Iterator[Exit]:
    """Of each rule that ended any thought."""
    first = f"{task}/stop/"
    for name in model.metrics:
        if name.startswith(first) and name.endswith("/exited") and model.estimate(name).value > 0:
            rule = name.removesuffix("/exited")
            both = (model.estimate(f"{rule}/{what}") for what in ("accuracy", "tokens"))
            yield Exit(model, rule.removeprefix(first), *both)


def _known(p: Point | Exit) -> bool:
    return bool(np.isfinite([p.accuracy.value, p.tokens.value]).all() and p.tokens.value > 0)


def _draw(canvas: Any, narrow: bool, found: Sequence[Series], exits: Sequence[Exit]) -> bool:
    axes = canvas.add_subplot()
    every: list[Point | Exit] = [*(p for s in found for p in s.points), *exits]
    points = [p for p in every if _known(p)]
    spent = np.array([p.tokens.value for p in points])
    logarithmic = spent.max() > WIDE_RANGE * spent.min()
    if logarithmic:
        axes.set_xscale("log")
    left, right = _limits(points, logarithmic)
    axes.set_xlim(left, right)
    share_axis(axes)
    highest = max(np.nanmax([p.accuracy.value, p.accuracy.high]) for p in points)
    axes.set_ylim(0, max(min(1.02, highest + 0.06), 0.2))
    _contours(axes, points, 2 if narrow else 3)
    _frontier(axes, points, right)
    axes.grid(False)
    axes.set_xlabel("tokens of thought and answer, mean per sample")
    if logarithmic:
        _ticks(axes, left, right, narrow)
    named = [_series(axes, series, len(found)) for series in found]
    ends = list({end.name: end for end in reversed(named) if end}.values())  # each model once
    if len(ends) > labels.FEW:
        labels.key(axes, ends)
        ends = []
    texts = [text for series in found for text in _efforts(series)]
    texts += [_star(axes, one) for one in exits if _known(one)]
    labels.beside(axes, [*ends, *(texts if len(texts) <= NAMES else [])])
    kinds_key(canvas, list(dict.fromkeys(s.experiment.kind for s in found)))
    return True


def _limits(points: Sequence[Point | Exit], logarithmic: bool) -> tuple[float, float]:
    low = min(p.tokens.value for p in points)
    high = max(np.nanmax([p.tokens.value, p.tokens.high]) for p in points)
    return (low / 1.25, high * 1.35) if logarithmic else (0.0, high * 1.12)


def _series(axes: Any, series: Series, count: int) -> Label | None:
    points = [p for p in series.points if _known(p)]
    if not points:
        return None
    look = series.look
    for p in points:
        _cross(axes, p, look["color"], 0.5 if count <= labels.FEW else 0.25)
    linked = [p for p in points if p.name != UNASKED]
    x, y = _places(linked)
    axes.plot(x, y, **{**look, "linewidth": 1.5})
    for p in points:
        if not math.isfinite(p.budget):
            size = 8.5 if math.isinf(p.budget) or p.name == UNASKED else 6.5
            large = {**look, "markersize": size, "linestyle": "", "zorder": 4}
            axes.plot([p.tokens.value], [p.accuracy.value], **large)
    x, y = _places(points)
    return Label(short(series.model.name), look["color"], x[-1], y[-1], look)


def _places(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [p.tokens.value for p in points], [p.accuracy.value for p in points]


def _cross(axes: Any, p: Point | Exit, colour: str, alpha: float) -> None:
    """Intervals both ways."""
    x, y = p.tokens, p.accuracy
    if not np.isnan([x.low, x.high]).any():
        axes.hlines(y.value, x.low, x.high, color=colour, lw=1.0, alpha=alpha)
    if not np.isnan([y.low, y.high]).any():
        axes.vlines(x.value, y.low, y.high, color=colour, lw=1.0, alpha=alpha)


def _efforts(series: Series) -> list[Label]:
    """Names of the points of efforts."""
    return [
        Label(p.name, series.model.colour, p.tokens.value, p.accuracy.value)
        for p in series.points
        if math.isnan(p.budget) and p.name != UNASKED and _known(p)
    ]


def _star(axes: Any, one: Exit) -> Label:
    _cross(axes, one, one.model.colour, 0.4)
    x, y = one.tokens.value, one.accuracy.value
    look = {"marker": "*", "markersize": 11, "markeredgecolor": style.PAPER, "zorder": 4}
    axes.plot([x], [y], color=one.model.colour, linestyle="", markeredgewidth=0.8, **look)
    return Label(one.name, one.model.colour, x, y)


def _frontier(axes: Any, points: Sequence[Point | Exit], right: float) -> None:
    """Steps: the best accuracy measured with so many tokens or fewer."""
    best = frontier([(p.tokens.value, p.accuracy.value) for p in points])
    x, y = [t for t, _ in best], [a for _, a in best]
    look = {"color": style.MUTED, "lw": 6, "alpha": 0.18, "solid_joinstyle": "miter", "zorder": 1}
    axes.step([*x, right], [*y, y[-1]], where="post", **look)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(tokens, accuracy) that no other point beats with fewer tokens and as much accuracy."""
    best: list[tuple[float, float]] = []
    for tokens, accuracy in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or accuracy > best[-1][1]:
            best.append((tokens, accuracy))
    return best


def _contours(axes: Any, points: Sequence[Point | Exit], most: int) -> None:
    """Lines of equal tokens per solve, named above, and of equal E3, named at the left."""
    left, right = axes.get_xlim()
    top = axes.get_ylim()[1]
    x = np.geomspace(left, right, 200) if left else np.linspace(right / 200, right, 200)
    solved = [p for p in points if p.accuracy.value > 0]
    if not solved:
        return
    look = {"color": style.MUTED, "lw": 0.8, "alpha": 0.5, "zorder": 0.5}
    said = {"fontsize": 7.5, "color": style.MUTED, "textcoords": "offset points"}
    for level in _levels([p.tokens.value / p.accuracy.value for p in solved], most):
        axes.plot(x, x / level, linestyle=(0, (1, 2)), **look)
        if left < level * top < right:
            text = f"{level:,g} a solve"
            axes.annotate(text, (level * top, top), xytext=(0, 3), ha="center", **said)
    for level in _levels([1000 * p.accuracy.value**2 / p.tokens.value for p in solved], most):
        y = np.sqrt(level * x / 1000)
        axes.plot(x, y, linestyle=(0, (6, 4)), **look)
        if y[-1] < top:
            at, place = (x[-1], y[-1]), {"xytext": (3, 0), "va": "center"}
        else:
            at, place = (1000 * top**2 / level, top), {"xytext": (0, 12), "ha": "center"}
        axes.annotate(f"E3 {level:g}", at, annotation_clip=False, **place, **said)


def _levels(values: Sequence[float], most: int) -> list[float]:
    """A few round numbers (1, 2, 5 times powers of ten) within the range."""
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**e for e in powers for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    if len(found) > most:
        found = [found[round(i)] for i in np.linspace(0, len(found) - 1, most)]
    return found


def _ticks(axes: Any, left: float, right: float, narrow: bool) -> None:
    """1, 2, 5 times powers of ten, no more than fit."""
    from matplotlib.ticker import NullLocator

    powers = range(math.floor(math.log10(left)), math.ceil(math.log10(right)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        marks = [m * 10.0**e for e in powers for m in steps if left <= m * 10.0**e <= right]
        if len(marks) <= (6 if narrow else 10):
            break
    axes.set_xticks(marks, [f"{m:,g}" for m in marks])
    axes.xaxis.set_minor_locator(NullLocator())
