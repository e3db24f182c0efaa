"""Accuracy against thinking budget, from one thought per sample (nested, "truncate" mode).

Each sample thinks once, without a limit of its own; at every budget b the thought is cut, closed
by force and answered. A thought that closed itself within b keeps its own answer. Valid for models
that are not told their budget. The same code runs during training and in `laconic eval`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, field_validator

from rewards.verdict import Verdict
from rewards.verify import UNMADE, context
from samplers import seeds
from samplers.seam import Component
from samplers.types import Answer, Job, Plan, Prompt, Rollout
from trainer.eval import curve, efficiency, metric
from trainer.eval.rows import Row as Row
from trainer.eval.rows import rows_of, shown, table_of
from trainer.eval.statistics import Estimate, Prior
from trainer.eval.table import UNCUT as UNCUT
from trainer.journal import atomic
from trainer.world import Item

NOT_LOGGED = ("answer_tokens/sd", "unparseable", "repetition")
_STREAM = 0x6576616C  # keeps evaluation's random numbers apart from training's


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

        Raises:
            OSError: the disk refuses one of them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        summary = {
            "step": self.step,
            **self.settings,
            "metrics": {name: _finite(asdict(e)) for name, e in self.metrics.items()},
        }
        atomic(folder / f"step-{self.step}.jsonl", _lines(self.rows))
        atomic(folder / f"shown-{self.step}.jsonl", _lines(self.shown))
        if self.asked:
            atomic(folder / f"asked-{self.step}.jsonl", _lines(self.asked))
        atomic(folder / f"step-{self.step}.json", json.dumps(summary, indent=1) + "\n")


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
    verdicts = grade(workers, jobs, rollouts, taken)
    rows = [
        row
        for job, rollout, answers, judged in zip(jobs, rollouts, taken, verdicts, strict=True)
        for row in rows_of(job, rollout, answers, judged, grid)
    ]
    settings = {
        "problems": len(prompts),
        "budgets": [*grid, UNCUT],
        "max_tokens": plan.max_tokens,
        **config.model_dump(include={"samples", "temperature", "answer_tokens", "prior", "seed"}),
        "graders": sorted({v.grader for judged in verdicts for v in judged if v.grader}),
    }
    examples = shown(workers.decode, jobs, rollouts, rows, config.shown)
    metrics = measure(rows, grid, config.prior, plan.max_tokens if thinking else None)
    return EvalResult(step, settings, rows, metrics, examples)


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
    """Metrics of saved rows, each with a 95% interval over problems (trainer/eval/curve.py).

    accuracy (uncut), accuracy@b (forced answer at b), cap_accuracy@b (closed within b unforced, and
    right), cap_area (its mean over b = 1 .. `cap`), forced@b, tokens@b (thought and answer),
    anytime (by `prior`), anytime/log (the area under the curve over log2 b), think_tokens and
    answer_tokens (uncut; sd: of all samples), truncated, no_answer, unknown, tokens_per_solve,
    difficulty-d/*. Unknown verdicts are in no accuracy.
    """
    table = table_of(rows, grid, cap)
    found = curve.at_budgets(table) | curve.areas(table, (prior, "log"))
    out = {"accuracy": found["accuracy@inf"]}
    for b in grid:
        names = (f"{kind}@{b}" for kind in ("accuracy", "cap_accuracy", "forced", "tokens"))
        out |= {name: found[name] for name in names}
    if cap is not None:
        out["cap_area"] = found["cap_area"]
    if grid:
        out |= {"anytime": found[f"anytime/{prior}"], "anytime/log": found["anytime/log"]}
    more = curve.lengths(table) | curve.health(table)
    out |= {name: each for name, each in more.items() if name not in NOT_LOGGED}
    tokens_MS = table.known(table.tokens_MSJ[..., -1])
    paid = metric.of_means(efficiency.tokens_per_solve, table.correct_MSJ[..., -1], tokens_MS)
    out["tokens_per_solve"] = paid
    out |= curve.difficulties(table)
    return {name: each.estimate for name, each in out.items()}


def answers_of(rollout: Rollout, budgets: int) -> list[Answer | None]:
    """The answer at each budget and, last, the model's own: None where its thought never ended."""
    if not rollout.plan.cuts:
        return [rollout.final]
    assert len(rollout.answers) == budgets + 1, (len(rollout.answers), budgets)
    own = rollout.final if rollout.ended else None
    return [*(cut[0] for cut in rollout.answers[:-1]), own]


def grade(
    workers: Workers,
    jobs: Sequence[Job],
    rollouts: Sequence[Rollout],
    taken: Sequence[Sequence[Answer | None]],
) -> list[list[Verdict]]:
    """Verdicts [rollout][budget]; an answer that several budgets share is graded once."""
    wanted: dict[tuple[int, str | None], Item] = {}
    for job, rollout, answers in zip(jobs, rollouts, taken, strict=True):
        prompt = job.prompt
        for answer in answers if not rollout.unmade else ():
            text = answer.text if answer else None
            wanted.setdefault((job.group, text), (text, prompt.answer, context(prompt)))
    found = dict(zip(wanted, workers.grade(list(wanted.values())), strict=True))
    return [
        [
            UNMADE if rollout.unmade else found[job.group, answer.text if answer else None]
            for answer in answers
        ]
        for job, rollout, answers in zip(jobs, rollouts, taken, strict=True)
    ]


def _finite(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""
    return {k: v if math.isfinite(v) else None for k, v in fields.items()}


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
