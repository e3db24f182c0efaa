"""The models of a report: one evaluation folder each, and how each looks in figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from samplers.budget import EFFORTS
from trainer.eval import findings
from trainer.eval.metric import Metric
from trainer.eval.statistics import Estimate
from trainer.report import style
from trainer.report.evaluation.digest import Digest, digest

Kind = Literal["cut", "enforced", "announced", "effort"]
UNASKED = "not asked"
NONE = Estimate(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Experiment:
    """One way to limit thoughts. They measure different things: no line holds two of them."""

    kind: Kind
    title: str
    metric: str
    """Pattern of the accuracy's name: {task}, {at}."""
    tokens: str
    line: Any
    filled: bool


EXPERIMENTS: Mapping[Kind, Experiment] = {
    e.kind: e
    for e in (
        Experiment(
            "cut", "cut at the budget", "{task}/accuracy@{at}", "{task}/tokens@{at}", "-", True
        ),
        Experiment(
            "enforced",
            "announced and enforced",
            "{task}/prompt/accuracy@{at}",
            "{task}/prompt/tokens@{at}",
            (0, (6, 1.2)),
            True,
        ),
        Experiment(
            "announced",
            "announced alone",
            "{task}/prompt/soft_accuracy@{at}",
            "{task}/prompt/soft_tokens@{at}",
            (0, (1, 1.1)),
            False,
        ),
        Experiment(
            "effort",
            "by effort",
            "{task}/effort/accuracy@{at}",
            "{task}/effort/tokens@{at}",
            (0, (3, 1.4)),
            False,
        ),
    )
}


@dataclass(frozen=True)
class Point:
    """One budget or effort of an experiment: where in the samples it is, and what was measured."""

    name: str
    budget: float
    """Tokens; infinite without a limit; NaN for an effort."""
    digest: Digest
    column: int
    accuracy: Estimate
    tokens: Estimate


@dataclass(frozen=True)
class Series:
    """One model in one experiment, budgets ascending (efforts from the least)."""

    model: Model
    experiment: Experiment
    points: tuple[Point, ...]

    @property
    def look(self) -> dict[str, Any]:
        """Of a line: the model's colour, the experiment's strokes; a baseline's cuts are dashed."""
        model, kind = self.model, self.experiment
        dashed = model.baseline and kind.kind == "cut"
        return {
            "color": model.colour,
            "linestyle": (0, (4, 2)) if dashed else kind.line,
            "marker": model.marker,
            "markerfacecolor": model.colour if kind.filled else style.PAPER,
            "markeredgecolor": style.PAPER if kind.filled else model.colour,
            "markeredgewidth": 0.8 if kind.filled else 1.2,
            "zorder": 2 if model.baseline else 3,
        }


@dataclass(frozen=True)
class Model:
    """One evaluation folder."""

    name: str
    index: int | None
    """Which colour and marker; None: the baseline."""
    path: Path
    settings: Mapping[str, Any]
    metrics: Mapping[str, Metric]
    digests: tuple[tuple[str, Digest], ...]
    """(task, digest)"""
    findings: tuple[str, ...]
    folder: Any

    @property
    def baseline(self) -> bool:
        return self.index is None

    @property
    def colour(self) -> str:
        return style.MUTED if self.index is None else style.colour(self.index)

    @property
    def marker(self) -> str:
        return "o" if self.index is None else style.marker(self.index)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for task, _ in self.digests))

    def of(self, task: str, *modes: str) -> list[Digest]:
        return [d for name, d in self.digests if name == task and (not modes or d.mode in modes)]

    def free(self, task: str) -> Digest | None:
        """Samples that nothing was announced to; their last column is without any limit."""
        found = [d for d in self.of(task) if not d.asked]
        return found[0] if found else None

    def estimate(self, metric: str) -> Estimate:
        """NaN where it was not measured."""
        found = self.metrics.get(metric)
        return NONE if found is None else found.estimate

    def series(self, task: str, *kinds: Kind) -> Iterator[Series]:
        """The experiments that this model was in."""
        for kind in kinds or tuple(EXPERIMENTS):
            points = tuple(self._points(task, EXPERIMENTS[kind]))
            if points:
                yield Series(self, EXPERIMENTS[kind], points)

    def _points(self, task: str, kind: Experiment) -> Iterator[Point]:
        if kind.kind == "cut":
            for found in self.of(task, "truncate"):
                for j, budget in enumerate((*found.budgets, math.inf)):
                    yield self._point(task, kind, found, j, budget)
        elif kind.kind == "effort":
            for found in sorted(self.of(task, "effort"), key=_effort):
                yield self._point(task, kind, found, -1, math.nan, found.asked or UNASKED)
        else:
            told = sorted(self.of(task, "prompt"), key=lambda d: d.target or 0)
            told = [d for d in told if d.target is not None]
            column = -1 if kind.kind == "announced" else 0
            for found in told:
                if found.budgets or column:
                    yield self._point(task, kind, found, column, float(found.target or 0))
            if told and (free := self.free(task)):
                yield self._point(task, kind, free, -1, math.inf)

    def _point(
        self, task: str, kind: Experiment, found: Digest, column: int, budget: float, name: str = ""
    ) -> Point:
        at = name or ("inf" if math.isinf(budget) else f"{budget:.0f}")
        pair = []
        for pattern, plain in ((kind.metric, "accuracy"), (kind.tokens, "tokens")):
            known = self.estimate(pattern.format(task=task, at=at))
            if known is NONE and (math.isinf(budget) or name == UNASKED):
                known = self.estimate(f"{task}/{plain}@inf")
            pair.append(known)
        return Point(at, budget, found, column, pair[0], pair[1])


def _effort(found: Digest) -> int:
    """Known efforts ascending, others, and last what nothing was asked of."""
    if found.asked in EFFORTS:
        return EFFORTS.index(found.asked)
    return len(EFFORTS) + (not found.asked)


def read(folders: Sequence[Path], baseline: Path | None = None) -> list[Model]:
    """The models, the baseline first.

    Raises:
        ValueError: a folder is none of an evaluation.
    """
    from trainer.eval.folder import open_folder

    paths = [Path(path) for path in folders]
    if baseline is not None:
        paths = [Path(baseline), *(p for p in paths if p.resolve() != Path(baseline).resolve())]
    opened = [open_folder(path) for path in paths]
    return made(opened, baseline is not None)


def made(opened: Sequence[Any], first_is_baseline: bool = False) -> list[Model]:
    """Models of opened folders; samples are read one folder at a time."""
    models = []
    for i, (folder, name) in enumerate(zip(opened, _names(opened), strict=True)):
        index = i - first_is_baseline
        tables, settings, metrics = folder.tables(), folder.settings, folder.metrics()
        told = (
            *unlike(opened[0].settings, settings),
            *findings.findings(tables, metrics),
            *settings.get("server", ()),
        )
        digests = tuple((table.task, digest(table)) for table in tables)
        look = index if index >= 0 else None
        path = Path(folder.path)
        models.append(Model(name, look, path, settings, metrics, digests, told, folder))
    return models


MUST = ("graders", "max_tokens", "answer_tokens", "temperature", "top_p", "top_k")
"""Settings without which numbers beside one another mislead."""


def unlike(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What was not the same for the first model of a report."""
    lines = [
        f"{name} is {other.get(name)} here and {first.get(name)} for the first model"
        for name in MUST
        if other.get(name) != first.get(name)
    ]
    ours, theirs = (s.get("identity", {}).get("tasks", {}) for s in (other, first))
    return lines + [
        f"{task}: other problems ({ours[task]}) than the first model's ({theirs[task]}): only "
        "paired comparisons are of the same ones"
        for task in ours
        if task in theirs and ours[task] != theirs[task]
    ]


def _names(opened: Sequence[Any]) -> list[str]:
    """By model where those differ, else by folder; as much of the paths as tells them apart."""
    said = [str(folder.settings.get("model", "")).rstrip("/") for folder in opened]
    if len(set(said)) < len(said) or not all(said):
        said = [str(Path(folder.path).resolve()) for folder in opened]
    paths = [Path(text).parts for text in said]
    for depth in range(max(map(len, paths))):
        # A hub name, or base/find, is short as it is.
        short = ["/".join(p if len(p) < 3 else p[-depth - 1 :]) for p in paths]
        if len(set(short)) == len(short):
            return short
    return [f"{text} ({i + 1})" for i, text in enumerate(said)]


def tasks(models: Sequence[Model]) -> list[str]:
    return list(dict.fromkeys(task for model in models for task in model.tasks))
