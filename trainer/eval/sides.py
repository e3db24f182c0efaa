"""What `laconic compare` reads: an evaluation's folder, or a run's last evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.eval.rows import table_of
from trainer.eval.table import UNCUT, Table

MUST = ("max_tokens", "answer_tokens")
"""Settings without which two accuracies say nothing of one another."""
TOLD = (
    "temperature",
    "top_p",
    "top_k",
    "mode",
    "samples",
    "stopping",
    "template",
    "dtype",
    "engine",
    "engine_version",
)
"""Those that are told where they differ."""
NAMED = 3
"""Problems that are named where they differ."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two."""

    path: Path
    tables: list[Table]
    problems: Mapping[tuple[str, str], str]
    """Digest of prompt and gold by (task, id); '' where they were not saved."""
    graders: Mapping[str, str]
    """Of each task, with its version."""
    settings: Mapping[str, Any]


def read(path: Path) -> Side:
    """An evaluation folder, or the last evaluation of a run folder.

    Raises:
        ValueError: there is none, or it was not graded.
    """
    path = Path(path)
    if (path / "eval.json").is_file():
        return _evaluation(path)
    return _run(path)


def check(a: Side, b: Side) -> None:
    """Refuse two evaluations that cannot be compared.

    Raises:
        ValueError: other problems, prompts or golds, graders or caps; names what differs.
    """
    both = f"{a.path} and {b.path}"
    for name in (*MUST, "data"):
        if name in a.settings and name in b.settings:
            one, two = a.settings[name], b.settings[name]
            if one != two:
                raise ValueError(
                    f"{both} cannot be compared: {name} is {one} in the first and {two} in the "
                    "second; evaluate both alike"
                )
    tasks = {task for task, _ in a.problems} & {task for task, _ in b.problems}
    if not tasks:
        known = [", ".join(sorted({task for task, _ in side.problems})) for side in (a, b)]
        raise ValueError(f"{both} share no task: {known[0]} and {known[1]}")
    for task in sorted(tasks):
        if a.graders[task] != b.graders[task]:
            raise ValueError(
                f"{both} cannot be compared: {task} is graded by {a.graders[task]} in the first "
                f"and by {b.graders[task]} in the second; grade both alike (laconic eval FOLDER "
                "--offline)"
            )
    one, two = ({key for key in side.problems if key[0] in tasks} for side in (a, b))
    if alone := sorted(one ^ two):
        raise ValueError(
            f"{both} hold other problems: {len(one - two)} are in the first alone and "
            f"{len(two - one)} in the second ({_some(alone)}); evaluate both on the same"
        )
    other = [k for k in sorted(one) if a.problems[k] and b.problems[k] not in ("", a.problems[k])]
    if other:
        raise ValueError(
            f"{both} ask or expect something else in {len(other)} of {len(one)} problems "
            f"({_some(other)}): prompt or gold differ; evaluate both on the same file"
        )


def differences(a: Side, b: Side) -> list[str]:
    """What else is not the same, a line each."""
    out = []
    for name in TOLD:
        one, two = a.settings.get(name), b.settings.get(name)
        if one != two and name in a.settings and name in b.settings:
            out.append(f"note: {name} is {one} in A and {two} in B")
    left = {(t.task, t.asked) for t in a.tables} ^ {(t.task, t.asked) for t in b.tables}
    if left:
        names = ", ".join(sorted(f"{t} at '{asked}'" if asked else t for t, asked in left))
        out.append(f"note: only one of both has {names}")
    return out


def _some(keys: list[tuple[str, str]]) -> str:
    return ", ".join(name for _, name in keys[:NAMED]) + (", ..." if len(keys) > NAMED else "")


def _evaluation(path: Path) -> Side:
    from trainer.eval.folder import open_folder

    folder = open_folder(path)
    problems = {key: _digest(row["prompt"], row["gold"]) for key, row in folder.problems().items()}
    tables = folder.tables()
    if not tables:
        raise ValueError(f"{path} holds no samples; finish it with the same laconic eval")
    settings = {**folder.settings, **folder.settings.get("identity", {})}
    return Side(path, tables, problems, folder.graders(), settings)


def _run(path: Path) -> Side:
    from trainer.report.data import read_evaluations, read_run

    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; give an evaluation's, or a run's")
    found = read_evaluations(path)
    if not found:
        raise ValueError(
            f"{path} holds no evaluation; give a folder of `laconic eval --out`, or of a run that "
            "evaluated"
        )
    last = found[-1]
    settings = {name: last.summary[name] for name in (*MUST, *TOLD) if name in last.summary}
    task = "eval"
    if (path / "config.yaml").is_file():
        settings["data"] = read_run(path).problems
        task = _named(json.loads(settings["data"]))
    grid = [b for b in last.summary["budgets"] if b != UNCUT]
    table = replace(table_of(last.rows, grid, last.cap or None), task=task)
    problems = {(task, name): "" for name in table.ids_M}
    graders = {task: ", ".join(last.summary.get("graders", []))}
    return Side(path, [table], problems, graders, settings)


def _named(data: Mapping[str, Any] | None) -> str:
    """A task's name, or that of its file."""
    data = data or {}
    if isinstance(task := data.get("task"), str):
        return task
    if isinstance(task, Mapping):
        return str(task.get("name", "eval"))
    where = data.get("path")
    file = where.get("test") if isinstance(where, Mapping) else where
    return Path(str(file)).stem if file else "eval"


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
