"""Tables of an evaluation: every number is one of metrics.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainer.eval.metric import Metric
from trainer.eval.summary import aligned
from trainer.report.evaluation.models import EXPERIMENTS, Kind, Model, Series
from trainer.report.evaluation.pairs import pairs
from trainer.report.table import p_value

HEADLINE: Mapping[str, str] = {
    "accuracy@inf": "accuracy",
    "think_tokens@inf": "thinking tokens",
    "answer_tokens@inf": "answer tokens",
    "anytime/log": "any-time, log prior",
    "cap_area": "area under caps",
    "tokens_per_solve@inf": "tokens per solve",
    "e3@inf": "E3",
    "prompt/rank_correlation": "rank correlation",
    "effort/badge": "ThinkDial badge",
}
"""Metric of a task -> heading; pass@k and what is asked for come after them."""
HEALTH: Mapping[str, str] = {
    "overthinking/harm": "harm",
    "overthinking/waste": "waste",
    "underthinking/problems": "stopped short",
    "underthinking/left": "left a right idea",
    "compression@0.01": "compression at -0.01",
    "truncated": "met the cap",
    "repetition": "repeated",
    "no_answer": "no answer",
    "unparseable": "unparseable",
    "unknown": "unknown",
}
KEPT: Mapping[str, str] = {
    "deviation": "deviation",
    "violation": "over the budget",
    "violation10": "over by 10%",
    "overshoot": "overshoot",
    "utilisation": "used",
    "leak": "leak",
}
NORMAL = 1.959964
"""Of the interval on these very problems: with every sample known apart it is normal."""


@dataclass(frozen=True)
class Cell:
    """A number and what stands small below it."""

    value: str
    below: tuple[str, ...] = ()


def columns(
    models: Sequence[Model],
    task: str,
    show: Sequence[str] = (),
    heads: Mapping[str, str] = HEADLINE,
) -> dict[str, str]:
    """Metric -> heading, of those that some model has."""
    known = {name for m in models for name in m.metrics}
    found = {f"{task}/{m}": head for m, head in heads.items() if f"{task}/{m}" in known}
    most = max((k for k in _ks(known, task) if k > 1), default=0)
    if most and heads is HEADLINE:
        found[f"{task}/pass@{most}"] = f"pass@{most}"
    asked = [name if name in known else f"{task}/{name}" for name in show]
    return found | {name: name.removeprefix(f"{task}/") for name in asked if name in known}


def _ks(known: set[str], task: str) -> Iterator[int]:
    for name in known:
        head, _, k = name.rpartition("@")
        if head == f"{task}/pass" and k.isdigit():
            yield int(k)


def cell(metric: Metric | None, name: str) -> Cell:
    """The value; below it the half width of its interval, and that on these very problems."""
    if metric is None or math.isnan(metric.value):
        return Cell("-")
    below = []
    half = metric.half_width
    if not math.isnan(half):
        below.append(f"+-{number(half, name)}")
    if metric.se_fixed is not None:
        below.append(f"set +-{number(NORMAL * metric.se_fixed, name)}")
    return Cell(number(metric.value, name), tuple(below))


def number(value: float, name: str) -> str:
    """Three decimals of a share, one of tokens, more where a number is small."""
    if math.isinf(value):
        return "none"
    if name.endswith("/badge"):
        return "yes" if value else "no"
    tokens = "token" in name or "cost" in name or "latency" in name
    if "e3" in name:
        return f"{value:.2g}"
    return f"{value:,.{1 if tokens else 3}f}"


def by_budget(models: Sequence[Model], task: str, kind: Kind) -> tuple[list[str], list[Series]]:
    """Names of the budgets (or efforts) of one experiment, ascending, and its series."""
    found = [s for m in models for s in m.series(task, kind)]
    points = {p.name: p.budget for s in found for p in s.points}
    order = sorted(points, key=lambda n: points[n] if points[n] == points[n] else 0.0)
    return order, found


def budget_cell(series: Series, at: str) -> Cell:
    """Accuracy at one budget, its interval and the tokens spent there."""
    names = [p.name for p in series.points]
    if at not in names:
        return Cell("-")
    point = series.points[names.index(at)]
    accuracy, tokens = point.accuracy, point.tokens
    if math.isnan(accuracy.value):
        return Cell("-")
    below = [] if math.isnan(accuracy.half_width) else [f"+-{accuracy.half_width:.3f}"]
    if not math.isnan(tokens.value):
        below.append(f"{tokens.value:,.0f} tok.")
    return Cell(f"{accuracy.value:.3f}", tuple(below))


def kept(models: Sequence[Model], task: str) -> list[list[str]]:
    """How budgets that were announced alone were kept: heads, then a line for each measure."""
    order, found = by_budget(models, task, "announced")
    finite = [name for name in order if name != "inf"]
    lines = []
    for series in found:
        model = series.model
        for measure, head in KEPT.items():
            names = [f"{task}/prompt/{measure}@{b}" for b in finite]
            if any(name in model.metrics for name in names):
                cells = [cell(model.metrics.get(n), measure).value for n in names]
                lines.append([f"{model.name}: {head}" if len(models) > 1 else head, *cells])
    return [["announced tokens", *finite], *lines] if lines else []


CONTRAST_HEADS = [
    "paired by problem", "accuracy", "95% interval", "p (t)", "p (flip)", "tokens",
    "95% interval", "gained", "same", "lost",
]  # fmt: skip


def contrasts(models: Sequence[Model], task: str) -> list[list[str]]:
    """Each model less the baseline (or the first), without a limit."""
    lines = []
    for pair in pairs(models, task):
        a, t = pair.accuracy, pair.tokens
        lines.append(
            [
                f"{pair.after.name} - {pair.before.name}",
                f"{a.difference.value:+.3f}",
                _interval(a.difference.low, a.difference.high, 3),
                p_value(a.p_t),
                p_value(a.p_flip),
                f"{t.difference.value:+,.1f}",
                _interval(t.difference.low, t.difference.high, 1),
                *map(str, pair.counts),
            ]
        )
    return lines


def _interval(low: float, high: float, digits: int) -> str:
    return "-" if math.isnan(low) else f"{low:+,.{digits}f} to {high:+,.{digits}f}"


def every(model: Model) -> list[list[str]]:
    """All metrics of a model, as text."""
    return [
        [name, *(_plain(x) for x in (m.value, m.low, m.high)), f"{m.n:,}", f"{m.samples:,}",
         *("-" if x is None else _plain(x) for x in (m.se_fixed, m.se_pop))]
        for name, m in model.metrics.items()
    ]  # fmt: skip


EVERY_HEADS = [
    "metric", "value", "low", "high", "problems", "samples", "error, set", "error, population",
]  # fmt: skip


def _plain(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.6g}"


def text(models: Sequence[Model], tasks: Sequence[str], show: Sequence[str] = ()) -> str:
    """For a console: the headline, then accuracy at each budget."""
    lines: list[str] = []
    for task in tasks:
        heads = columns(models, task, show)
        rows = [[task, *heads.values()]]
        for model in models:
            cells = [cell(model.metrics.get(name), name) for name in heads]
            rows.append([model.name, *(_flat(c) for c in cells)])
        lines += [aligned(rows), ""]
        for kind, experiment in EXPERIMENTS.items():
            order, found = by_budget(models, task, kind)
            if found:
                rows = [[f"accuracy, {experiment.title}", *(s.model.name for s in found)]]
                rows += [[at, *(_flat(budget_cell(s, at)) for s in found)] for at in order]
                lines += [aligned(rows), ""]
    note = "+-: 95% t interval over problems"
    if any("set +-" in line for line in lines):  # of one problem, which says nothing of others
        note += "; set +-: of these very problems"
    return "\n".join([*lines, note])


def _flat(found: Cell) -> str:
    return " ".join([found.value, *found.below[:1]])
