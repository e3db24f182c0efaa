"""How figures look, and how they become files and inline SVG.

Colours: Okabe and Ito's palette (colour-blind safe), one per arm, in order; the base is grey. From
the eighth arm on colours come again, with other markers and lines. In the page each colour is a CSS
variable, so that one SVG serves light and dark.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b07d00", "#3f9fd6", "#7a5c43")
SERIES_DARK = ("#5fb3ea", "#ff9a57", "#3fcf9f", "#e08ac8", "#e3b341", "#8fd0f5", "#c9a98c")
INK, MUTED, RULE, PAPER = "#1d232b", "#646c78", "#d9dde3", "#fffffe"
INK_DARK, MUTED_DARK, RULE_DARK, PAPER_DARK = "#e6e9ee", "#9aa3b0", "#343b45", "#14181d"
LIGHT = {
    "ink": INK,
    "muted": MUTED,
    "rule": RULE,
    "paper": PAPER,
    **{f"s{i}": colour for i, colour in enumerate(SERIES)},
}
DARK = {
    "ink": INK_DARK,
    "muted": MUTED_DARK,
    "rule": RULE_DARK,
    "paper": PAPER_DARK,
    **{f"s{i}": colour for i, colour in enumerate(SERIES_DARK)},
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SIGNS = (9679, 9632, 9650, 9670, 9660, 10010, 10006)
"""The markers as characters of a page, by number."""
LINES = ("-", (0, (6, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)))

Draw = Callable[[Any, bool], bool]
"""(figure, narrow) -> whether there was anything to draw."""


@dataclass(frozen=True)
class Figure:
    """A figure of the report. Sizes are inches: (width, height) of a wide and a narrow page."""

    name: str
    title: str
    caption: str
    draw: Draw
    wide: tuple[float, float] = (7.6, 3.9)
    narrow: tuple[float, float] = (3.9, 3.7)


def colour(index: int) -> str:
    return SERIES[index % len(SERIES)]


def marker(index: int) -> str:
    return MARKERS[_marker(index)]


def sign(index: int) -> str:
    """The marker in a page."""
    return f"&#{SIGNS[_marker(index)]};"


def line(index: int) -> Any:
    return LINES[index // len(SERIES) % len(LINES)]


def _marker(index: int) -> int:
    """Shifted by one with each round of the colours: no two of 49 arms look the same."""
    return (index + index // len(SERIES)) % len(MARKERS)


def files(figure: Figure, folder: Path) -> None:
    """Write the figure as name.svg and name.png (light)."""
    drawn = _draw(figure, narrow=False)
    if drawn is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with _settings("path"):
            drawn.savefig(folder / f"{figure.name}.svg", metadata={"Date": None})
            drawn.savefig(folder / f"{figure.name}.png", dpi=200)


def inline(figure: Figure, narrow: bool) -> str | None:
    """The figure as an <svg> element whose colours are CSS variables; None if it is empty."""
    drawn = _draw(figure, narrow)
    if drawn is None:
        return None
    buffer = io.StringIO()
    with _settings("none"):
        drawn.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for name, value in LIGHT.items():
        svg = svg.replace(value, f"var(--{name})")
    # Ids must be unique in a page that holds several figures.
    prefix = hashlib.sha1(f"{figure.name}{narrow}".encode()).hexdigest()[:6]
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"',
        _sized,
        svg,
        count=1,
    )
    return svg.replace("<svg", f'<svg role="img" aria-label="{figure.title}"', 1)


def _sized(match: re.Match[str]) -> str:
    return match.group(1) or match.group(2)


def _draw(figure: Figure, narrow: bool) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with _settings("none"):
        canvas = Canvas(figsize=figure.narrow if narrow else figure.wide, layout="constrained")
        FigureCanvasAgg(canvas)
        return canvas if figure.draw(canvas, narrow) else None


def _settings(fonttype: str) -> Any:
    import matplotlib

    return matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": [
                "Inter",
                "Helvetica Neue",
                "Arial",
                "Liberation Sans",
                "DejaVu Sans",
            ],
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.labelsize": 9.5,
            "axes.labelcolor": MUTED,
            "axes.edgecolor": RULE,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "grid.color": RULE,
            "grid.linewidth": 0.6,
            "text.color": INK,
            "xtick.color": RULE,
            "ytick.color": RULE,
            "xtick.labelcolor": MUTED,
            "ytick.labelcolor": MUTED,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "ytick.major.size": 0,
            "xtick.major.size": 3,
            "lines.linewidth": 1.9,
            "lines.markersize": 4.5,
            "lines.solid_capstyle": "round",
            "figure.facecolor": PAPER,
            "axes.facecolor": "none",
            "savefig.facecolor": PAPER,
            "svg.fonttype": fonttype,
            "svg.hashsalt": "laconic",
            "text.parse_math": False,  # names may hold dollars
        }
    )
