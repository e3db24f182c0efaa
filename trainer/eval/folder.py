"""An evaluation's folder: what was asked, what came back, and the tables that follow from it.

eval.json        what was asked; its identity decides whether the folder can be gone on with
problems.jsonl   one line a problem
samples.jsonl    one line a sample, append-only: what was paid for (trainer/eval/samples.py)
verdicts.jsonl   derived: a line of graders, then one line a sample in the order of samples
metrics.json, summary.md, report.html, plots/, environment.json      derived
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rewards.grader import load
from trainer.eval import metric, samples
from trainer.eval.columns import Columns
from trainer.eval.samples import PROBLEMS, SAMPLES, SETTINGS, VERDICTS, Row
from trainer.eval.table import Table

METRICS = "metrics.json"


class Folder:
    """A saved evaluation. What it holds is read when it is asked for."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = dict(settings)

    @property
    def tasks(self) -> list[str]:
        return [task["name"] for task in self.settings["tasks"]]

    def problems(self) -> dict[tuple[str, str], Row]:
        """Each problem by (task, id): task, id, index, prompt, gold, difficulty, verifier, meta."""
        rows = samples.read(self.path / PROBLEMS)
        return {(row["task"], row["id"]): row for row in rows}

    def tables(self) -> list[Table]:
        """One for each task and way of asking, in the order of eval.json; none without samples.

        Raises:
            ValueError: samples without verdicts, or verdicts of other samples or of other graders
                than today's.
        """
        problems = self.problems()
        places: dict[str, dict[str, int]] = {task: {} for task in self.tasks}
        for task, name in problems:
            places[task][name] = len(places[task])
        classes: dict[str, dict[str, dict[str, int]]] = {task: {} for task in self.tasks}
        cap = self.settings["max_tokens"]
        found = {
            (task, asked["name"]): Columns(task, asked, cap, places[task], classes[task])
            for task in self.tasks
            for asked in self.settings["asked"]
        }
        for row, verdicts in self._judged():
            found[row["task"], row["asked"]].add(row, verdicts)
        difficulty = {
            task: np.array(
                [-1 if (d := problems[task, n]["difficulty"]) is None else d for n in places[task]],
                np.int64,
            )
            for task in self.tasks
        }
        full = {key: columns for key, columns in found.items() if len(columns)}
        return [columns.table(difficulty[task]) for (task, _), columns in full.items()]

    def metrics(self) -> dict[str, metric.Metric]:
        """What metrics.json says.

        Raises:
            ValueError: it was not measured yet.
        """
        path = self.path / METRICS
        if not path.is_file():
            raise ValueError(
                f"{self.path} holds no {METRICS}; measure it: laconic eval {self.path} --offline"
            )
        return metric.from_json(json.loads(path.read_text(encoding="utf-8"))["metrics"])

    def examples(self, task: str) -> list[Row]:
        """Samples whose thought was kept, with `verdicts` [[status, answer], ...] of their cuts,
        and `prompt`, `gold` and `difficulty` of their problem."""
        kept = [
            {**row, "verdicts": verdicts}
            for row, verdicts in self._judged()
            if row["task"] == task and "thought" in row
        ]
        problems = self.problems()
        told = ("prompt", "gold", "difficulty")
        return [row | {k: problems[task, row["id"]][k] for k in told} for row in kept]

    def rows(self) -> Iterator[Row]:
        """Samples, as they came.

        Raises:
            ValueError: one is of a problem that problems.jsonl lacks.
        """
        known = self.problems()
        for number, row in enumerate(samples.read(self.path / SAMPLES), 1):
            task, name = row.get("task"), row.get("id")
            if (task, name) not in known:
                raise ValueError(
                    f"{self.path / SAMPLES}:{number}: {PROBLEMS} has no problem {name!r} of task "
                    f"{task!r}; the same laconic eval, without --offline, writes it again"
                )
            yield row

    def most(self) -> dict[str, int]:
        """Samples of a problem that there are, by task: of that which has most."""
        found = dict.fromkeys(self.tasks, 0)
        for row in self.rows():
            found[row["task"]] = max(found[row["task"]], row["sample"] + 1)
        return found

    def size(self) -> int:
        """Samples that there are."""
        file = self.path / SAMPLES
        if not file.is_file():
            return 0
        with file.open("rb") as lines:
            return sum(1 for _ in lines)

    def graders(self) -> dict[str, str]:
        """Name of the grader of each task, as this version of the library has it."""
        return {task["name"]: load(task["verifier"]).name for task in self.settings["tasks"]}

    def _judged(self) -> Iterator[tuple[Row, list[list[Any]]]]:
        """Samples with the verdicts of their cuts."""
        again = f"grade them again: laconic eval {self.path} --offline"
        verdicts = samples.read(self.path / VERDICTS)
        first: dict[str, str] = next(verdicts, {}).get("graders", {})
        for task, now in self.graders().items():
            if first and first.get(task) != now:
                raise ValueError(
                    f"{self.path}: the verdicts of task '{task}' are by {first.get(task)}, and "
                    f"this version grades by {now}; {again}"
                )
        for row in self.rows():
            verdict = next(verdicts, None)
            if verdict is None:
                raise ValueError(f"{self.path}: some samples have no verdict yet; {again}")
            if samples.key_of(verdict) != samples.key_of(row):
                raise ValueError(
                    f"{self.path}: {VERDICTS} is of other samples than {SAMPLES} holds; {again}"
                )
            yield row, verdict["verdicts"]


def write(path: Path, value: Any) -> None:
    """A file, whole or not at all: a text, or anything else as JSON."""
    if not isinstance(value, str):
        value = json.dumps(value, indent=1, allow_nan=False) + "\n"
    beside = path.with_name(f"{path.name}.partial")
    beside.write_text(value, encoding="utf-8")
    beside.replace(path)


def open_folder(path: Path | str) -> Folder:
    """The evaluation in `path`.

    Raises:
        ValueError: there is none, or its eval.json is broken.
    """
    path = Path(path)
    file = path / SETTINGS
    if not file.is_file():
        what = "no evaluation (no eval.json)" if path.is_dir() else "no folder"
        raise ValueError(f"{path}: {what}; make one with: laconic eval MODEL --out {path}")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict) or not {"tasks", "asked", "identity"} <= settings.keys():
        raise ValueError(
            f"{file}: does not say what was evaluated; restore it, or evaluate into another folder"
        )
    return Folder(path, settings)
