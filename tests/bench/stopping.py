"""What stopping rules and selections save: `python -m tests.bench.stopping rules|samples|pieces`.

Accuracy with t intervals over problems, tokens by the engine's counters; the numbers are in
samplers/stopping/README.md.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from scipy import stats

from samplers.budget import Asks, Budget
from samplers.budgets.base import Asking
from samplers.inference import generate, load
from samplers.render import ThinkingConfig
from samplers.rollout import RolloutWorker
from samplers.tasks import find

PROBLEMS = [find.prompt(find.Config(), "test", i) for i in range(256)]
HIGH = {"recipes/base/modes": "<b4>", "recipes/base/find": ""}
COUNTED = ("sampled", "prefilled", "looks", "tried")


class Bench:
    """One model in one engine; every row is compared with the first of its table."""

    def __init__(self, model: str, engine: str = "torch") -> None:
        self.worker: RolloutWorker = load(model, engine, ThinkingConfig())
        self.asks = Asks(efforts={"high": Asking(suffix=HIGH[model])})
        print(f"\n{model} on {engine}")

    def table(self, rows: dict[str, dict[str, Any]], runs: int) -> None:
        first_M: Any = None
        for name, row in rows.items():
            before, started = self.worker.stats(), time.perf_counter()
            right_M, exits = self._right(row, runs)
            first_M = right_M if first_M is None else first_M
            after, n = self.worker.stats(), len(PROBLEMS) * runs
            spent = " ".join(f"{key} {(after[key] - before[key]) / n:.1f}" for key in COUNTED)
            gap = right_M - first_M
            told = f"{name:28} {right_M.mean():.3f} +-{_half(right_M):.3f}"
            seconds = time.perf_counter() - started
            print(
                f"{told} ({gap.mean():+.3f} +-{_half(gap):.3f}) {spent} exits {exits / n:.2f} "
                f"{seconds:.0f} s",
                flush=True,
            )

    def _right(self, row: dict[str, Any], runs: int) -> tuple[Any, int]:
        row = dict(row)
        budget = Budget(row.pop("budget", None), effort="high", samples=row.pop("samples", 1))
        right, exits = np.zeros(len(PROBLEMS)), 0
        for seed in range(runs):
            made = generate(
                self.worker, PROBLEMS, budget, asks=self.asks, max_tokens=400, seed=seed, **row
            )
            right += [one.answer == one.prompt.answer for one in made]
            exits += sum(one.best.ended == "rule" for one in made)
        return right / runs, exits


def _half(values_M: Any) -> float:
    """Half of a 95% interval; the problem is the unit."""
    width = stats.t.ppf(0.975, len(values_M) - 1) * values_M.std(ddof=1)
    return float(width / np.sqrt(len(values_M)))


def rules() -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {"no rule": {}}
    for every, runs in ((16, 2), (16, 3), (32, 2), (32, 3)):
        spec = {"name": "consistency", "every": every, "runs": runs}
        rows[f"consistency {runs} at {every}"] = {"stopping": spec}
    for every, threshold in ((16, 0.95), (32, 0.9), (32, 0.95), (32, 0.99)):
        spec = {"name": "confidence", "every": every, "threshold": threshold}
        rows[f"confidence {threshold} at {every}"] = {"stopping": spec}
    for budget in (64, 96, 128):
        rows[f"hard budget {budget}"] = {"budget": budget}
    for strength in (4.0, 8.0):
        spec = {"name": "ramp", "start": 48, "end": 144, "strength": strength}
        rows[f"ramp {strength:g}, 48 to 144"] = {"stopping": spec}
    rows["ramp, budget 96"] = {"stopping": "ramp", "budget": 96}
    rows["wait to 192"] = {"stopping": {"name": "wait", "minimum": 192, "text": "w"}}
    asked = {"name": "self_evaluation", "text": "?", "no": "A", "yes": "B", "every": 32}
    return rows | {"self-evaluation, untrained": {"stopping": asked}}


def samples() -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for k in (8, 3, 4, 5):
        rows[f"majority@{k}"] = {"samples": k, "selection": "majority"}
    for m in (1, 3, 5):
        rows[f"short-{m}@8"] = {"samples": 8, "selection": f"short-{m}"}
    for name in ("best-of-n", "best-of-majority"):
        rows[f"{name}@8"] = {"samples": 8, "selection": name}
    both = {"samples": 8, "selection": "majority", "stopping": "consistency"}
    return rows | {"majority@8, consistency": both}


def pieces() -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {"no rule": {}}
    for every in (8, 16, 32):
        spec = {"name": "ramp", "start": 48, "end": 144, "every": every}
        rows[f"ramp, pieces of {every}"] = {"stopping": spec}
    return rows | {"confidence 0.95 at 16": {"stopping": {"name": "confidence", "every": 16}}}


def main(what: str) -> None:
    if what == "rules":
        for model in HIGH:
            Bench(model).table(rules(), 4)
    elif what == "samples":
        for model in HIGH:
            Bench(model).table(samples(), 2)
    else:
        for engine in ("torch", "vllm"):
            Bench("recipes/base/modes", engine).table(pieces(), 4)


if __name__ == "__main__":
    main(sys.argv[1])
