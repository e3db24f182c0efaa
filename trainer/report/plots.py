"""Accuracy against budget and against tokens, thinking length by difficulty, training curves.

What the tokens of training buy: frontier.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.report import frontier, labels, style
from trainer.report.curves import Curve, band, curves, label, point
from trainer.report.data import Arm, Evaluation, series
from trainer.report.style import Figure

CURVES = (
    ("accuracy", "accuracy of rollouts"),
    ("think_tokens/mean", "thinking tokens"),
    ("entropy", "entropy, nats per token"),
    ("gradient/effective_prompts", "share of prompts with mixed verdicts"),
)


def figures(
    found: Sequence[Arm], base: Evaluation | None, at_tokens: int | None = None
) -> list[Figure]:
    shown = curves(found, base)
    pair = any(len(c.evaluations) == 2 for c in shown)
    spread = "95% intervals, as in the table" + (" (of two seeds: both)." if pair else ".")
    budgets = sorted({b for c in shown for e in c.evaluations for b in e.budgets})
    sizes = {
        "wide": (7.6, labels.height(len(shown), 3.9)),
        "narrow": (3.9, labels.height(len(shown), 3.7, narrow=True)),
    }
    return [
        Figure(
            "accuracy-budget",
            "Accuracy against thinking budget",
            f"The thought is cut at the budget and the model must answer. Bands: {spread}",
            lambda canvas, narrow: _by_budget(canvas, narrow, shown, budgets),
            **sizes,
        ),
        Figure(
            "accuracy-tokens",
            "Accuracy against tokens spent",
            "Mean tokens of thought and answer at each budget; large points: without a budget. "
            "Up and to the left is better.",
            lambda canvas, narrow: _by_tokens(canvas, narrow, shown, budgets),
            **sizes,
        ),
        *frontier.figures(shown, spread, sizes, at_tokens),
        Figure(
            "length-difficulty",
            "Thinking length by difficulty",
            f"Mean thinking tokens without a budget, per difficulty of the problem. Bars: {spread}",
            lambda canvas, narrow: _by_difficulty(canvas, narrow, shown),
            **sizes,
        ),
        Figure(
            "training",
            "Training",
            "Rollouts of each training step. Thin lines: seeds; thick: their mean.",
            lambda canvas, narrow: _training(canvas, narrow, found),
            wide=(7.6, 4.7 + 0.2 * -(-len(found) // 5)),
            narrow=(3.9, 8.4 + 0.2 * -(-len(found) // 2)),
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
        axes.fill_between(position, low[:-1], high[:-1], color=curve.colour, **band(shown))
        axes.plot(position, value[:-1], **curve.look)
        link = {**curve.look, "marker": "", "linewidth": 1, "linestyle": (0, (1, 2))}
        axes.plot([position[-1], free], value[-2:], **link)
        point(axes, free, points[-1], curve, len(shown) > labels.FEW)
    step = 2 if narrow and len(budgets) > 6 else 1
    axes.set_xticks([*position[::step], free], [*map(str, budgets[::step]), "no\nlimit"])
    axes.set_xlabel("thinking budget, tokens")
    _accuracy_axis(axes)
    ends = [label(c, free, c.at("accuracy").value) for c in shown]
    labels.column(axes, free, ends)
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
        point(axes, tokens, curve.at("accuracy"), curve, len(shown) > labels.FEW)
        ends.append(label(curve, tokens, curve.at("accuracy").value))
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens spent per problem, mean")
    _accuracy_axis(axes)
    (labels.key if len(ends) > labels.FEW else labels.beside)(axes, ends)
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
        if not np.isnan(value[-1]):
            ends.append(label(curve, at[-1], value[-1]))
    axes.set_xticks(range(len(levels)), [str(d) for d in levels])
    axes.set_xlabel("difficulty")
    axes.set_ylabel("thinking tokens")
    axes.set_ylim(bottom=0)
    labels.column(axes, len(levels) - 1 + 0.06, ends)
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
                look = {"color": style.colour(i), "linestyle": style.line(i)}
                axes.plot(*_mean_line(lines), **look, label=arm.name)
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


def _accuracy_axis(axes: Any) -> None:
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
