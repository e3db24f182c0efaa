"""Metrics as tables that people read: aligned text for a console, or Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainer.eval.metric import Metric

Cells = list[list[str]]
NOTE = (
    "[low, high]: 95% interval over problems. fixed: standard error on these very problems "
    "(sampling noise); pop: over problems like these."
)
_LINES = ("accuracy", "tokens", "think_tokens", "answer_tokens", "forced")
_COSTS = ("tokens_per_solve", "cost_of_pass", "e3", "ockscore", "cap_accuracy")
_TOLD = ("accuracy", "soft_accuracy", "tokens", "soft_tokens")
_KEPT = ("utilisation", "deviation", "violation", "violation10", "overshoot", "leak")
_EFFORT = ("accuracy", "tokens", "think_tokens", "answer_tokens", "leak")
_PICKED = ("accuracy", "tokens", "latency")
_EXITS = ("accuracy", "tokens", "exited")


@dataclass(frozen=True, slots=True)
class Block:
    """A table: heads in the first row."""

    title: str
    cells: Cells


def text(metrics: Mapping[str, Metric], findings: Sequence[str] = ()) -> str:
    """For a console."""
    parts = [f"{block.title}\n{aligned(block.cells)}" for block in blocks(metrics)]
    return "\n\n".join([*parts, NOTE, *(f"finding: {line}" for line in findings)])


def markdown(metrics: Mapping[str, Metric], findings: Sequence[str] = ()) -> str:
    """For summary.md."""
    parts = [f"## {block.title}\n\n{piped(block.cells)}" for block in blocks(metrics)]
    told = ["## Findings\n\n" + "\n".join(f"- {line}" for line in findings)] if findings else []
    return "\n\n".join(["# Evaluation", *told, *parts, NOTE]) + "\n"


def aligned(cells: Cells) -> str:
    """Columns beside one another: the first to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def piped(cells: Cells) -> str:
    """A table in Markdown."""
    head, *rows = ([cell.replace("|", "\\|") for cell in row] for row in cells)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def blocks(metrics: Mapping[str, Metric]) -> list[Block]:
    """The tables of each task: budgets, announced numbers, efforts, selections, exits, the rest."""
    tasks: dict[str, dict[str, Metric]] = {}
    for full, found in metrics.items():
        task, _, name = full.partition("/")
        tasks.setdefault(task, {})[name] = found
    return [block for task, mine in tasks.items() for block in _of_task(task, mine)]


def _of_task(task: str, metrics: Mapping[str, Metric]) -> list[Block]:
    used: set[str] = set()

    def at(title: str, first: str, form: str, keys: Iterable[str], kinds: Sequence[str]) -> Block:
        """One row a key, one column a kind, which at least one key has."""
        keys = list(dict.fromkeys(keys))
        names = {(k, kind): form.format(kind=kind, key=k) for k in keys for kind in kinds}
        shown = [kind for kind in kinds if any(names[k, kind] in metrics for k in keys)]
        used.update(name for name in names.values() if name in metrics)
        rows = [[k, *_row(metrics, k, shown, names)] for k in keys]
        return Block(f"{task}: {title}", [[first, *_heads(shown)], *rows])

    told = "prompt/{kind}@{key}", _keys(metrics, "prompt/accuracy@")
    levels = [
        n.split("/")[0].removeprefix("difficulty-") for n in metrics if n[:11] == "difficulty-"
    ]
    made = [
        at("cut at a budget", "budget", "{kind}@{key}", _keys(metrics, "accuracy@"), _LINES),
        at("what right answers cost", "budget", "{kind}@{key}", _keys(metrics, "e3@"), _COSTS),
        at("told a budget, and cut there (soft: told alone)", "told", *told, _TOLD),
        at("how what was told is kept, without the cut", "told", *told, _KEPT),
        at(
            "asked for an effort",
            "effort",
            "effort/{kind}@{key}",
            _keys(metrics, "effort/accuracy@"),
            _EFFORT,
        ),
        at(
            "chosen of k samples",
            "selection",
            "{key}/{kind}",
            (name[: -len("/latency")] for name in metrics if name.endswith("/latency")),
            _PICKED,
        ),
        at(
            "ended early (offline, at the cuts)",
            "rule",
            "stop/{key}/{kind}",
            (n[len("stop/") : -len("/exited")] for n in metrics if n.endswith("/exited")),
            _EXITS,
        ),
        at("by difficulty", "difficulty", "difficulty-{key}/{kind}", levels, _LINES),
    ]
    rest = {name: found for name, found in metrics.items() if name not in used}
    head = ["metric", "value", "95% interval", "fixed", "pop", "problems"]
    scalars = [[name, *_scalar(name, found)] for name, found in rest.items()]
    found = [block for block in made if block.cells[1:]]
    return [*found, *([Block(f"{task}: more", [head, *scalars])] if scalars else [])]


def _keys(metrics: Mapping[str, Metric], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]


def _heads(kinds: Sequence[str]) -> list[str]:
    """Accuracies have their interval and, the first, both errors."""
    out: list[str] = []
    for i, kind in enumerate(kinds):
        out += [kind.replace("_", " ")]
        if kind.endswith("accuracy"):
            out += ["95% interval", *(["fixed", "pop"] if i == 0 else [])]
    return out


def _row(
    metrics: Mapping[str, Metric],
    key: str,
    kinds: Sequence[str],
    names: Mapping[tuple[str, str], str],
) -> list[str]:
    out: list[str] = []
    for i, kind in enumerate(kinds):
        found = metrics.get(names[key, kind])
        if not kind.endswith("accuracy"):
            out.append("-" if found is None else number(kind, found.value))
        elif found is None:
            out += ["-"] * (4 if i == 0 else 2)
        else:
            value, interval, *errors = _scalar(kind, found)[:4]
            out += [value, interval, *(errors if i == 0 else [])]
    return out


def _scalar(name: str, found: Metric) -> list[str]:
    shown: Callable[[float], str] = lambda value: number(name, value)  # noqa: E731
    known = not math.isnan(found.low)
    interval = f"[{shown(found.low)}, {shown(found.high)}]" if known else "-"
    errors = ["-" if e is None else shown(e) for e in (found.se_fixed, found.se_pop)]
    return [shown(found.value), interval, *errors, str(found.n)]


def number(name: str, value: float) -> str:
    """Tokens with one digit, what is small in powers of ten, all else with three digits."""
    if math.isnan(value):
        return "-"
    counted = any(word in name for word in ("tokens", "latency", "cost_of_pass", "ockscore"))
    if counted:
        return f"{value:,.1f}"
    if name.startswith("e3"):
        return f"{value:.3g}"
    return f"{value:.2e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"
