"""Selections among k samples, against all tokens that they cost and against latency."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trainer.report import labels, style
from trainer.report.evaluation.models import Model
from trainer.report.evaluation.panels import BARS, Sheet, grid, short, split
from trainer.report.evaluation.pareto import WIDE_RANGE
from trainer.report.style import Figure


def figures(sheet: Sheet) -> Iterator[Figure]:
    shown = [m for m in sheet.models if choices(m, sheet.task)]

    def selections(some: Sequence[Model], number: str) -> Figure:
        rows = len(some)
        return Figure(
            sheet.name(f"selection{number}"),
            "Selections among samples",
            "Accuracy of one answer chosen among k samples, exact or by random subsets without "
            "replacement; numbers: k. Left: all tokens generated; right: tokens of the longest "
            "sample that had to be waited for. Dashed: pass@k, an oracle that knows the right one. "
            f"Bars: {BARS}. {sheet.measured()}",
            lambda canvas, narrow: _draw(canvas, narrow, sheet.task, some),
            wide=(7.6, 0.7 + 2.9 * rows),
            narrow=(3.9, 0.9 + 2.5 * rows),
        )

    yield from split(shown, selections)


def choices(model: Model, task: str) -> dict[str, list[int]]:
    """Selection -> its k, ascending; nothing can be chosen of one sample."""
    pattern = re.compile(re.escape(task) + r"/([^/]+)@(\d+)/accuracy$")
    found: dict[str, list[int]] = {}
    for name in model.metrics:
        if match := pattern.match(name):
            found.setdefault(match[1], []).append(int(match[2]))
    return {name: sorted(ks) for name, ks in found.items() if max(ks) > 1}


def _draw(canvas: Any, narrow: bool, task: str, models: Sequence[Model]) -> bool:
    names = list(dict.fromkeys(name for m in models for name in choices(m, task)))
    made = grid(canvas, 2 * len(models), 2, sharey="row")
    for row, model in enumerate(models):
        for axes, what in zip(made[2 * row : 2 * row + 2], ("tokens", "latency"), strict=True):
            _panel(axes, model, task, names, what)
        made[2 * row].set_ylabel("accuracy")
        if len(models) > 1:
            made[2 * row].set_title(short(model.name), loc="left", color=model.colour, fontsize=9.5)
    made[-2].set_xlabel("tokens of all k" if narrow else "tokens of all k samples")
    made[-1].set_xlabel("longest waited for" if narrow else "tokens of the longest waited for")
    for column in (0, 1):
        _tokens_axis(made[column::2])
    _key(canvas, names)
    return True


def _panel(axes: Any, model: Model, task: str, names: Sequence[str], what: str) -> None:
    from matplotlib.ticker import MaxNLocator

    found = choices(model, task)
    low = 1.0
    for i, name in enumerate(names):
        ks = found.get(name, [])
        y = [model.estimate(f"{task}/{name}@{k}/accuracy") for k in ks]
        x = np.array([model.estimate(f"{task}/{name}@{k}/{what}").value for k in ks])
        value = np.array([e.value for e in y])
        axes.vlines(x, [e.low for e in y], [e.high for e in y], color=style.colour(i), lw=1,
                    alpha=0.4)  # fmt: skip
        axes.plot(x, value, **_look(i))
        low = min([low, *(v for e in y for v in (e.low, e.value) if not np.isnan(v))])
        if ks and i == 0:
            _tell(axes, x, value, ks)
    _oracle(axes, model, task, found, what)
    low = max(0.0, low - 0.04)
    marks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, 1.0)
    axes.set_yticks([t for t in marks if low <= t <= 1.001])
    axes.set_ylim(low, 1.0 + 0.03 * (1 - low))


def _oracle(axes: Any, model: Model, task: str, found: dict[str, list[int]], what: str) -> None:
    """pass@k at what it costs to wait for all k: majority's tokens, as it reads them all too."""
    whole = next((name for name in found if name.startswith("majority")), None)
    if whole is None:
        return
    ks = [k for k in found[whole] if f"{task}/pass@{k}" in model.metrics]
    x = [model.estimate(f"{task}/{whole}@{k}/{what}").value for k in ks]
    y = [model.estimate(f"{task}/pass@{k}").value for k in ks]
    axes.plot(x, y, color=style.MUTED, linestyle=(0, (4, 2)), lw=1.4, zorder=2)


def _tell(axes: Any, x: np.ndarray, y: np.ndarray, ks: Sequence[int]) -> None:
    for at, value, k in zip(x, y, ks, strict=True):
        if not np.isnan([at, value]).any():
            axes.annotate(str(k), (at, value), xytext=(5, -9), textcoords="offset points",
                          ha="center", fontsize=8, color=style.MUTED, zorder=6)  # fmt: skip


def _tokens_axis(panels: Sequence[Any]) -> None:
    """The same for all models, by octaves where there is much between the least and the most."""
    from matplotlib.ticker import LogLocator, NullLocator

    lines = (line for axes in panels for line in axes.lines)
    known = [x for line in lines for x in np.asarray(line.get_xdata(), float) if x > 0]
    if not known:
        return
    low, high = min(known), max(known)
    for axes in panels:
        if high > WIDE_RANGE * low:
            axes.set_xscale("log", base=2)
            axes.set_xlim(low / 1.3, high * 1.3)
            axes.xaxis.set_major_locator(LogLocator(base=2, numticks=6))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(_count)
        else:
            air = 0.07 * (high - low or high)
            axes.set_xlim(low - air, high + air)


def _count(x: float, _: Any) -> str:
    return f"{x:,.0f}" if x < 10000 else f"{x / 1000:,.0f}k"


def _look(i: int) -> dict[str, Any]:
    return {
        "color": style.colour(i),
        "marker": style.marker(i),
        "linestyle": style.line(i),
        "markeredgecolor": style.PAPER,
        "markeredgewidth": 0.8,
        "lw": 1.6,
    }


def _key(canvas: Any, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **_look(i)) for i in range(len(names))]
    handles.append(Line2D([], [], color=style.MUTED, linestyle=(0, (4, 2)), lw=1.4))
    colours = [style.colour(i) for i in range(len(names))]
    canvas.legend(
        handles, [*(n.replace("_", "-") for n in names), "oracle: pass"], loc="outside lower left",
        ncols=2 if canvas.get_figwidth() < labels.NARROW else 5, frameon=False, fontsize=9,
        handlelength=2.2, labelcolor=[*colours, style.MUTED],
    )  # fmt: skip
