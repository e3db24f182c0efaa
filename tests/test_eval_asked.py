"""Risk: a mode or a number of tokens is said to be kept that is not, or is not asked for at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.verdict import Verdict
from samplers import seam
from samplers.budgets import base
from samplers.types import Answer, Job, Plan, Rollout
from tests.test_eval_budgets import Scripted, prompts, tokens
from trainer.eval import asked, statistics
from trainer.eval.budgets import EvalConfig, EvalResult, evaluate

CAP = 200


def told(**settings: Any) -> dict[str, Plan]:
    return base.asked(*seam.resolve("samplers.budgets", {"max_tokens": CAP, **settings}))


@dataclass
class Obedient(Scripted):
    """Thinks `share` of what is asked for, 3 tokens more for each problem; 2 tokens of answer."""

    share: float = 1.0
    plans: list[Plan] = field(default_factory=list)

    def length(self, job: Job) -> int:
        return int(self.share * (job.plan.target or 20)) + 3 * job.prompt.index

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
        self.plans += [jobs[0].plan]
        return super().rollout(jobs)

    def _one(self, job: Job) -> Rollout:
        if job.plan.cuts:
            return super()._one(job)
        thought = tokens(self.length(job) + 1)
        right = "right" if self.length(job) >= 30 else "wrong"
        return Rollout(
            job.prompt.index, job.group, job.index, job.seed, job.plan, np.zeros(3, np.int32),
            thought, True, ((Answer(len(thought), tokens(2), right),),),
        )  # fmt: skip


def run(plans: dict[str, Plan], workers: Obedient, samples: int = 2) -> EvalResult:
    config, problems = EvalConfig(budgets=(8,), samples=samples), prompts(6)
    result = evaluate(workers, problems, config, Plan(max_tokens=CAP), step=3)
    return asked.with_asked(result, workers, problems, config, plans)


def test_numbers_by_hand() -> None:
    plans = told(name="prompted", budget=(20, 60))
    assert list(plans) == ["20", "30", "40", "50", "60"]
    workers = Obedient(share=0.5)
    result = run(plans, workers)
    value = {name: e.value for name, e in result.metrics.items()}
    used, wanted = [], []
    for plan in plans.values():
        assert plan.target is not None
        mine = [plan.target // 2 + 3 * i for i in range(6)]
        used += [n + 3 for n in mine]  # the end marker and the answer
        wanted += [plan.target] * 6
        name = f"asked/{plan.target}"
        assert value[f"{name}/think_tokens"] == np.mean(mine)
        assert value[f"{name}/tokens"] == np.mean(mine) + 3
        assert value[f"{name}/answer_tokens"] == 2
        assert value[f"{name}/accuracy"] == pytest.approx(np.mean([n >= 30 for n in mine]))
        assert result.metrics[f"{name}/accuracy"].n == 6
    off = [abs(n - w) / w for n, w in zip(used, wanted, strict=True)]
    assert value["asked/deviation"] == pytest.approx(np.mean(off))
    from scipy import stats

    theirs = stats.spearmanr(wanted, used).statistic
    assert value["asked/rank_correlation"] == pytest.approx(theirs)
    assert all(f"eval/{name}" in result.flat() for name in value)


def test_asked_runs_are_uncut_and_draw_the_same_numbers() -> None:
    plans = {
        n: replace(p, think=9, cuts=(4,)) for n, p in told(name="prompted", budget=(20, 60)).items()
    }
    seen: list[list[int]] = []

    class Watched(Obedient):
        def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
            seen.append([job.seed for job in jobs])
            return super().rollout(jobs)

    workers = Watched()
    run(plans, workers)
    assert [p.cuts for p in workers.plans] == [(8, CAP), *[()] * 5]
    assert all(p.think is None for p in workers.plans)
    assert all(keys == seen[0] for keys in seen)
    assert len(set(seen[0])) == 12


def test_a_model_that_does_not_listen() -> None:
    """The same response whatever is asked: ties of equal ranks, and no correlation at all."""

    class Deaf(Obedient):
        def length(self, job: Job) -> int:
            return 40

    result = run(told(name="prompted", budget=(20, 60)), Deaf())
    assert np.isnan(result.metrics["asked/rank_correlation"].value)
    assert result.metrics["asked/deviation"].value == pytest.approx(
        np.mean([abs(43 - n) / n for n in (20, 30, 40, 50, 60)])
    )


def test_what_policies_ask() -> None:
    modes = told(name="modes", modes={"high": {"system": "h"}, "low": {"system": "l", "think": 8}})
    assert {name: plan.system for name, plan in modes.items()} == {"high": "h", "low": "l"}
    assert all(plan.target is None for plan in modes.values())
    hierarchical = told(name="hierarchical", budgets=(16, 64))
    assert [plan.target for plan in hierarchical.values()] == [16, 64]
    assert "64 tokens" in hierarchical["64"].prefill
    assert list(told(name="prompted", budget=32)) == ["32"]
    assert list(told(name="prompted", budget=(3, 5))) == ["3", "4", "5"]
    assert told(name="prompted", budget="meta:wanted") == {}
    of = {"name": "prompted", "budget": 64}
    drops = {"kind": "linear", "start": 64, "end": 24, "steps": 10}
    assert list(told(name="curriculum", of=of, fields={"budget": drops})) == ["24"]
    fixed = {"think": {"kind": "linear", "start": 64, "end": 24, "steps": 10}}
    assert told(name="curriculum", of={"name": "fixed", "think": 64}, fields=fixed) == {}
    for name in ("unlimited", "elastic", "anytime", "tiered"):
        module = seam.find("samplers.budgets", name)
        assert not hasattr(module, "asked"), name


def test_modes_have_no_number_to_keep() -> None:
    plans = told(name="modes", modes={"high": {"system": "h"}, "low": {"system": "l"}})
    result = run(plans, Obedient())
    assert result.metrics["asked/low/think_tokens"].value == 27.5
    assert "asked/deviation" not in result.metrics
    assert "asked/rank_correlation" not in result.metrics


def test_nothing_asked_nothing_written(tmp_path: Path) -> None:
    workers = Obedient()
    result = run({}, workers)
    result.save(tmp_path)
    assert len(workers.plans) == 1
    assert not [name for name in result.metrics if name.startswith("asked/")]
    assert not (tmp_path / "asked-3.jsonl").exists()


def test_saved_rows_give_the_metrics_back(tmp_path: Path) -> None:
    result = run(told(name="hierarchical", budgets=(16, 64)), Obedient())
    result.save(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "asked-3.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 6 * 2
    summary = json.loads((tmp_path / "step-3.json").read_text())["metrics"]
    for name, estimate in asked.measure(rows).items():
        assert summary[name]["value"] == estimate.value, name
        assert summary[name]["low"] <= summary[name]["high"]


def test_unknown_verdicts_are_in_no_accuracy() -> None:
    class Sick(Obedient):
        def _verdict(self, text: str | None, name: str) -> Verdict:
            return Verdict(False, 0.0, "timeout") if name == "p5" else super()._verdict(text, name)

    well = run(told(name="prompted", budget=30), Obedient())
    sick = run(told(name="prompted", budget=30), Sick())
    assert well.metrics["asked/30/accuracy"].value == 1
    assert sick.metrics["asked/30/accuracy"].value == 1
    assert sick.metrics["asked/30/accuracy"].n == 5


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_spearman_is_that_of_scipy(levels: int) -> None:
    from scipy import stats

    rng = np.random.default_rng(levels)
    a, b = rng.integers(0, levels, 300), rng.normal(size=300).round(1)
    assert statistics.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    np.testing.assert_array_equal(statistics.ranks(a), stats.rankdata(a))
    assert statistics.spearman(a, 3 * a + 1) == pytest.approx(1)
    assert np.isnan(statistics.spearman(a, np.ones(300)))


@pytest.mark.parametrize("cap", [1, 7, 40])
def test_area_is_the_mean_over_all_caps(cap: int) -> None:
    lengths = np.arange(50)
    brute = [np.mean([max(length, 1) <= c for c in range(1, cap + 1)]) for length in lengths]
    np.testing.assert_allclose(statistics.under_caps(lengths, cap), brute)


@pytest.mark.slow
def test_a_run_asks_for_every_mode_it_trains(tmp_path: Path) -> None:
    small = ("steps=1", "prompts_per_step=2", "rollouts_per_prompt=4", "rollout.max_tokens=48")
    evaluation = "evaluation={problems: 6, budgets: [8]}"
    modes = "{high: {suffix: <b4>}, none: {suffix: <b1>, prefill: </think>}}"
    budget = f"budget={{name: modes, modes: {modes}}}"
    command = [sys.executable, "-m", "launch.cli", "train", "grpo/find", f"output={tmp_path}"]
    done = subprocess.run([*command, *small, evaluation, budget], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(done.stdout.strip().splitlines()[-1])
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for step, file in zip(steps, ("asked-0.jsonl", "asked-1.jsonl"), strict=True):
        rows = [json.loads(line) for line in (folder / "eval" / file).read_text().splitlines()]
        assert len(rows) == 2 * 6
        for mode in ("high", "none"):
            tokens = [row["tokens"] for row in rows if row["asked"] == mode]
            assert step[f"eval/asked/{mode}/tokens"] == pytest.approx(np.mean(tokens))
    assert all(row["think_tokens"] == 0 for row in rows if row["asked"] == "none")
