"""Accuracy against budget and against tokens, thinking length by difficulty, training curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.eval.statistics import Estimate
from trainer.report import style
from trainer.report.data import Arm, Evaluation, pooled, series
from trainer.report.style import Figure

CURVES = (
    ("accuracy", "accuracy of rollouts"),
    ("think_tokens/mean", "thinking tokens"),
    ("entropy", "entropy, nats per token"),
    ("gradient/effective_prompts", "share of prompts with mixed verdicts"),
)


@dataclass(frozen=True)
class Curve:
    """One line of a figure: an arm, or the base."""

    name: str
    colour: str
    marker: str
    base: bool
    evaluations: Sequence[Evaluation]

    def at(self, metric: str) -> Estimate:
        """As in the table; of two seeds their range, since t with one degree of freedom fills
        any figure."""
        estimate = pooled(self.evaluations, metric)
        if len(self.evaluations) != 2:
            return estimate
        low, high = sorted(e.estimate(metric).value for e in self.evaluations)
        return Estimate(estimate.value, low, high, 2)

    @property
    def look(self) -> dict[str, Any]:
        return {
            "color": self.colour,
            "linestyle": (0, (4, 2)) if self.base else "-",
            "marker": self.marker,
            "markeredgecolor": style.PAPER,
            "markeredgewidth": 0.8,
            "zorder": 2 if self.base else 3,
        }


def curves(found: Sequence[Arm], base: Evaluation | None) -> list[Curve]:
    out = [Curve("base", style.MUTED, "o", True, [base])] if base else []
    for i, arm in enumerate(found):
        if arm.finals:
            out.append(Curve(arm.name, style.colour(i), style.marker(i), False, arm.finals))
    return out


def figures(found: Sequence[Arm], base: Evaluation | None) -> list[Figure]:
    shown = curves(found, base)
    pair = any(len(c.evaluations) == 2 for c in shown)
    spread = "95% intervals, as in the table" + (" (of two seeds: both)." if pair else ".")
    budgets = sorted({b for c in shown for e in c.evaluations for b in e.budgets})
    return [
        Figure(
            "accuracy-budget",
            "Accuracy against thinking budget",
            f"The thought is cut at the budget and the model must answer. Bands: {spread}",
            lambda canvas, narrow: _by_budget(canvas, narrow, shown, budgets),
        ),
        Figure(
            "accuracy-tokens",
            "Accuracy against tokens spent",
            "Mean tokens of thought and answer at each budget; large points: without a budget. "
            "Up and to the left is better.",
            lambda canvas, narrow: _by_tokens(canvas, narrow, shown, budgets),
        ),
        Figure(
            "length-difficulty",
            "Thinking length by difficulty",
            f"Mean thinking tokens without a budget, per difficulty of the problem. Bars: {spread}",
            lambda canvas, narrow: _by_difficulty(canvas, narrow, shown),
        ),
        Figure(
            "training",
            "Training",
            "Rollouts of each training step. Thin lines: seeds; thick: their mean.",
            lambda canvas, narrow: _training(canvas, narrow, found),
            wide=(7.6, 4.9),
            narrow=(3.9, 8.6),
        ),
    ]


def _by_budget(canvas: Any, narrow: bool, shown: Sequence[Curve], budgets: list[int]) -> bool:
    """log2 axis; a budget of 0 sits one octave below the smallest other one, no limit beyond."""
    if not shown or not budgets:
        return False
    axes = canvas.add_subplot()
    position = octaves(budgets)
    free = position[-1] + max(1.0, 0.08 * (position[-1] - position[0]))
    for curve in shown:
        points = [curve.at(f"accuracy@{b}") for b in budgets] + [curve.at("accuracy")]
        value, low, high = (
            np.array([getattr(p, k) for p in points]) for k in ("value", "low", "high")
        )
        axes.fill_between(position, low[:-1], high[:-1], color=curve.colour, alpha=0.13, lw=0)
        axes.plot(position, value[:-1], **curve.look)
        link = {**curve.look, "marker": "", "linewidth": 1, "linestyle": (0, (1, 2))}
        axes.plot([position[-1], free], value[-2:], **link)
        _point(axes, free, points[-1], curve)
    step = 2 if narrow and len(budgets) > 6 else 1
    axes.set_xticks([*position[::step], free], [*map(str, budgets[::step]), "no\nlimit"])
    axes.set_xlabel("thinking budget, tokens")
    _accuracy_axis(axes)
    ends = [curve.at("accuracy").value for curve in shown]
    _labels(axes, free, ends, shown)
    return True


def _by_tokens(canvas: Any, narrow: bool, shown: Sequence[Curve], budgets: list[int]) -> bool:
    if not shown:
        return False
    axes = canvas.add_subplot()
    ends = []
    for curve in shown:
        spent = [curve.at(f"tokens@{b}").value for b in budgets]
        right = [curve.at(f"accuracy@{b}").value for b in budgets]
        tokens = curve.at("think_tokens/mean").value + curve.at("answer_tokens/mean").value
        axes.plot([*spent, tokens], [*right, curve.at("accuracy").value], **curve.look)
        _point(axes, tokens, curve.at("accuracy"), curve)
        ends.append((tokens, curve.at("accuracy").value))
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens spent per problem, mean")
    _accuracy_axis(axes)
    _end_labels(axes, ends, shown)
    return True


def _by_difficulty(canvas: Any, narrow: bool, shown: Sequence[Curve]) -> bool:
    levels = sorted(
        {
            int(name.split("/")[0].removeprefix("difficulty-"))
            for c in shown
            for e in c.evaluations
            for name in e.summary["metrics"]
            if name.startswith("difficulty-")
        }
    )
    if not levels:
        return False
    axes = canvas.add_subplot()
    shift = np.linspace(-0.06, 0.06, len(shown)) if len(shown) > 1 else [0.0]
    ends = []
    for offset, curve in zip(shift, shown, strict=True):
        points = [curve.at(f"difficulty-{d}/think_tokens") for d in levels]
        value = np.array([p.value for p in points])
        low, high = np.array([p.low for p in points]), np.array([p.high for p in points])
        at = np.arange(len(levels)) + offset
        axes.plot(at, value, **curve.look)
        axes.vlines(at, low, high, color=curve.colour, lw=1, alpha=0.7)
        ends.append(value[-1])
    axes.set_xticks(range(len(levels)), [str(d) for d in levels])
    axes.set_xlabel("difficulty")
    axes.set_ylabel("thinking tokens")
    axes.set_ylim(bottom=0)
    _labels(axes, len(levels) - 1 + 0.06, ends, shown)
    return True


def _training(canvas: Any, narrow: bool, found: Sequence[Arm]) -> bool:
    known = [
        (metric, title)
        for metric, title in CURVES
        if any(series(run, metric)[0].size > 1 for arm in found for run in arm.runs)
    ]
    if not known:
        return False
    columns = 1 if narrow else 2
    canvas.get_layout_engine().set(h_pad=0.09, w_pad=0.06)
    grid = canvas.subplots(-(-len(known) // columns), columns, squeeze=False)
    for axes, (metric, title) in zip(grid.flat, known, strict=False):
        for i, arm in enumerate(found):
            lines = [line for run in arm.runs if (line := series(run, metric))[0].size]
            for steps, values in lines if len(lines) > 1 else []:
                axes.plot(steps, values, color=style.colour(i), lw=0.7, alpha=0.35)
            if lines:
                axes.plot(*_mean_line(lines), color=style.colour(i), label=arm.name)
        axes.set_title(title, loc="left", color=style.INK)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        if metric in ("accuracy", "gradient/effective_prompts"):
            axes.set_ylim(0, 1.02)
    handles = grid.flat[0].get_legend_handles_labels()
    look = {"frameon": False, "labelcolor": "linecolor", "ncols": 2 if narrow else 5}
    canvas.legend(*handles, loc="outside upper left", fontsize=9.5, handlelength=1.2, **look)
    for axes in grid.flat[len(known) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    return True


def octaves(budgets: Sequence[int]) -> np.ndarray:
    """Position of each budget on a log2 axis; 0 sits one octave below the smallest other one."""
    grid = np.array(budgets, dtype=np.float64)
    positive = grid[grid > 0]
    floor = positive[0] / 2 if positive.size else 1.0
    return np.log2(np.maximum(grid, floor))


def _mean_line(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds at the steps that all of them have."""
    shared = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in lines)))
    values = [[dict(zip(s, v, strict=True))[x] for x in shared] for s, v in lines]
    return np.array(shared), np.mean(values, axis=0)


def _point(axes: Any, x: float, estimate: Estimate, curve: Curve) -> None:
    axes.vlines(x, estimate.low, estimate.high, color=curve.colour, lw=1.4, alpha=0.8)
    look = {**curve.look, "markersize": 7.5, "linestyle": "", "zorder": 4}
    axes.plot([x], [estimate.value], **look)


def _accuracy_axis(axes: Any) -> None:
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)
    axes.set_yticks(np.arange(0, 1.01, 0.2))


def _labels(axes: Any, x: float, ends: Sequence[float], shown: Sequence[Curve]) -> None:
    """Names at the right end of their lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    places = apart(ends, 0.055 * (high - low), low, high)
    for place, curve in zip(places, shown, strict=True):
        _name(axes, x, place, curve)


def _name(axes: Any, x: float, y: float, curve: Curve, left: bool = False) -> None:
    axes.annotate(
        curve.name,
        (x, y),
        xytext=(-9 if left else 9, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        color=curve.colour,
        fontsize=9.5,
        annotation_clip=False,
        bbox={"facecolor": style.PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.75},
        zorder=5,
    )


def _end_labels(axes: Any, ends: Sequence[tuple[float, float]], shown: Sequence[Curve]) -> None:
    """Names to the right of last points, moved apart where points are close to one another."""
    reach = 0.25 * max(x for x, _ in ends)
    for x, y in sorted(set(ends)):
        near = [i for i, (at, _) in enumerate(ends) if abs(at - x) < reach]
        places = apart([ends[i][1] for i in near], 0.055, *axes.get_ylim())
        for i, place in zip(near, places, strict=True):
            if ends[i] == (x, y):
                # The leftmost curve has nothing on its left; the others' names would cross it.
                left = len(ends) > 1 and x == min(e[0] for e in ends) and x > reach
                _name(axes, x, place, shown[i], left)


def apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions nearest to `values`, in their order, at least `gap` apart, within bounds.

    Least squares: with i * gap taken off, "apart" is "ascending", which isotonic regression solves.
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(values, kind="stable")
    offsets = gap * np.arange(len(order))
    free = isotonic_regression(np.asarray(values, dtype=np.float64)[order] - offsets).x
    places = np.empty(len(order))
    places[order] = np.clip(free, low + gap / 2, high - gap / 2 - offsets[-1:]) + offsets
    return places.tolist()
