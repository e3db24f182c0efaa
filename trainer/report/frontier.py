"""What arms buy: accuracy for thinking tokens, and the area under caps for generated tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.eval import statistics
from trainer.eval.statistics import Estimate
from trainer.report import labels, tokens
from trainer.report.curves import Curve, band, bar, label, point
from trainer.report.style import Figure

GRID = 101
"""Points at which the lines of an arm's seeds are averaged."""
Floats = NDArray[np.float64]


def figures(
    shown: Sequence[Curve],
    spread: str,
    sizes: Mapping[str, tuple[float, float]],
    at_tokens: int | None = None,
) -> list[Figure]:
    """Args: spread: what the bars and bands of the report are. sizes: wide and narrow, inches.
    at_tokens: also show the arms when each had generated so many tokens."""
    many = len(shown) > labels.FEW
    size: dict[str, Any] = {
        "wide": (7.6, 5.4 if many else 4.2),
        "narrow": (3.9, 5.4 if many else 3.9),
    }
    equal = Figure(
        "accuracy-thinking-equal",
        f"Accuracy against thinking tokens at {at_tokens or 0:,} generated tokens",
        "Without a budget, every arm when it had generated so many tokens in training, on straight "
        f"lines between evaluations. Bars: {spread} Up and to the left is better.",
        lambda canvas, narrow: _frontier(canvas, narrow, _points(shown, at_tokens)),
        **size,
    )
    return [
        Figure(
            "accuracy-thinking",
            "Accuracy against thinking tokens",
            f"Without a budget, after the last step. Bars: {spread} Up and to the left is better.",
            lambda canvas, narrow: _frontier(canvas, narrow, _points(shown)),
            **size,
        ),
        *([] if at_tokens is None else [equal]),
        Figure(
            "area-generated",
            "Area under caps against generated tokens",
            "Area: accuracy where a thought must end by itself under a cap, mean over all caps up "
            "to the longest response. Every token that was sampled for training counts; lines are "
            f"straight between evaluations. Bands: {spread}",
            lambda canvas, narrow: _area(canvas, shown),
            **sizes,
        ),
    ]


def _points(
    shown: Sequence[Curve], generated: int | None = None
) -> list[tuple[Curve, Estimate, Estimate]]:
    """Thinking tokens and accuracy of each: after the last step, or after so many tokens."""
    out = []
    for c in shown:
        x, y = (
            c.at(metric) if generated is None else c.after(metric, generated)
            for metric in ("think_tokens/mean", "accuracy")
        )
        out.append((c, x, y))
    return out


def _frontier(canvas: Any, narrow: bool, shown: Sequence[tuple[Curve, Estimate, Estimate]]) -> bool:
    """One point an arm, thinking tokens and accuracy. Of many arms the frame holds the points and
    most of the bars; a base outside is told at its edge."""
    points = [(c, x, y) for c, x, y in shown if not np.isnan([x.value, y.value]).any()]
    if not points:
        return False
    axes, many = canvas.add_subplot(), len(shown) > labels.FEW
    for curve, x, y in points:
        axes.hlines(y.value, x.low, x.high, color=curve.colour, **bar(many))
        point(axes, x.value, y, curve, many)
    axes.grid(axis="x")
    axes.set_xlabel("thinking tokens, mean")
    axes.set_ylabel("accuracy")
    framed = [p for p in points if not p[0].base] if many else points
    framed = framed or points
    left, right = _frame([x for _, x, _ in framed], 0.16 if narrow else 0.1)
    low, high = _frame([y for _, _, y in framed], 0.1)
    axes.set_xlim(max(left, 0), right)
    axes.set_ylim(max(low, 0), max(min(high, 1.02), *(y.value + 0.01 for _, _, y in framed)))
    outside = [p for p in points if p not in framed]
    named = [label(c, x.value, y.value) for c, x, y in framed]
    for curve, x, y in outside:
        if right > x.value > left and high > y.value > low:
            named.append(label(curve, x.value, y.value))
        else:
            text = f"{curve.name}: {y.value:.2f} with {x.value:.0f} tokens, outside"
            axes.text(0.99, 0.015, text, transform=axes.transAxes, ha="right", color=curve.colour)
    labels.beside(axes, named, _bars(axes, [] if many else points))
    return True


def _frame(estimates: Sequence[Estimate], margin: float) -> tuple[float, float]:
    """Limits around the values and, about each, half of a usual interval more."""
    values = [e.value for e in estimates]
    halves = [e.half_width for e in estimates if not np.isnan(e.half_width)]
    usual = float(np.median(halves)) if halves else 0.0
    low, high = min(values) - usual, max(values) + usual
    air = margin * (high - low or 1.0)
    return low - air, high + air


def _bars(axes: Any, points: Sequence[tuple[Curve, Any, Any]]) -> list[labels.Box]:
    """Where the intervals are drawn, in display coordinates."""
    axes.figure.draw_without_rendering()
    out: list[labels.Box] = []
    for _, x, y in points:
        for low, high in (
            ((x.low, y.value), (x.high, y.value)),
            ((x.value, y.low), (x.value, y.high)),
        ):
            if not np.isnan([*low, *high]).any():
                first, last = axes.transData.transform([low, high])
                out.append((first[0] - 1, first[1] - 1, last[0] + 1, last[1] + 1))
    return out


def _area(canvas: Any, shown: Sequence[Curve]) -> bool:
    lines = [(c, *_line(c)) for c in shown if c.runs]
    lines = [(c, x, y) for c, x, y in lines if x.size > 1]
    if not lines:
        return False
    axes = canvas.add_subplot()
    axes.set_xlabel("generated tokens")
    axes.set_ylabel("area under caps")
    ends = []
    for curve, at, (value, low, high) in lines:
        axes.fill_between(at, low, high, color=curve.colour, **band(shown))
        axes.plot(at, value, **{**curve.look, "marker": ""})
        end = Estimate(value[-1], low[-1], high[-1], len(curve.runs))
        point(axes, at[-1], end, curve, len(shown) > labels.FEW)
        ends.append(label(curve, at[-1], value[-1]))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:,.0f}k" if x else "0")
    labels.column(axes, axes.get_xlim()[1], ends)
    return True


def _line(curve: Curve) -> tuple[Floats, tuple[Floats, Floats, Floats]]:
    """(tokens, (mean, low, high)) of the seeds' lines, as far as all of them go.

    Low and high are as in the table: one seed's are its own, over problems; of two seeds both.
    """
    each = [tokens.last_each(*tokens.curve(run, tokens.AREA)) for run in curve.runs]
    each = [(x, y) for x, y in each if x.size > 1]
    none = np.zeros(0)
    if not each:
        return none, (none, none, none)
    if len(curve.runs) == 1:
        return _alone(curve)
    first, last = max(x[0] for x, _ in each), min(x[-1] for x, _ in each)
    at = np.linspace(first, last, GRID)
    values = np.array([np.interp(at, x, y) for x, y in each])
    if len(each) < 3:
        return at, (values.mean(axis=0), values.min(axis=0), values.max(axis=0))
    found = [statistics.mean(column) for column in values.T]
    low, high = np.array([e.low for e in found]), np.array([e.high for e in found])
    return at, (values.mean(axis=0), low, high)


def _alone(curve: Curve) -> tuple[Floats, tuple[Floats, Floats, Floats]]:
    """A single seed's evaluations, with their intervals over problems."""
    (run,) = curve.runs
    at, value = tokens.last_each(*tokens.curve(run, tokens.AREA))
    known = {run.generated(e.step): e.estimate(tokens.AREA) for e in run.evaluations}
    low, high = (np.array([getattr(known[x], side) for x in at]) for side in ("low", "high"))
    return at, (value, low, high)
