"""Every problem at every budget: where more thinking helps, where it harms, what was forced.

Shape suffixes: M problems, J budgets and no limit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.report import style
from trainer.report.evaluation.models import Series
from trainer.report.evaluation.panels import RIGHT, WRONG, Sheet, grid, split, title
from trainer.report.style import Figure

FAINT = 0.42
"""Opacity of what was forced."""
WIDTH = 1500
"""More problems than this share columns."""


def figures(sheet: Sheet) -> Iterator[Figure]:
    for kind in ("cut", "enforced"):
        found = [s for m in sheet.models for s in m.series(sheet.task, kind)]
        yield from _of_kind(sheet, [s for s in found if len(s.points) > 1])


def _of_kind(sheet: Sheet, every: Sequence[Series]) -> Iterator[Figure]:
    order = _order(every)
    told = every and every[0].experiment.kind == "enforced"

    def mapped(some: Sequence[Series], number: str) -> Figure:
        tall = sum(0.62 + 0.2 * len(s.points) for s in some)
        return Figure(
            sheet.name(f"map{'-announced' if told else ''}{number}"),
            "Every problem at every budget" + (", announced and enforced" if told else ""),
            "Columns are problems, from most to least often right over all budgets and models "
            "shown; the same order everywhere. Between green and orange: right in some samples. "
            "Faint: the thought was cut there. Wrong above right in a column: more thinking lost "
            "the answer (over-thinking); a full wrong below a right: it "
            f"stopped by itself too early. {sheet.measured()}",
            lambda canvas, narrow: _draw(canvas, narrow, some, order),
            wide=(7.6, 0.75 + tall),
            narrow=(3.9, 0.95 + tall),
        )

    yield from split(every, mapped)


def _order(every: Sequence[Series]) -> list[str]:
    """Problems that are often right first."""
    totals: dict[str, list[float]] = {}
    for series in every:
        for p in series.points:
            rates = p.digest.right_MJ[:, p.column]
            for name, rate in zip(p.digest.ids_M, rates.tolist(), strict=True):
                if rate == rate:
                    totals.setdefault(name, []).append(rate)
                else:
                    totals.setdefault(name, [])
    return sorted(totals, key=lambda i: -(sum(totals[i]) / len(totals[i]) if totals[i] else 0.0))


def _draw(canvas: Any, narrow: bool, some: Sequence[Series], order: Sequence[str]) -> bool:
    heights = [len(s.points) for s in some]
    made = grid(canvas, len(some), 1, sharex=True, height_ratios=heights)
    for axes, series in zip(made, some, strict=True):
        image = picture(series, order)
        axes.imshow(image, aspect="auto", interpolation="none", origin="lower",
                    extent=(0, len(order), -0.5, len(series.points) - 0.5))  # fmt: skip
        names = ["no limit" if p.name == "inf" else p.name for p in series.points]
        axes.set_yticks(range(len(names)), names, fontsize=8.5)
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="x", length=0 if axes is not made[-1] else 3)
        title(axes, series.model)
    made[-1].set_xlabel("problems, from most to least often right")
    _key(canvas, narrow)
    return True


def picture(series: Series, order: Sequence[str]) -> NDArray[np.float64]:
    """[J, columns, RGBA]: hue by the share of right samples, faint where thoughts were forced."""
    from matplotlib.colors import to_rgb

    right, wrong, none = (np.array(to_rgb(c)) for c in (RIGHT, WRONG, style.MUTED))
    rows = []
    for p in series.points:
        d, j = p.digest, p.column
        at = {name: i for i, name in enumerate(d.ids_M)}
        index = np.array([at.get(name, -1) for name in order])
        there = index >= 0
        rate, forced, answered = (
            np.where(there, values[index, j], np.nan)
            for values in (d.right_MJ, d.forced_MJ, d.answered_MJ)
        )
        share = np.nan_to_num(rate)[:, None]
        told = np.nan_to_num(answered)[:, None]
        # Of what is not right, that without an answer is grey.
        silent = np.clip(1 - told, 0, 1 - share)
        colour = _between(share, 1 - share - silent, right, wrong) + silent * none
        alpha = np.where(np.isnan(rate), 0.0, 1 - (1 - FAINT) * np.nan_to_num(forced))
        rows.append(np.concatenate([colour, alpha[:, None]], axis=1))
    image = np.stack(rows)
    if image.shape[1] <= WIDTH:
        return image
    edges = np.linspace(0, image.shape[1], WIDTH + 1).astype(int)
    return np.stack([image[:, a:b].mean(axis=1) for a, b in itertools.pairwise(edges)], axis=1)


def _between(
    right: NDArray[np.float64], wrong: NDArray[np.float64], good: Any, bad: Any
) -> NDArray[np.float64]:
    """Shares of right and wrong as colours that pass a light one where they are the same."""
    even = np.minimum(right, wrong)
    middle = np.array([0.84, 0.75, 0.48])
    return (right - even) * good + (wrong - even) * bad + 2 * even * middle


def _key(canvas: Any, narrow: bool) -> None:
    from matplotlib.patches import Patch

    shown = {
        "right": (RIGHT, 1.0),
        "right, cut": (RIGHT, FAINT),
        "wrong, cut": (WRONG, FAINT),
        "wrong": (WRONG, 1.0),
        "no answer": (style.MUTED, 1.0),
    }
    handles = [Patch(color=colour, alpha=alpha, lw=0) for colour, alpha in shown.values()]
    canvas.legend(
        handles, list(shown), loc="outside lower left", ncols=3 if narrow else 5, frameon=False,
        fontsize=9, handlelength=1.1, labelcolor=style.MUTED, columnspacing=1.2,
    )  # fmt: skip
