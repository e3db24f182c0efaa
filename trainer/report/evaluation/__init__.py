"""Plots and one self-contained page from evaluation folders (`laconic eval --out`).

Each folder is one model. Figures are functions of digests of the tables of samples and of
metrics.json; a figure with nothing to show is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.report.evaluation.models import Model
    from trainer.report.evaluation.panels import Sheet
    from trainer.report.options import Options
    from trainer.report.style import Figure

__all__ = ["is_evaluation", "summarise", "write"]


def is_evaluation(folder: Path) -> bool:
    """Whether `laconic eval` wrote it."""
    return (Path(folder) / "eval.json").is_file()


def write(
    folders: Sequence[Path], out: Path, baseline: Path | None = None, show: Sequence[str] = ()
) -> Path:
    """Write `out` (report.html) and, beside it, plots/*.svg and plots/*.png.

    Args:
        folders: evaluation folders, each a model.
        baseline: the folder that others are compared with; may be one of `folders`.
        show: metrics to add to the summary, as truncated or TASK/think_tokens/sd.

    Raises:
        ValueError: no folders, one that holds no evaluation or no metrics, or `out` is a folder.
    """
    from trainer.report.evaluation import models

    if not folders and baseline is None:
        raise ValueError("report: no evaluation folders were given; write laconic report FOLDER")
    return write_models(models.read(folders, baseline), out, show)


def write_models(found: Sequence[Model], out: Path, show: Sequence[str] = ()) -> Path:
    """As `write`, of models that were read."""
    from trainer.report import parts, style
    from trainer.report.evaluation import models, page
    from trainer.report.evaluation.panels import Sheet

    out = parts.place(out)
    _check_shown(found, show)
    names = models.tasks(found)
    sheets = []
    for task, prefix in zip(names, _prefixes(names), strict=True):
        sheet = Sheet(task, tuple(m for m in found if m.of(task)), prefix)
        shown = figures(sheet)
        for figure in shown:
            style.files(figure, out.parent / "plots")
        sheets.append((sheet, shown))
    return parts.save(page.render(found, sheets, show), out)


def summarise(folders: Sequence[Path], out: Path, options: Options) -> str:
    """`write`, and the tables as text for a console. `options.against` names the baseline.

    Raises:
        ValueError: as `write`; or options of training runs.
    """
    from trainer.report.evaluation import models, table

    for name, value in (("--reach", options.reach), ("--at-tokens", options.at_tokens)):
        if value is not None:
            raise ValueError(
                f"{name}: {value} is of tokens that training generated, which evaluation folders "
                "do not hold; give run folders, or leave it out"
            )
    baseline = None
    if options.against is not None:
        named = [Path(f) for f in folders if options.against in (str(f), Path(f).name)]
        if not named:
            raise ValueError(
                f"--against: no folder '{options.against}'; there are "
                f"{', '.join(Path(f).name for f in folders)}"
            )
        baseline = named[0]
    found = models.read(folders, baseline)
    page = write_models(found, out, options.show)
    return f"{table.text(found, models.tasks(found), options.show)}\nreport: {page}"


def figures(sheet: Sheet) -> list[Figure]:
    """All figures of one task."""
    from trainer.report.evaluation import choices, curves, difficulty, maps, pairs, pareto, stacks

    made: list[Figure] = []
    for part in (pareto, curves, difficulty, stacks, choices, pairs, maps):
        made += part.figures(sheet)
    return made


def _prefixes(tasks: Sequence[str]) -> list[str]:
    """Of names of files, a different one for each task; none where there is one task."""
    plain = ["".join(c if c.isalnum() or c in "-_." else "-" for c in task) for task in tasks]
    made = [f"{p}-{i}" if p in plain[:i] else p for i, p in enumerate(plain)]
    return [f"{p}-" for p in made] if len(tasks) > 1 else ["" for _ in tasks]


def _check_shown(found: Sequence[Model], show: Sequence[str]) -> None:
    from trainer.report.options import Options

    known = {name for m in found for name in m.metrics}
    short: set[Any] = {name.partition("/")[2] for name in known}
    Options(show=tuple(show)).check_shown(known | short)
