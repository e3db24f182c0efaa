"""Lengths and cost by difficulty: the data's own, or the baseline's pass rate, never the model's.

Shape suffixes: M problems, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.eval import statistics
from trainer.report import style
from trainer.report.evaluation.digest import Digest
from trainer.report.evaluation.models import Model
from trainer.report.evaluation.panels import RIGHT, WRONG, Sheet, grid, short, split, title
from trainer.report.style import Figure

MOST = 6
"""More levels than this are put together."""
COLUMNS = 28
RATES = (
    (0.9, "solved > 0.9"),
    (0.6, "0.6 to 0.9"),
    (0.3, "0.3 to 0.6"),
    (0.05, "0.05 to 0.3"),
    (-1.0, "< 0.05"),
)
"""Least pass rate of the baseline, and the bin's name (Snell et al., arXiv:2408.03314)."""


@dataclass(frozen=True)
class Bins:
    """Problem id -> bin (None: all in the one), and what the bins are called, easiest first."""

    names: tuple[str, ...]
    of: Mapping[str, int] | None
    what: str


def bins(sheet: Sheet) -> Bins | None:
    """The data's difficulty where it says one, else the baseline's pass rate; None without both."""
    known: dict[str, int] = {}
    for model in sheet.models:
        for d in model.of(sheet.task):
            known |= {i: int(x) for i, x in zip(d.ids_M, d.difficulty_M, strict=True) if x >= 0}
    if len(set(known.values())) > 1:
        return _by_level(known)
    free = sheet.baseline.free(sheet.task) if sheet.baseline else None
    if free is None:
        return None
    rate_M = free.right_MJ[:, -1]
    floors = [floor for floor, _ in RATES]
    of = {
        name: next(i for i, floor in enumerate(floors) if rate > floor)
        for name, rate in zip(free.ids_M, rate_M.tolist(), strict=True)
        if not math.isnan(rate)
    }
    there = sorted(set(of.values()))
    if not there:
        return None
    names = tuple(RATES[i][1] for i in there)
    return Bins(names, {k: there.index(v) for k, v in of.items()}, "pass rate of the baseline")


def _by_level(known: Mapping[str, int]) -> Bins:
    levels = sorted(set(known.values()))
    if len(levels) <= MOST:
        return Bins(
            tuple(str(x) for x in levels),
            {k: levels.index(v) for k, v in known.items()},
            "difficulty",
        )
    values = np.array(sorted(known.values()))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, MOST), method="inverted_cdf")[1:])
    of = {k: int(np.searchsorted(edges, v)) for k, v in known.items()}
    inside = [[v for k, v in known.items() if of[k] == i] for i in range(len(edges))]
    names = tuple(f"{min(v)}" if min(v) == max(v) else f"{min(v)} to {max(v)}" for v in inside)
    return Bins(names, of, "difficulty")


def figures(sheet: Sheet) -> Iterator[Figure]:
    found = bins(sheet) or Bins(("",), None, "all problems")
    shown = [m for m in sheet.models if m.free(sheet.task)]
    height = 0.95 + (0.62 if len(found.names) > 1 else 1.5) * len(found.names)
    binned = f"Rows: {found.what}." if found.names[0] else ""

    def lengths(some: Sequence[Model], number: str) -> Figure:
        return Figure(
            sheet.name(f"length-difficulty{number}"),
            "Thinking length by difficulty" if binned else "Thinking length",
            f"Thinking tokens of all samples without a limit, nothing announced. {binned} n: "
            "problems. Heights are shares of the samples of a row; triangles: medians of right and "
            f"of wrong ones. {sheet.measured()}",
            lambda canvas, _: _lengths(canvas, sheet.task, some, found),
            wide=(7.6, height + 0.3),
            narrow=(3.9, height + 0.3),
        )

    yield from split(shown, lengths)
    if len(shown) * len(found.names) > 1:
        yield Figure(
            sheet.name("cost-difficulty"),
            "Tokens per solve by difficulty" if binned else "Tokens per solve",
            "Mean tokens of thought and answer divided by accuracy, without a limit: what one "
            "right answer costs. Bars: 95% bootstrap intervals over problems (upper ends beyond "
            f"the axis are cut). {sheet.measured()}",
            lambda canvas, narrow: _cost(canvas, narrow, sheet.task, shown, found),
            wide=(7.6, 3.6 + 0.2 * -(-len(shown) // 3)),
            narrow=(3.9, 3.5 + 0.2 * -(-len(shown) // 2)),
        )


def _which(d: Digest, found: Bins) -> NDArray[np.int64]:
    """Bin of each problem; -1: none."""
    of = dict.fromkeys(d.ids_M, 0) if found.of is None else found.of
    return np.array([of.get(name, -1) for name in d.ids_M], dtype=np.int64)


def _lengths(canvas: Any, task: str, models: Sequence[Model], found: Bins) -> bool:
    rows, columns = len(found.names), len(models)
    made = grid(canvas, rows * columns, columns, sharex=True, sharey=True)
    canvas.get_layout_engine().set(h_pad=0.015, hspace=0.0, w_pad=0.05)
    digests = [m.free(task) for m in models]
    edges = _edges([d.lengths_MS for d in digests if d])
    for k, (model, d) in enumerate(zip(models, digests, strict=True)):
        assert d is not None
        which_M = _which(d, found)
        for row, name in enumerate(found.names):
            axes = made[row * columns + k]
            _histogram(axes, d, which_M == row, edges)
            axes.set_yticks([])
            axes.grid(False)
            axes.spines["bottom"].set_visible(True)
            if not k and name:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", color=style.INK)
        title(made[k], model)
        made[(rows - 1) * columns + k].set_xlabel("thinking tokens")
    made[0].set_ylim(0, 1.25 * made[0].get_ylim()[1])  # room for what is said at the top
    if edges[0] > 0:
        made[0].set_xscale("log", base=2)
        made[0].xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    if found.names[0]:
        canvas.supylabel(found.what, fontsize=9.5, color=style.MUTED)
    _key(canvas, {"right": RIGHT, "wrong": WRONG})
    return True


def _edges(lengths: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
    """Of the histogram's columns; octaves where lengths differ by orders of magnitude."""
    there = np.concatenate([x[x >= 0] for x in lengths])
    top = float(there.max(initial=1)) + 1
    if there.size and top > 40 * max(np.median(there), 1.0):
        return np.geomspace(1, top, COLUMNS + 1)
    step = max(1, math.ceil(top / COLUMNS))
    return np.arange(0, top + step, step, dtype=np.float64)


def _histogram(
    axes: Any, d: Digest, inside_M: NDArray[np.bool_], edges: NDArray[np.float64]
) -> None:
    lengths, verdicts = d.lengths_MS[inside_M], d.verdicts_MS[inside_M]
    total = max(int((lengths >= 0).sum()), 1)
    for verdict, colour in ((1, RIGHT), (0, WRONG)):
        chosen = np.maximum(lengths[(lengths >= 0) & (verdicts == verdict)], edges[0])
        counts = np.histogram(chosen, edges)[0] / total
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.28, lw=0)
        axes.stairs(counts, edges, color=colour, lw=1.1)
        if chosen.size:
            axes.plot([float(np.median(chosen))], [0], color=colour, marker="^", markersize=5,
                      markeredgecolor=style.PAPER, markeredgewidth=0.6, clip_on=False,
                      zorder=5)  # fmt: skip
    right = int((verdicts == 1).sum())
    said = f"{right / total:.0%} right, n = {int(inside_M.sum()):,}" if inside_M.any() else "none"
    if axes.figure.get_figwidth() / axes.get_subplotspec().get_gridspec().ncols < 1.9:
        said = said.partition(" right")[0]
    axes.text(0.995, 0.93, said, transform=axes.transAxes, ha="right", va="top", fontsize=8,
              color=style.MUTED)  # fmt: skip


def _cost(canvas: Any, narrow: bool, task: str, models: Sequence[Model], found: Bins) -> bool:
    axes = canvas.add_subplot()
    width = min(0.8 / len(models), 0.5)
    highest = 0.0
    for k, model in enumerate(models):
        d = model.free(task)
        assert d is not None
        which_M = _which(d, found)
        for row in range(len(found.names)):
            at = row + width * (k - (len(models) - 1) / 2)
            highest = max(highest, _bar(axes, d, which_M == row, at, width, model))
    if highest == 0:
        return False
    axes.set_ylim(0, highest * 1.12)
    axes.set_xticks(range(len(found.names)), found.names)
    if narrow and sum(map(len, found.names)) > 28:
        axes.tick_params(axis="x", labelrotation=20)
    axes.set_xlabel(found.what)
    axes.set_ylabel("tokens per solve")
    if len(models) > 1:
        _key(canvas, {short(m.name): m.colour for m in models}, 2 if narrow else 3)
    return True


def _bar(
    axes: Any, d: Digest, inside_M: NDArray[np.bool_], at: float, width: float, model: Model
) -> float:
    """One bar with its interval; returns a height that should be seen."""
    right, spent = d.right_MJ[inside_M, -1], (d.think_MJ + d.answer_MJ)[inside_M, -1]
    known = ~np.isnan(right)
    if not known.any():
        return 0.0
    if not right[known].any():
        axes.text(at, 0.02, "none solved", transform=axes.get_xaxis_transform(), rotation=90,
                  ha="center", va="bottom", fontsize=8, color=model.colour)  # fmt: skip
        return 0.0
    cost = statistics.ratio(spent[known], right[known])
    axes.bar(at, cost.value, width * 0.9, color=model.colour, alpha=0.85, lw=0)
    top = cost.high if math.isfinite(cost.high) else cost.value
    if not math.isnan(cost.low):
        axes.vlines(at, cost.low, min(cost.high, 1e12), color=style.INK, lw=1.1)
    return min(top, 2.5 * cost.value)


def _key(canvas: Any, colours: Mapping[str, str], columns: int = 4) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, alpha=0.8, lw=0) for colour in colours.values()]
    canvas.legend(
        handles, list(colours), loc="outside lower left", ncols=columns, frameon=False,
        fontsize=9, handlelength=1.1, labelcolor=style.MUTED,
    )  # fmt: skip
