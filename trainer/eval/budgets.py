"""Accuracy against thinking budget, from one thought per sample (nested, "truncate" mode).

Each sample thinks once, without a limit of its own; at every budget b the thought is cut, closed
by force and answered. A thought that closed itself within b keeps its own answer. Valid for models
that are not told their budget. The same code runs during training and in `laconic eval`.

Shape suffixes: M problems, S samples of a problem, J budgets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from rewards.verdict import UNKNOWN, Verdict
from rewards.verify import context
from samplers import seeds
from samplers.seam import Component
from samplers.types import Answer, Job, Plan, Prompt, Rollout
from trainer.eval import statistics
from trainer.eval.statistics import Estimate, Prior
from trainer.world import Item

UNCUT = "inf"
_STREAM = 0x6576616C  # keeps evaluation's random numbers apart from training's
Row = dict[str, Any]


class EvalConfig(Component):
    """Accuracy at several thinking budgets, on held-out problems."""

    every: int = Field(default=10, ge=0)
    """Evaluate every so many steps, and before the first and after the last; 0: never."""
    problems: int = Field(default=128, ge=1)
    """Held-out problems, the same at every evaluation."""
    samples: int = Field(default=1, ge=1)
    """Thoughts sampled of each problem."""
    budgets: tuple[int | Literal["inf"], ...] | None = None
    """Thinking tokens at which a thought is cut and answered. The uncut answer (`inf`) is always
    measured. None: 0 and 1/16, 1/8, 1/4 and 1/2 of the response cap."""
    temperature: float = Field(default=1.0, ge=0)
    """As in training by default; reasoners loop when greedy."""
    answer_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of an answer; None: what the response cap leaves."""
    prior: Prior = "equal"
    """Weights of the budgets in any-time accuracy (trainer/eval/statistics.py: prior_weights)."""
    shown: int = Field(default=6, ge=0)
    """Problems whose thoughts are written out, to be read in the report."""
    asked: bool = True
    """Also measure, uncut, every mode or budget that the policy asks for (trainer/eval/asked.py);
    policies that ask in one way only cost nothing."""
    seed: int = 0

    @field_validator("budgets")
    @classmethod
    def _ascending(cls, budgets: tuple[int | str, ...] | None) -> tuple[int | str, ...] | None:
        finite = [b for b in budgets or () if isinstance(b, int)]
        if any(b < 0 for b in finite) or len(set(finite)) < len(finite):
            raise ValueError(
                f"{list(budgets or ())} must be different numbers of tokens, 0 or more, and 'inf'"
            )
        return budgets

    def grid(self, max_tokens: int, thinking: bool = True) -> tuple[int, ...]:
        """The finite budgets, ascending; none without `thinking` markers.

        Raises:
            ValueError: a budget does not fit below the response cap, or there is no thought to cut.
        """
        if self.budgets is None:
            spread = {0, *(max_tokens // d for d in (16, 8, 4, 2))}
            return tuple(sorted(spread)) if thinking else ()
        finite = tuple(sorted(b for b in self.budgets if isinstance(b, int)))
        if finite and not thinking:
            raise ValueError(
                f"evaluation.budgets: {list(finite)} cut thoughts, and with thinking: none there "
                "are none; set evaluation.budgets=null, or thinking: {start, end}"
            )
        if finite and finite[-1] >= max_tokens:
            raise ValueError(
                f"evaluation.budgets: {finite[-1]} is not below the response cap of {max_tokens} "
                "tokens (rollout.max_tokens); lower the budget or raise the cap"
            )
        return finite


class Workers(Protocol):
    """What evaluation needs of the machines (`trainer.world.World` is one)."""

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]: ...
    def grade(self, items: Sequence[Item]) -> list[Verdict]: ...
    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Rows of every problem, sample and budget, and what they amount to."""

    step: int
    settings: Mapping[str, Any]
    rows: list[Row]
    metrics: dict[str, Estimate]
    shown: list[Row]
    """A few problems with their texts."""
    asked: list[Row] = field(default_factory=list)
    """One row for every way of asking, problem and sample (trainer/eval/asked.py)."""

    def flat(self) -> dict[str, float]:
        """Values alone, as they go into metrics.jsonl."""
        return {f"eval/{name}": estimate.value for name, estimate in self.metrics.items()}

    def save(self, folder: Path) -> None:
        """Write step-N.jsonl (rows), step-N.json (metrics with intervals), shown-N.jsonl.

        Where something was asked for, asked-N.jsonl too.
        """
        folder.mkdir(parents=True, exist_ok=True)
        summary = {
            "step": self.step,
            **self.settings,
            "metrics": {name: _finite(asdict(e)) for name, e in self.metrics.items()},
        }
        (folder / f"step-{self.step}.jsonl").write_text(_lines(self.rows))
        (folder / f"shown-{self.step}.jsonl").write_text(_lines(self.shown))
        if self.asked:
            (folder / f"asked-{self.step}.jsonl").write_text(_lines(self.asked))
        (folder / f"step-{self.step}.json").write_text(json.dumps(summary, indent=1) + "\n")


def evaluate(
    workers: Workers,
    prompts: Sequence[Prompt],
    config: EvalConfig,
    plan: Plan,
    step: int = 0,
    *,
    thinking: bool = True,
) -> EvalResult:
    """Measure accuracy uncut and at each budget.

    Args:
        prompts: the held-out problems.
        plan: how the model is prompted and closed, and its response cap; its budgets are ignored.
        thinking: False for a model without thinking markers: it has no thought to cut.

    Raises:
        ValueError: no problems, or a budget that does not fit.
    """
    if not prompts:
        raise ValueError("evaluation.problems: there is nothing to evaluate on; got 0 problems")
    grid = config.grid(plan.max_tokens, thinking)
    jobs = jobs_of(prompts, config, nested(plan, grid, config.answer_tokens))
    rollouts = workers.rollout(jobs)
    taken = [answers_of(rollout, len(grid)) for rollout in rollouts]
    verdicts = grade(workers, jobs, taken)
    rows = [
        row
        for job, rollout, answers, judged in zip(jobs, rollouts, taken, verdicts, strict=True)
        for row in _rows(job, rollout, answers, judged, grid)
    ]
    settings = {
        "problems": len(prompts),
        "budgets": [*grid, UNCUT],
        "max_tokens": plan.max_tokens,
        **config.model_dump(include={"samples", "temperature", "answer_tokens", "prior", "seed"}),
        "graders": sorted({v.grader for judged in verdicts for v in judged if v.grader}),
    }
    shown = _shown(workers, jobs, rollouts, rows, config.shown)
    metrics = measure(rows, grid, config.prior, plan.max_tokens if thinking else None)
    return EvalResult(step, settings, rows, metrics, shown)


def jobs_of(prompts: Sequence[Prompt], config: EvalConfig, plan: Plan) -> list[Job]:
    """Every sample of every problem, problem-major.

    The random numbers are the same at every evaluation and under every plan: steps, arms and ways
    of asking differ by weights and prompts alone.
    """
    return [
        Job(
            prompt=prompt,
            plan=plan,
            group=m,
            index=s,
            seed=seeds.key(config.seed, _STREAM, prompt.index, s),
            temperature=config.temperature,
        )
        for m, prompt in enumerate(prompts)
        for s in range(config.samples)
    ]


def nested(plan: Plan, grid: Sequence[int], answer_tokens: int | None = None) -> Plan:
    """The plan that thinks once and answers at each budget and, last, at the response cap.

    The cut at the cap stands for the uncut run: a thought that closed itself has its own answer
    there, and one that did not has none that counts.
    """
    return replace(
        plan,
        weights=(),
        probe="",
        think=None,
        answer=answer_tokens or plan.answer,
        cuts=(*grid, plan.max_tokens) if grid else (),
        answers_per_cut=1,
        collapse=True,
        chunk=None,
    )


def measure(
    rows: Sequence[Row], grid: Sequence[int], prior: Prior, cap: int | None = None
) -> dict[str, Estimate]:
    """Metrics of saved rows, each with a 95% interval over problems.

    accuracy (uncut), accuracy@b (forced answer at b), cap_accuracy@b (closed within b unforced, and
    right), cap_area (its mean over b = 1 .. `cap`), forced@b, tokens@b (thought and answer),
    anytime, think_tokens and answer_tokens (uncut; sd: of all samples), truncated, no_answer,
    unknown, tokens_per_solve, difficulty-d/*. Unknown verdicts are in no accuracy.
    """
    table = _Table(rows, grid)
    correct, think, answer = table.correct_MSJ, table.think_MSJ, table.answer_MSJ
    uncut_M = statistics.over_samples(correct[..., -1])
    tokens_M = (think + answer)[..., -1].mean(axis=1)
    out = {"accuracy": statistics.mean(uncut_M)}
    at_MJ = statistics.over_samples(correct)[:, :-1]
    for j, b in enumerate(grid):
        within = (table.finish_closed_MS & (think[..., -1] <= b)).astype(float)
        out[f"accuracy@{b}"] = statistics.mean(at_MJ[:, j])
        out[f"cap_accuracy@{b}"] = statistics.mean(
            statistics.over_samples(within * correct[..., -1])
        )
        out[f"forced@{b}"] = statistics.mean(table.forced_MSJ[..., j].mean(axis=1))
        out[f"tokens@{b}"] = statistics.mean((think + answer)[..., j].mean(axis=1))
    if cap is not None:
        worth_MS = table.finish_closed_MS * statistics.under_caps(think[..., -1], cap)
        out["cap_area"] = statistics.mean(statistics.over_samples(worth_MS * correct[..., -1]))
    if grid:
        out["anytime"] = statistics.mean(statistics.anytime(at_MJ, grid, prior))
    for name, tokens in (("think_tokens", think[..., -1]), ("answer_tokens", answer[..., -1])):
        out[f"{name}/mean"] = statistics.mean(tokens.mean(axis=1))
        out[f"{name}/median"] = statistics.quantile(tokens, 0.5)
        out[f"{name}/p95"] = statistics.quantile(tokens, 0.95)
    out["think_tokens/sd"] = statistics.deviation(think[..., -1])
    for name, share_MS in table.shares_MS.items():
        out[name] = statistics.mean(share_MS.mean(axis=1))
    known_M = ~np.isnan(uncut_M)
    out["tokens_per_solve"] = statistics.ratio(tokens_M[known_M], uncut_M[known_M])
    for d in np.unique(table.difficulty_M[table.difficulty_M >= 0]):
        these_M = table.difficulty_M == d
        out[f"difficulty-{d}/accuracy"] = statistics.mean(uncut_M[these_M])
        thoughts_M = think[these_M, :, -1].mean(axis=1)
        out[f"difficulty-{d}/think_tokens"] = statistics.mean(thoughts_M)
    return out


class _Table:
    """Rows as arrays: [M, S, J + 1], the uncut run last."""

    def __init__(self, rows: Sequence[Row], grid: Sequence[int]) -> None:
        columns = len(grid) + 1
        samples = 1 + max(row["sample"] for row in rows)
        shape = (len(rows) // (samples * columns), samples, columns)
        assert np.prod(shape) == len(rows), "rows are problem-major and complete"

        def column(name: str) -> NDArray[Any]:
            return np.array([row[name] for row in rows]).reshape(shape)

        status = column("status")
        self.correct_MSJ = np.where(np.isin(status, list(UNKNOWN)), np.nan, column("correct"))
        self.think_MSJ = column("think_tokens")
        self.answer_MSJ = column("answer_tokens")
        self.forced_MSJ = column("forced")
        self.difficulty_M = np.array(
            [-1 if row["difficulty"] is None else row["difficulty"] for row in rows]
        ).reshape(shape)[:, 0, 0]
        self.finish_closed_MS = column("closed")[..., -1]
        self.shares_MS = {
            "truncated": column("finish")[..., -1] == "length",
            "no_answer": status[..., -1] == "no_answer",
            "unknown": np.isin(status, list(UNKNOWN)).mean(axis=-1),
        }


def answers_of(rollout: Rollout, budgets: int) -> list[Answer | None]:
    """The answer at each budget and, last, the model's own: None where its thought never ended."""
    if not rollout.plan.cuts:
        return [rollout.final]
    assert len(rollout.answers) == budgets + 1, (len(rollout.answers), budgets)
    own = rollout.final if rollout.ended else None
    return [*(cut[0] for cut in rollout.answers[:-1]), own]


def grade(
    workers: Workers, jobs: Sequence[Job], taken: Sequence[Sequence[Answer | None]]
) -> list[list[Verdict]]:
    """Verdicts [rollout][budget]; an answer that several budgets share is graded once."""
    wanted: dict[tuple[int, str | None], Item] = {}
    for job, answers in zip(jobs, taken, strict=True):
        prompt = job.prompt
        for answer in answers:
            text = answer.text if answer else None
            wanted.setdefault((job.group, text), (text, prompt.answer, context(prompt)))
    found = dict(zip(wanted, workers.grade(list(wanted.values())), strict=True))
    return [
        [found[job.group, answer.text if answer else None] for answer in answers]
        for job, answers in zip(jobs, taken, strict=True)
    ]


def _rows(
    job: Job,
    rollout: Rollout,
    answers: Sequence[Answer | None],
    verdicts: Sequence[Verdict],
    grid: Sequence[int],
) -> list[Row]:
    difficulty = job.prompt.meta.get("difficulty")
    rows = []
    for budget, answer, verdict in zip((*grid, UNCUT), answers, verdicts, strict=True):
        ran_free = budget == UNCUT or (rollout.ended and _own(rollout, answer))
        last = answer.tokens if answer and len(answer.tokens) else rollout.thought
        think = rollout.think_tokens
        rows.append(
            {
                "id": job.prompt.id,
                "sample": job.index,
                "difficulty": None if difficulty is None else int(difficulty),
                "budget": budget,
                "correct": verdict.correct,
                "status": verdict.status,
                "answer": verdict.answer,
                "think_tokens": min(think, budget) if isinstance(budget, int) else think,
                "answer_tokens": int((~answer.tokens.forced_T).sum()) if answer else 0,
                "forced": not ran_free and answer is not None and answer.reached,
                "closed": rollout.ended,
                "finish": last.finish,
            }
        )
    return rows


def _own(rollout: Rollout, answer: Answer | None) -> bool:
    """The answer follows the whole thought."""
    return answer is not None and answer.after >= len(rollout.thought)


def _shown(
    workers: Workers,
    jobs: Sequence[Job],
    rollouts: Sequence[Rollout],
    rows: Sequence[Row],
    count: int,
) -> list[Row]:
    """The first sample of `count` problems, spread evenly over the difficulties, with texts."""
    first = [i for i, job in enumerate(jobs) if job.index == 0]
    first.sort(key=lambda i: int(jobs[i].prompt.meta.get("difficulty") or 0))  # stable
    count = min(count, len(first))
    picked = [first[k * len(first) // count] for k in range(count)]
    thoughts = workers.decode([rollouts[i].thought.ids_T.tolist() for i in picked])
    width = len(rows) // len(jobs)
    return [
        {
            **rows[(i + 1) * width - 1],
            "prompt": jobs[i].prompt.text or _last_message(jobs[i].prompt),
            "gold": jobs[i].prompt.answer,
            "thought": thought,
            "text": rollouts[i].final.text if rollouts[i].ended or width == 1 else None,
            "answers": {
                str(row["budget"]): [row["answer"], row["correct"]]
                for row in rows[i * width : (i + 1) * width]
            },
        }
        for i, thought in zip(picked, thoughts, strict=True)
    ]


def _last_message(prompt: Prompt) -> str:
    return prompt.messages[-1]["content"] if prompt.messages else ""


def _finite(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""
    return {k: v if np.isfinite(v) else None for k, v in fields.items()}


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
