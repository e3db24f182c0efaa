"""Risk: an accuracy-budget curve that counts a cut, a cap or an unknown verdict wrongly."""

from __future__ import annotations

import importlib.util
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
from rewards.verify import context
from samplers.rollout import RolloutWorker
from samplers.types import Answer, Job, Plan, Prompt, Rollout, Tokens
from tests.scripted import PROMPT, RENDERER, ScriptedEngine
from trainer.eval import budgets
from trainer.eval.budgets import EvalConfig, evaluate

CAP = 40
PLAN = Plan(max_tokens=CAP)


def tokens(count: int, finish: str = "stop", forced: int = 0) -> Tokens:
    logprobs = np.full(count, -0.1, dtype=np.float32)
    logprobs[:forced] = np.nan
    return Tokens(np.zeros(count, np.int32), logprobs, finish)  # type: ignore[arg-type]


@dataclass
class Scripted:
    """A model that needs `need` thinking tokens, thinks `length`, and may hit the cap.

    Prompt i of sample s: see `facts`. Its answer is right once cut at `need` or later.
    """

    unknown: set[str] = field(default_factory=set)
    jobs: list[Job] = field(default_factory=list)
    graded: int = 0
    items: list[budgets.Item] = field(default_factory=list)

    @staticmethod
    def facts(job: Job) -> tuple[int, int, bool]:
        """(need, length of the thought, closes itself)."""
        need = 4 + 5 * job.prompt.index + job.index
        length = need + 3
        return need, min(length, CAP), length < CAP

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
        self.jobs = list(jobs)
        return [self._one(job) for job in jobs]

    def _one(self, job: Job) -> Rollout:
        need, length, closed = self.facts(job)
        thought = tokens(length + closed, "stop" if closed else "length")
        cuts = job.plan.cuts or (CAP,)
        answers = []
        for cut in cuts:
            right = "right" if cut >= need else "wrong"
            if closed and cut >= length:
                answers.append((Answer(len(thought), tokens(2), "right"),))
            elif job.plan.cuts:
                answers.append((Answer(cut, tokens(3, forced=1), right),))
            else:
                answers.append((Answer(length, tokens(0, "length"), None),))
        return Rollout(
            job.prompt.index, job.group, job.index, job.seed, job.plan,
            np.zeros(3, np.int32), thought, closed, tuple(answers),
        )  # fmt: skip

    def grade(self, items: Sequence[budgets.Item]) -> list[Verdict]:
        self.graded += len(items)
        self.items += items
        return [self._verdict(text, meta["id"]) for text, _, meta in items]

    def _verdict(self, text: str | None, name: str) -> Verdict:
        if name in self.unknown:
            return Verdict(False, 0.0, "timeout")
        if text is None:
            return Verdict(False, 0.0, "no_answer")
        right = text == "right"
        return Verdict(right, float(right), "ok" if right else "wrong", text, "exact/1")

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return [f"{len(i)} tokens" for i in ids]


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(
            i, f"p{i}", (), f"question {i}", "right", "exact", {"difficulty": i % 3, "id": f"p{i}"}
        )
        for i in range(count)
    ]


def run(
    config: EvalConfig, count: int = 9, **script: set[str]
) -> tuple[budgets.EvalResult, Scripted]:
    workers = Scripted(**script)
    return evaluate(workers, prompts(count), config, PLAN, step=3), workers


def test_every_metric_by_hand() -> None:
    grid, samples = (0, 8, 20, 39), 2
    result, workers = run(EvalConfig(budgets=(*grid, "inf"), samples=samples))
    truth = [Scripted.facts(job) for job in workers.jobs]
    value = {name: e.value for name, e in result.metrics.items()}
    assert len(truth) == 18
    assert sum(closed for *_, closed in truth) not in (0, 18)
    for b in grid:
        assert value[f"accuracy@{b}"] == pytest.approx(np.mean([b >= n for n, *_ in truth]))
        cap = [closed and length <= b for _, length, closed in truth]
        assert value[f"cap_accuracy@{b}"] == pytest.approx(np.mean(cap))
        cut = [not (closed and length <= b) for _, length, closed in truth]
        assert value[f"forced@{b}"] == pytest.approx(np.mean(cut))
        spent = [min(length, b) + 2 for _, length, _ in truth]
        assert value[f"tokens@{b}"] == pytest.approx(np.mean(spent))
    assert value["accuracy"] == pytest.approx(np.mean([closed for *_, closed in truth]))
    assert value["truncated"] == value["no_answer"] == pytest.approx(1 - value["accuracy"])
    caps = [closed * (length <= c) for _, length, closed in truth for c in range(1, CAP + 1)]
    assert value["cap_area"] == pytest.approx(np.mean(caps))
    lengths = [length for _, length, _ in truth]
    assert value["think_tokens/sd"] == pytest.approx(np.std(lengths))
    assert value["think_tokens/mean"] == pytest.approx(np.mean(lengths))
    assert value["think_tokens/p95"] == pytest.approx(np.quantile(lengths, 0.95))
    assert value["anytime"] == pytest.approx(np.mean([value[f"accuracy@{b}"] for b in grid]))
    low, mid, high, top = (value[f"accuracy@{b}"] for b in grid)  # at octaves 2, 3, log2 20 and 39
    octaves = np.log2([4, 8, 20, 39])
    area = np.trapezoid([low, mid, high, top], octaves) / (octaves[-1] - octaves[0])
    assert value["anytime/log"] == pytest.approx(area)
    spent = sum(length + 2 * closed for _, length, closed in truth)
    assert value["tokens_per_solve"] == pytest.approx(spent / sum(c for *_, c in truth))
    hard = [length for job, (_, length, _) in zip(workers.jobs, truth, strict=True)
            if job.prompt.index % 3 == 2]  # fmt: skip
    assert value["difficulty-2/think_tokens"] == pytest.approx(np.mean(hard))


def test_uncut_values_do_not_depend_on_the_budgets() -> None:
    """The nested run's own answer is the plain run's, unclosed thoughts included."""
    plain, workers = run(EvalConfig(budgets=("inf",)))
    assert all(job.plan.cuts == () for job in workers.jobs)
    cut, _ = run(EvalConfig(budgets=(4, 16, 32)))
    for name, estimate in plain.metrics.items():
        assert cut.metrics[name].value == estimate.value, name
    assert [r for r in cut.rows if r["budget"] == "inf"] == plain.rows


def test_unknown_verdicts_are_counted_and_in_no_accuracy() -> None:
    clean, _ = run(EvalConfig(budgets=(16,)), count=8)
    # p8 is beyond the cap, so it would pull accuracy down if it counted.
    dirty, _ = run(EvalConfig(budgets=(16,)), count=9, unknown={"p8"})
    assert clean.metrics["unknown"].value == 0
    assert dirty.metrics["unknown"].value == pytest.approx(1 / 9)
    for name in ("accuracy", "accuracy@16", "cap_accuracy@16", "cap_area", "anytime"):
        assert dirty.metrics[name].value == pytest.approx(clean.metrics[name].value)
        assert dirty.metrics[name].n == 8


def test_the_unit_is_the_problem() -> None:
    result, _ = run(EvalConfig(budgets=(16,), samples=4))
    assert result.metrics["accuracy@16"].n == 9


def test_seeds_repeat_over_steps_and_differ_over_samples_and_problems() -> None:
    config = EvalConfig(budgets=(8,), samples=3)
    first, again = run(config)[1], run(config)[1]
    keys = [job.seed for job in first.jobs]
    assert keys == [job.seed for job in again.jobs]
    assert len(set(keys)) == len(keys)
    other = run(EvalConfig(budgets=(8,), samples=3, seed=1))[1]
    assert not set(keys) & {job.seed for job in other.jobs}


def test_a_shared_answer_is_graded_once() -> None:
    _, workers = run(EvalConfig(budgets=(0, 1, 2, 3, 39), samples=2))
    assert workers.graded <= 9 * 3  # right, wrong, none


def test_saved_rows_give_the_metrics_back(tmp_path: Path) -> None:
    result, _ = run(EvalConfig(budgets=(8, 20), samples=2, shown=4))
    result.save(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "step-3.jsonl").read_text().splitlines()]
    again = budgets.measure(rows, (8, 20), "equal", CAP)
    summary = json.loads((tmp_path / "step-3.json").read_text())
    assert {k: v["value"] for k, v in summary["metrics"].items()} == {
        k: e.value for k, e in again.items()
    }
    assert summary["budgets"] == [8, 20, "inf"]
    assert summary["graders"] == ["exact/1"]
    shown = [json.loads(line) for line in (tmp_path / "shown-3.jsonl").read_text().splitlines()]
    assert len(shown) == 4
    assert {row["difficulty"] for row in shown} == {0, 1, 2}
    assert shown[0]["thought"] == "8 tokens"
    assert shown[0]["id"] == "p0"  # needs 4 tokens and thinks 7
    assert shown[1]["answers"] == {
        "8": ["wrong", False],
        "20": ["wrong", False],
        "inf": ["right", True],
    }


def test_no_interval_is_null_and_not_nan(tmp_path: Path) -> None:
    result, _ = run(EvalConfig(budgets=(8,)), count=1)
    result.save(tmp_path)
    metrics = json.loads((tmp_path / "step-3.json").read_text())["metrics"]
    assert metrics["accuracy"] == {"value": 1.0, "low": None, "high": None, "n": 1}


@pytest.mark.parametrize(
    ("given", "said"),
    [((8, 8), "different numbers"), ((-1,), "0 or more"), (("deep",), "inf")],
)
def test_refused_budgets(given: tuple[object, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EvalConfig(budgets=given)  # type: ignore[arg-type]


def test_budgets_stay_below_the_cap() -> None:
    with pytest.raises(
        ValueError, match=r"evaluation\.budgets: 40 is not below the response cap of 40"
    ):
        run(EvalConfig(budgets=(8, 40)))
    assert EvalConfig().grid(192) == (0, 12, 24, 48, 96)
    assert EvalConfig(budgets=("inf", 20, 4)).grid(192) == (4, 20)
    assert EvalConfig().grid(192, thinking=False) == ()
    with pytest.raises(ValueError, match=r"evaluation\.budgets: \[4\] cut thoughts"):
        EvalConfig(budgets=(4,)).grid(192, thinking=False)
    with pytest.raises(ValueError, match=r"evaluation\.problems"):
        evaluate(Scripted(), [], EvalConfig(), PLAN)


def test_verifiers_are_told_what_training_tells_them() -> None:
    result, workers = run(EvalConfig(budgets=(8,)), count=2)
    assert result.rows
    told = [context(prompt) for prompt in prompts(2)]
    assert told[0]["prompt"] == "question 0"
    assert workers.items
    assert all(meta in told for _, _, meta in workers.items)


class Talking(Scripted):
    """A worker around the scripted engine; its answers are read as they are: any counts."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[Rollout] = []

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
        self.worker = RolloutWorker(ScriptedEngine(), RENDERER)
        self.rollouts = [_read(rollout) for rollout in self.worker.generate(jobs)]
        return self.rollouts

    def _verdict(self, text: str | None, name: str) -> Verdict:
        return Verdict(text is not None, float(text is not None), "ok" if text else "wrong", text)


def _read(rollout: Rollout) -> Rollout:
    """Random texts hold markers now and then, which is no answer: here it is one."""

    def read(answer: Answer) -> Answer:
        return (
            replace(answer, text=RENDERER.decode(answer.tokens.ids_T)) if answer.reached else answer
        )

    answers = tuple(tuple(map(read, cut)) for cut in rollout.answers)
    return replace(rollout, answers=answers)


def talk(plan: Plan, grid: tuple[int, ...]) -> tuple[budgets.EvalResult, list[Rollout]]:
    asked = [replace(PROMPT, index=i, id=f"p{i}", meta={"id": f"p{i}"}) for i in range(40)]
    workers = Talking()
    result = evaluate(workers, asked, EvalConfig(budgets=grid, temperature=1.0), plan)
    return result, workers.rollouts


@pytest.mark.parametrize(
    "mode", [{"template": {"enable_thinking": False}}, {"prefill": "B1</think>"}]
)
def test_a_thought_that_the_prompt_closed_has_an_answer_of_its_own(mode: dict[str, Any]) -> None:
    result, rollouts = talk(Plan(max_tokens=40, **mode), (0, 8))
    assert not any(r.closed for r in rollouts)
    value = {name: e.value for name, e in result.metrics.items()}
    assert value["accuracy"] == value["accuracy@8"] == value["cap_accuracy@8"] == 1
    assert value["cap_area"] == 1 or mode.get("prefill")  # whose tokens are thought
    assert value["forced@0"] == value["forced@8"] == 0
    assert all(row["text"] is not None for row in result.shown)


def test_budgets_beyond_the_end_of_a_thought_repeat_its_own_answer() -> None:
    grid = (0, 4, 12, 20, 30)
    result, rollouts = talk(Plan(max_tokens=60), grid)
    rows = iter(result.rows)
    repeated = 0
    for rollout in rollouts:
        *at, own = [next(rows) for _ in (*grid, "inf")]
        beyond = [row for row in at if rollout.closed and row["budget"] >= rollout.think_tokens]
        repeated += len(beyond)
        for row in beyond:
            assert {**row, "budget": "inf", "think_tokens": own["think_tokens"]} == own
        distinct = {cut[0].after: len(cut[0].tokens) for cut in rollout.answers}
        assert len(rollout.made) == len(distinct)
        forced = sum(int(a.tokens.forced_T.sum()) for a in rollout.made)
        paid = len(rollout.thought) + sum(distinct.values()) - forced
        assert rollout.sampled_tokens == paid
    assert repeated > 40


class Shipped:
    """The base model that ships with the recipes, on the real engine, judged by its answer text."""

    def __init__(self) -> None:
        from samplers.render import ThinkingConfig
        from samplers.rollout import RolloutWorker
        from trainer.config import RECIPES

        base = str(RECIPES / "base" / "find")
        self.worker = RolloutWorker.from_pretrained(base, thinking=ThinkingConfig())

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
        return self.worker.generate(jobs)

    def grade(self, items: Sequence[budgets.Item]) -> list[Verdict]:
        right = [text is not None and text.strip() == gold for text, gold, _ in items]
        return [
            Verdict(r, float(r), "ok" if r else "wrong", text)
            for r, (text, *_) in zip(right, items, strict=True)
        ]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return [str(len(i)) for i in ids]


def test_nested_answers_are_those_of_separate_runs() -> None:
    """Greedy, on the real engine: one nested run equals one run per budget and one without."""
    from samplers.tasks import find

    shipped = Shipped()
    problems = [find.prompt(find.Config(), "test", i) for i in range(24)]
    plan, grid = Plan(max_tokens=96), (0, 9, 24, 60)
    result = evaluate(shipped, problems, EvalConfig(budgets=grid, temperature=0), plan)
    for budget in (*grid, "inf"):
        alone = plan if budget == "inf" else Plan(max_tokens=96, think=int(budget))
        jobs = [Job(p, alone, i, 0, 1, temperature=0) for i, p in enumerate(problems)]
        rows = [row for row in result.rows if row["budget"] == budget]
        for row, rollout in zip(rows, shipped.rollout(jobs), strict=True):
            assert row["answer"] == rollout.final.text
            assert row["think_tokens"] == rollout.think_tokens
            assert row["forced"] == (budget != "inf" and not rollout.ended)
    closed = [row["closed"] for row in result.rows if row["budget"] == "inf"]
    assert 0 < sum(closed) < len(closed)


@pytest.mark.slow
def test_a_run_logs_every_budget_and_the_area(tmp_path: Path) -> None:
    """What the rows of each evaluation say stands in metrics.jsonl, and W&B is sent the same."""
    small = ("steps=1", "prompts_per_step=2", "rollouts_per_prompt=4", "rollout.max_tokens=64")
    asked = "evaluation={problems: 6, samples: 2, budgets: [8, 24, inf]}"
    wandb = ["tracking.wandb=offline"] if importlib.util.find_spec("wandb") else []
    command = [sys.executable, "-m", "launch.cli", "train", "grpo/find", f"output={tmp_path}"]
    done = subprocess.run([*command, *small, asked, *wandb], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(done.stdout.strip().splitlines()[-1])
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [0, 1]
    for step in steps:
        file = folder / "eval" / f"step-{step['step']}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found = budgets.measure(rows, (8, 24), "equal", 64)
        assert {"accuracy", "accuracy@8", "accuracy@24", "anytime", "anytime/log"} <= set(found)
        for name, estimate in found.items():
            logged = step[f"eval/{name}"]
            if np.isfinite(estimate.value):
                assert logged == pytest.approx(estimate.value, rel=1e-5), name
            else:
                assert logged is None, name
    if wandb:
        (sent,) = (file.read_bytes() for file in (folder / "wandb").glob("offline-run-*/*.wandb"))
        for name in ("accuracy@8", "accuracy@24", "anytime/log", "tokens@24"):
            assert f"eval/{name}".encode() in sent, name
