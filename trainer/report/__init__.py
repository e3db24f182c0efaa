"""Plots and one self-contained HTML page from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.report.options import Options
from trainer.report.table import summary_table

__all__ = ["Options", "summary_table", "write"]
NOTHING = Options()


def write(
    runs: Sequence[Path], out: Path, base: Path | None = None, options: Options = NOTHING
) -> Path:
    """Write `out` (report.html) and, beside it, plots/*.svg and plots/*.png.

    Args:
        runs: run folders; those of one name are the seeds of one arm.
        base: a run folder, with whose last evaluation all are compared. By default what the first
            run started from.

    Raises:
        ValueError: no runs, a folder that is none, what `options` name is not there, or `out` is a
            folder.
    """
    from trainer.report import page, parts, plots, style
    from trainer.report.data import base_of, read_arms

    if not runs:
        raise ValueError("report: no run folders were given; write laconic report RUN ...")
    out = parts.place(out)
    found = read_arms(runs, options)
    start = base_of(found, base)
    figures = plots.figures(found, start, options.at_tokens)
    for figure in figures:
        style.files(figure, out.parent / "plots")
    return parts.save(page.render(found, start, figures, options), out)
