"""Per problem: what one model gained and lost against another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.eval import statistics
from trainer.eval.statistics import Comparison, Floats
from trainer.report import style
from trainer.report.evaluation.models import Model
from trainer.report.evaluation.panels import RIGHT, WRONG, Sheet, grid, short, split
from trainer.report.style import Figure

LEVELS = 16
"""Pass rates are told to a sixteenth at the finest."""
NUMBERS, FEW = 40, 12
"""Up to so many different points have their counts written in them; beside them, of few."""


@dataclass(frozen=True)
class Pair:
    """Pass rates of the problems that both have, [M]: before and after."""

    before: Model
    after: Model
    a_M: Floats
    b_M: Floats
    accuracy: Comparison
    tokens: Comparison

    @property
    def counts(self) -> tuple[int, int, int]:
        """Problems gained, the same, lost."""
        gained, lost = int((self.b_M > self.a_M).sum()), int((self.b_M < self.a_M).sum())
        return gained, self.a_M.size - gained - lost, lost


def pairs(models: Sequence[Model], task: str) -> list[Pair]:
    """Each model against the baseline, or against the first."""
    found = [m for m in models if m.free(task)]
    made = (_pair(found[0], after, task) for after in found[1:])
    return [pair for pair in made if pair is not None]


def _pair(before: Model, after: Model, task: str) -> Pair | None:
    a, b = before.free(task), after.free(task)
    assert a is not None
    assert b is not None
    places = {name: i for i, name in enumerate(b.ids_M)}
    both = [(i, places[name]) for i, name in enumerate(a.ids_M) if name in places]
    if not both:
        return None
    i, j = np.array(both).T
    right = a.right_MJ[i, -1], b.right_MJ[j, -1]
    spent = [(d.think_MJ + d.answer_MJ)[k, -1] for d, k in ((a, i), (b, j))]
    known = ~np.isnan(right[0]) & ~np.isnan(right[1])
    if not known.any():
        return None
    a_M, b_M = right[0][known], right[1][known]
    accuracy, tokens = statistics.paired(b_M, a_M), statistics.paired(spent[1], spent[0])
    return Pair(before, after, a_M, b_M, accuracy, tokens)


def figures(sheet: Sheet) -> Iterator[Figure]:
    found = pairs(sheet.models, sheet.task)

    def gains(some: Sequence[Pair], number: str) -> Figure:
        columns = len(some)
        return Figure(
            sheet.name(f"gains{number}"),
            "Gains and losses by problem",
            "Pass rate of each problem before and after, without a limit, nothing announced; areas "
            "are numbers of problems. On the line nothing changed. With few samples a pass rate is "
            f"coarse: problems cross the line by chance in both directions. {sheet.measured()}",
            lambda canvas, narrow: _draw(canvas, narrow, some),
            wide=(7.6, 4.4 if columns == 1 else 3.9 if columns == 2 else 3.3),
            narrow=(3.9, 0.3 + 3.9 * columns),
        )

    yield from split(found, gains)


def _draw(canvas: Any, narrow: bool, some: Sequence[Pair]) -> bool:
    count = len(some)
    made = grid(canvas, count, 1 if narrow else count)
    for axes, pair in zip(made, some, strict=True):
        _bubbles(axes, pair, 2.9 if narrow else min(3.0, 5.6 / count))
        gained, same, lost = pair.counts
        room = 40 if count == 1 or narrow else 60 // count
        axes.set_xlabel(short(pair.before.name, room) + ", pass rate")
        axes.set_ylabel(short(pair.after.name, room))
        look = {"transform": axes.transAxes, "fontsize": 8.5, "fontweight": "bold"}
        axes.text(0, 1.02, f"{gained} gained", color=RIGHT, **look)
        axes.text(1, 1.02, f"{lost} lost", ha="right", color=WRONG, **look)
        axes.set_title(_said(pair, same), loc="left", fontsize=8.5, color=style.MUTED, pad=17)
    canvas.draw_without_rendering()  # square axes take the layout two passes
    return True


def _said(pair: Pair, same: int) -> str:
    d = pair.accuracy.difference
    text = f"{d.value:+.3f}"
    if not np.isnan(d.low):
        text += f" ({d.low:+.3f} to {d.high:+.3f})"
    return f"{text}, {same} the same"


def _bubbles(axes: Any, pair: Pair, inches: float) -> None:
    """One circle for each pair of pass rates, its area the number of problems."""
    a_M, b_M = (np.round(rate * LEVELS) / LEVELS if _fine(pair) else rate
                for rate in (pair.a_M, pair.b_M))  # fmt: skip
    where, counts = np.unique(np.stack([a_M, b_M], axis=1).round(4), axis=0, return_counts=True)
    gap = float(np.diff(np.unique(where)).min(initial=1.0))
    widest = min(max(72 * inches * 0.8 * gap, 9.0), 0.2 * 72 * inches)
    size = np.maximum(widest * np.sqrt(counts / counts.max()), 2.0)  # diameters, points
    colours = [RIGHT if y > x else WRONG if y < x else style.MUTED for x, y in where]
    axes.plot([0, 1], [0, 1], color=style.RULE, lw=1, zorder=1)
    axes.scatter(where[:, 0], where[:, 1], s=size**2, c=colours, alpha=0.45, lw=0)
    for (x, y), count, wide in zip(where, counts, size, strict=True):
        fits = wide >= 4.2 * len(f"{count}") + 2.5
        if len(where) <= (NUMBERS if fits else FEW):
            beside = {"xytext": (0, 0) if fits else (0, wide / 2 + 5), "fontsize": 7.5}
            axes.annotate(f"{count}", (x, y), textcoords="offset points", ha="center",
                          va="center", color=style.INK, **beside)  # fmt: skip
    radius = 0.6 * widest / 72 / inches
    edge = max(0.05, radius / (1 - 2 * radius))
    axes.set_xlim(-edge, 1 + edge)
    axes.set_ylim(-edge, 1 + edge)
    axes.set_aspect("equal")
    ticks = np.arange(0, 1.01, 0.25 if inches > 2.5 else 0.5)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.grid(False)


def _fine(pair: Pair) -> bool:
    return len(np.unique(np.concatenate([pair.a_M, pair.b_M]).round(4))) > LEVELS + 1
