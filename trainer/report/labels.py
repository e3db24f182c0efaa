"""Names of arms in figures: beside their points or at the ends of their lines, never on top of
one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.report import style

SIZE = 9.5
LINE = 0.175
"""Height of a name in inches, with air."""
FEW = 8
"""Up to so many names stand at their lines."""
NARROW = 5.0
"""Below so many inches a key stands under its figure."""
RINGS = (9, 13, 18, 25, 34, 45, 60, 78, 100, 130)
"""Distances in points at which a place beside a point is looked for."""


@dataclass(frozen=True)
class Label:
    """A name to write, and where what it names is (data coordinates)."""

    name: str
    colour: str
    x: float
    y: float
    look: Mapping[str, Any] = field(default_factory=dict)
    """Of its line, for a key."""


def height(count: int, least: float, narrow: bool = False) -> float:
    """Inches that a figure with so many names needs: at its right edge, or below a narrow one."""
    if narrow:
        return least + (LINE * -(-count // 2) if count > FEW else 0)
    return max(least, 0.9 + LINE * count)


def column(axes: Any, x: float, labels: Sequence[Label]) -> None:
    """Names one below the other at `x`, each as near to the height of its line's end as it gets;
    a thin line leads to an end that is elsewhere. Where there are many: a key."""
    if len(labels) > FEW:
        key(axes, labels)
        return
    low, high = axes.get_ylim()
    gap = LINE / (axes.figure.get_figheight() - 0.75) * (high - low)
    places = apart([label.y for label in labels], gap, low, high)
    for place, label in zip(places, labels, strict=True):
        if label.x < x:
            look = {"color": label.colour, "lw": 0.5, "alpha": 0.6, "clip_on": False}
            axes.annotate(
                "",
                (label.x, label.y),
                xytext=(x, place),
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "shrinkA": 0, "shrinkB": 4, **look},
            )
        write(axes, label, (x, place), (9, 0), "left")


def key(axes: Any, labels: Sequence[Label]) -> None:
    """Names with a piece of their lines, in the order of the lines' ends: right of the axes, or
    below them in a narrow figure."""
    from matplotlib.lines import Line2D

    ordered = sorted(labels, key=lambda label: -label.y)
    handles = [Line2D([], [], **{**label.look, "lw": 1.5, "markersize": 5.5}) for label in ordered]
    look = {
        "frameon": False,
        "labelcolor": [label.colour for label in ordered],
        "fontsize": SIZE - 0.5,
        "handlelength": 2.4,
        "labelspacing": 0.22,
    }
    names = [label.name for label in ordered]
    if axes.figure.get_figwidth() < NARROW:
        axes.figure.legend(handles, names, loc="outside lower left", ncols=2, **look)
    else:
        axes.legend(handles, names, loc="center left", bbox_to_anchor=(1.01, 0.5), **look)


def beside(axes: Any, labels: Sequence[Label], taken: Sequence[Any] = ()) -> None:
    """Each name as near to its point as there is room, with a thin line where that is not near.

    Args:
        taken: boxes in display coordinates that names should keep off as well.
    """
    canvas = axes.figure
    canvas.draw_without_rendering()  # the layout decides where points are
    points = [axes.transData.transform((label.x, label.y)) for label in labels]
    scale = canvas.dpi / 72
    frame, boxes = axes.get_window_extent(), [*taken]
    boxes += [_box(p[0] - 5 * scale, p[1] - 5 * scale, 10 * scale, 10 * scale) for p in points]
    for label, point in zip(labels, points, strict=True):
        sized = axes.text(0, 0, label.name, fontsize=SIZE).get_window_extent()
        axes.texts[-1].remove()
        places = _places(point, 1.08 * sized.width, sized.height, scale)
        box, ring = min(places, key=lambda place: (_cost(place[0], boxes, frame), place[1]))
        boxes.append(box)
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        offset = ((centre[0] - point[0]) / scale, (centre[1] - point[1]) / scale)
        far = {"arrowstyle": "-", "color": label.colour, "lw": 0.5, "alpha": 0.7, "shrinkB": 5}
        write(axes, label, (label.x, label.y), offset, "center", far if ring > RINGS[1] else None)


def write(
    axes: Any,
    label: Label,
    at: tuple[float, float],
    offset: tuple[float, float],
    side: str,
    line: dict[str, Any] | None = None,
) -> None:
    """The name at `offset` points from `at`."""
    axes.annotate(
        label.name,
        at,
        xytext=offset,
        textcoords="offset points",
        ha=side,
        va="center",
        color=label.colour,
        fontsize=SIZE,
        annotation_clip=False,
        arrowprops=line,
        bbox={"facecolor": style.PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.75},
        zorder=5,
    )


Box = tuple[float, float, float, float]


def _box(x: float, y: float, width: float, tall: float) -> Box:
    return (x, y, x + width, y + tall)


def _places(
    point: Sequence[float], width: float, tall: float, scale: float
) -> Iterator[tuple[Box, int]]:
    """Boxes around a point, nearest first: their edges, not their centres, keep the distance."""
    for ring in RINGS:
        for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
            c, s = np.cos(angle), np.sin(angle)
            x = point[0] + c * (ring * scale + width / 2)
            y = point[1] + s * (ring * scale + tall / 2)
            yield _box(x - width / 2, y - tall / 2, width, tall), ring


def _cost(box: Box, boxes: Sequence[Box], frame: Any) -> float:
    """Area that is written on already, or that lies outside of the axes."""
    wide, tall = box[2] - box[0], box[3] - box[1]
    inside = _shared(box, (frame.x0, frame.y0, frame.x1, frame.y1))
    return sum(_shared(box, other) for other in boxes) + 2 * (wide * tall - inside)


def _shared(a: Box, b: Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    tall = min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0.0) * max(tall, 0.0)


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
