"""Whether a model does what it is asked: every mode or budget of a policy, run uncut.

A budget policy may offer `asked(config)`: name -> how the prompt is asked for that mode or number
of tokens. Each is run on the same problems with the same random numbers, no thought is cut, and
accuracy and tokens are told by name; where numbers are asked for, how well they are kept.

Shape suffixes: N ways of asking, M problems, S samples of a problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from samplers.types import Plan, Prompt
from trainer.eval import adherence, metric, statistics
from trainer.eval.budgets import (
    EvalConfig,
    EvalResult,
    Workers,
    answers_of,
    grade,
    jobs_of,
    nested,
)
from trainer.eval.rows import Row, table_of, told
from trainer.eval.statistics import Estimate

COUNTED = ("think_tokens", "answer_tokens", "tokens")


def with_asked(
    result: EvalResult,
    workers: Workers,
    prompts: Sequence[Prompt],
    config: EvalConfig,
    asked: Mapping[str, Plan],
) -> EvalResult:
    """The evaluation with rows and metrics of every way of asking added; as it is if none is."""
    rows: list[Row] = []
    for name, plan in asked.items():
        jobs = jobs_of(prompts, config, nested(plan, (), config.answer_tokens))
        rollouts = workers.rollout(jobs)
        taken = [answers_of(rollout, 0) for rollout in rollouts]
        verdicts = grade(workers, jobs, rollouts, taken)
        for job, rollout, [answer], [verdict] in zip(jobs, rollouts, taken, verdicts, strict=True):
            row = told(job, rollout, answer, verdict) | {"tokens": rollout.sampled_tokens}
            rows.append({"asked": name, "target": job.plan.target, **row})
    return replace(result, asked=rows, metrics={**result.metrics, **measure(rows)})


def measure(rows: Sequence[Row]) -> dict[str, Estimate]:
    """Metrics of saved rows, each with a 95% interval over problems.

    asked/NAME/accuracy, /think_tokens, /answer_tokens, /tokens (what was sampled of the response).
    Of names that ask for a number N of tokens, n being the response's: asked/deviation, the mean of
    |n - N| / N, and, with two numbers or more, asked/rank_correlation (Spearman) over all samples.
    """
    out: dict[str, Estimate] = {}
    wanted_N, used_NMS = [], []
    for name in dict.fromkeys(row["asked"] for row in rows):
        mine = [row for row in rows if row["asked"] == name]
        table = table_of(mine)
        used_MS = np.array([row["tokens"] for row in mine], float).reshape(table.present_MS.shape)
        each = {
            "accuracy": table.correct_MSJ[..., 0],
            "think_tokens": table.known(table.think_MSJ[..., 0]),
            "answer_tokens": table.known(table.answer_MSJ[..., 0]),
            "tokens": used_MS,
        }
        for kind, values_MS in each.items():
            within = statistics.SHARE if kind == "accuracy" else None
            out[f"asked/{name}/{kind}"] = metric.from_samples(values_MS, within).estimate
        if mine[0]["target"] is not None:
            wanted_N.append(mine[0]["target"])
            used_NMS.append(used_MS)
    if wanted_N:
        out |= _kept(np.array(wanted_N, dtype=np.float64), np.array(used_NMS))
    return out


def _kept(wanted_N: NDArray[np.float64], used_NMS: NDArray[np.float64]) -> dict[str, Estimate]:
    """How well the numbers that were asked for are kept."""
    wanted_N11 = wanted_N[:, None, None]
    off_M = (np.abs(used_NMS - wanted_N11) / wanted_N11).mean(axis=(0, 2))
    out = {"asked/deviation": statistics.mean(off_M)}
    if len(set(wanted_N.tolist())) > 1:
        out["asked/rank_correlation"] = adherence.rank_correlation(wanted_N, used_NMS)
    return out
