"""What a report reads: run folders, grouped into arms (one recipe, several seeds)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rewards.verdict import UNKNOWN
from trainer import tracking
from trainer.eval import statistics
from trainer.eval.statistics import Estimate
from trainer.report.options import Options

Row = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """One saved evaluation (trainer/eval/budgets.py: EvalResult.save)."""

    folder: Path
    step: int
    summary: dict[str, Any]

    @property
    def budgets(self) -> list[int]:
        """The finite ones, ascending."""
        return [b for b in self.summary["budgets"] if b != "inf"]

    def estimate(self, metric: str) -> Estimate:
        """NaN where it was not measured."""
        found = self.summary["metrics"].get(metric) or {}
        value, low, high = (_number(found.get(key)) for key in ("value", "low", "high"))
        return Estimate(value, low, high, found.get("n", 0))

    @cached_property
    def rows(self) -> list[Row]:
        return _jsonl(self.folder / f"step-{self.step}.jsonl")

    @cached_property
    def shown(self) -> list[Row]:
        return _jsonl(self.folder / f"shown-{self.step}.jsonl")

    @property
    def cap(self) -> int:
        """Most tokens of a response; 0 where that is not said."""
        return int(self.summary.get("max_tokens", 0))

    def per_problem(self, metric: str) -> dict[str, float]:
        """accuracy, think_tokens/mean, anytime or cap_area of each problem, by id."""
        field = "think_tokens" if metric == "think_tokens/mean" else "correct"
        weights: dict[int | str, float] = {"inf": 1.0}
        if metric == "anytime":
            prior = statistics.prior_weights(self.budgets, self.summary["prior"])
            weights = {b: float(w) for b, w in zip(self.budgets, prior, strict=True)}
        totals: dict[str, list[float]] = {}
        for row in self.rows:
            if row["budget"] in weights and row["status"] not in UNKNOWN:
                total = totals.setdefault(row["id"], [0.0, 0.0])
                weight = weights[row["budget"]]
                worth = weight
                if metric == "cap_area":
                    within = statistics.under_caps(row["think_tokens"], self.cap)
                    worth *= row["closed"] * float(within)
                total[0] += worth * row[field]
                total[1] += weight
        return {name: value / weight for name, (value, weight) in totals.items() if weight}


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path
    config: dict[str, Any]
    evaluations: list[Evaluation]
    steps: list[Row]

    @property
    def name(self) -> str:
        return str(self.config.get("name", self.path.name))

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", 0))

    @property
    def started(self) -> int:
        """Step at which the first stage began that samples, or the last one: what came before it
        made the base model."""
        return sum(int(stage.get("steps", 0)) for stage in self._stages[: self._first])

    @property
    def origin(self) -> tuple[str, str]:
        """Model and data that the run began with: arms are compared with the base of both."""
        stage = self._stages[self._first] if self._stages else {}
        model = (self._stages[0].get("model") or {}).get("path") if self._stages else None
        return str(model), json.dumps(stage.get("data"), sort_keys=True)

    @property
    def problems(self) -> str:
        """The data that the last evaluation drew its problems from."""
        return json.dumps(self._stages[-1].get("data") if self._stages else None, sort_keys=True)

    @property
    def _stages(self) -> list[Row]:
        return list(self.config.get("stages", []))

    @property
    def _first(self) -> int:
        """The first stage that samples, or the last one."""
        sampling = (i for i, stage in enumerate(self._stages) if _samples(stage))
        return next(sampling, max(len(self._stages) - 1, 0))

    @property
    def base(self) -> Evaluation | None:
        """What was trained."""
        return next((e for e in self.evaluations if e.step == self.started), None)

    @property
    def final(self) -> Evaluation | None:
        last = self.evaluations[-1] if self.evaluations else None
        return last if last and last.step > self.started else None

    def generated(self, step: int) -> float:
        """Tokens that engines had sampled for training until the evaluation at `step`.

        All of them: discarded rollouts, answers at cuts, the pieces of rollouts that go on, the
        examples that a supervised stage makes. Evaluations do not count.
        """
        sampled = self._sum("tokens/sampled", step) + self._sum("traces/tokens", step - 1)
        here = next((record for record in self.steps if record["step"] == step), {})
        return float(sampled + (here.get("chunks/tokens") or 0))

    def scored(self, step: int) -> float:
        """Tokens that were put in and scored at the cuts of probes: cheaper, and not sampled."""
        return self._sum("tokens/scored", step)

    def _sum(self, metric: str, upto: int) -> float:
        records = (record for record in self.steps if record["step"] <= upto)
        return float(sum(record.get(metric) or 0 for record in records))

    def rollouts(self) -> list[Row]:
        """The readable rollouts of the last step that has some."""
        files = sorted((self.path / "rollouts").glob("step-*.jsonl"), key=_step)
        return _jsonl(files[-1]) if files else []


@dataclass(frozen=True)
class Arm:
    """The runs of one recipe."""

    name: str
    runs: list[Run]

    @property
    def finals(self) -> list[Evaluation]:
        return [run.final for run in self.runs if run.final]

    def estimate(self, metric: str) -> Estimate:
        """Mean over seeds with a t interval; with one seed, its own interval over problems."""
        return pooled(self.finals, metric)


def _samples(stage: Row) -> bool:
    """A supervised stage does where it makes its own examples."""
    return stage.get("kind") != "sft" or bool((stage.get("supervised") or {}).get("traces"))


def pooled(evaluations: Sequence[Evaluation], metric: str) -> Estimate:
    if len(evaluations) == 1:
        return evaluations[0].estimate(metric)
    return statistics.mean([e.estimate(metric).value for e in evaluations])


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: it is none, or one of its files is broken.
    """
    path = Path(path)
    config = path / "config.yaml"
    if not config.is_file():
        raise ValueError(
            f"{path} is not a run folder (no config.yaml); give folders of finished runs"
        )
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{config}: broken YAML: {' '.join(str(error).split())}") from None
    return Run(path, settings, read_evaluations(path), tracking.read(path))


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Evaluations in a run folder, or in its eval/, by step.

    Raises:
        ValueError: the file of one is broken.
    """
    inside = folder / "eval" if (folder / "eval").is_dir() else folder
    files = sorted(inside.glob("step-*.json"), key=_step)
    return [Evaluation(inside, _step(file), _json(file)) for file in files]


def arms(runs: Iterable[Run]) -> list[Arm]:
    """Runs of one name together, in order of appearance; seeds ascending.

    Raises:
        ValueError: two runs of one name have one seed: they are no two seeds of an arm.
    """
    grouped: dict[str, dict[int, Run]] = {}
    for run in runs:
        members = grouped.setdefault(run.name, {})
        twin = members.setdefault(run.seed, run)
        if twin is not run:
            raise ValueError(
                f"{twin.path} and {run.path} are both seed {run.seed} of '{run.name}'; leave one "
                "out (runs that differ need names of their own: name=...)"
            )
    return [
        Arm(name, [members[seed] for seed in sorted(members)]) for name, members in grouped.items()
    ]


def read_arms(runs: Iterable[Path], options: Options) -> list[Arm]:
    """The arms of run folders.

    Raises:
        ValueError: a folder is no run, two are one seed, or what `options` name is not there.
    """
    found = arms(read_run(path) for path in runs)
    options.check(arm.name for arm in found)
    options.check_shown({m for arm in found for e in arm.finals for m in e.summary["metrics"]})
    return found


def base_of(found: Sequence[Arm], folder: Path | None) -> Evaluation | None:
    """The base model's evaluation: in `folder` if given, else where the first run started.

    Raises:
        ValueError: `folder` holds no evaluation.
    """
    if folder is not None:
        evaluations = read_evaluations(Path(folder))
        if not evaluations:
            raise ValueError(
                f"{folder} holds no evaluation of a run; give a run folder (those of `laconic "
                "eval` are compared by `laconic compare`)"
            )
        return evaluations[-1]
    return next((run.base for arm in found for run in arm.runs if run.base), None)


def bases(found: Sequence[Arm], base: Evaluation | None) -> dict[str, Evaluation]:
    """Arm -> what it began as: `base`, unless that is another arm's that began elsewhere."""
    began = [(arm, run) for arm in found for run in arm.runs[:1] if run.base]
    owner = next((run for _, run in began if run.base is base), None)
    own = {arm.name: run.base for arm, run in began if owner and run.origin != owner.origin}
    shared = {arm.name: base for arm in found}
    return {name: e for name, e in (shared | own).items() if e is not None}


def series(run: Run, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) where the metric is known, from what was trained on."""
    points = [
        (record["step"], record[metric])
        for record in run.steps
        if record.get(metric) is not None and record["step"] >= run.started
    ]
    both = np.array(points, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _step(path: Path) -> int:
    return int(path.stem.split("-")[1])


def _json(path: Path) -> Row:
    try:
        found: Row = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: broken JSON ({error}); remove it to go on without that evaluation"
        ) from None
    return found


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _jsonl(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
