"""All metrics of an evaluation, from its tables: trainer/eval/README.md says what each name means.

Two experiments are never mixed: T/accuracy@512 is of traces that were cut and told nothing,
T/prompt/accuracy@512 of traces that were told of 512.

Shape suffixes: M problems, S samples of a problem, J columns: budgets, and last the uncut run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from trainer.eval import announced, chosen, curve, efficiency, metric, statistics, thinking
from trainer.eval.chosen import Spec
from trainer.eval.curve import Metrics
from trainer.eval.metric import Metric
from trainer.eval.statistics import SHARE, Floats, Prior
from trainer.eval.table import Table

DROPS = (0.01, 0.02, 0.05)
"""Losses of accuracy that compression is told at."""
ALL = "all"


@dataclass(frozen=True, slots=True)
class Options:
    """What is computed beyond the usual."""

    selections: tuple[Spec, ...] = ("majority", "short_m", "best_of_n", "best_of_majority")
    ks: tuple[int, ...] | None = None
    """Samples drawn; those above what was sampled are left out. None: powers of two, for pass@k up
    to half of what was sampled."""
    stopping: tuple[Spec, ...] = ("consistency", "confidence")
    """Rules that end a thought early."""
    prior: Prior = "log"
    """The weights of T/anytime; T/anytime/PRIOR is told for each."""


def measure(tables: Sequence[Table], options: Options | None = None) -> dict[str, Metric]:
    """Every metric, as TASK/NAME; and all/NAME, the mean over tasks that have it all.

    Raises:
        ValueError: an unknown selection, rule or prior.
    """
    options = options or Options()
    tasks = list(dict.fromkeys(table.task for table in tables))
    found = {t: of_task([table for table in tables if table.task == t], options) for t in tasks}
    out = {f"{task}/{name}": m for task, ms in found.items() for name, m in ms.items()}
    if len(tasks) > 1:
        shared = [name for name in found[tasks[0]] if all(name in ms for ms in found.values())]
        for name in shared:
            out[f"{ALL}/{name}"] = metric.macro([ms[name] for ms in found.values()])
    return out


def of_task(tables: Sequence[Table], options: Options) -> Metrics:
    """Metrics of one task, asked in one way or several, without its name."""
    tables = aligned(tables)
    free = next((table for table in tables if not table.asked), None)
    out: Metrics = {}
    if free is not None:
        out |= of_free(free, options)
    prompted = sorted((t for t in tables if t.target is not None), key=lambda t: t.target or 0)
    if prompted:
        out |= announced.prompted(prompted, free)
    efforts = [table for table in tables if table.mode == "effort" and table.asked]
    if efforts:
        out |= announced.efforts(efforts, free)
    return out


def of_free(table: Table, options: Options) -> Metrics:
    """Metrics of a table that nothing was announced in."""
    out = curve.at_budgets(table) | curve.areas(table, get_args(Prior))
    if table.budgets:
        out["anytime"] = out[f"anytime/{options.prior}"]
    samples = table.present_MS.shape[1]
    wanted = options.ks or [2**i for i in range(samples.bit_length())]
    ks = [k for k in sorted(set(wanted)) if 1 <= k <= samples]
    steady = [k for k in ks if options.ks or k == 1 or 2 * k <= samples]
    out |= {f"pass@{k}": metric.pass_at_k(table.correct_MSJ[..., -1], k) for k in steady}
    out |= curve.lengths(table) | curve.health(table)
    out |= efficiency_of(table) | thinking_of(table) | curve.difficulties(table)
    out |= chosen.selections(table, options.selections, ks)
    return out | chosen.exits(table, options.stopping)


def efficiency_of(table: Table) -> Metrics:
    """What right answers cost in tokens, at each budget."""
    out: Metrics = {}
    accuracy_MJ = statistics.over_samples(table.correct_MSJ)
    tokens_MJ = np.full_like(accuracy_MJ, np.nan)
    each = (efficiency.tokens_per_solve, efficiency.e3, efficiency.ockscore)
    for j, b in enumerate(table.columns):
        correct_MS, tokens_MS = table.correct_MSJ[..., j], table.known(table.tokens_MSJ[..., j])
        tokens_MJ[:, j] = statistics.over_samples(tokens_MS)
        for estimator in each:
            name = f"{estimator.__name__}@{b}"
            out[name] = metric.of_means(estimator, correct_MS, tokens_MS)
        cost_M = efficiency.cost_of_pass(accuracy_MJ[:, j], tokens_MJ[:, j])
        typical = efficiency.typical(cost_M)
        out[f"cost_of_pass@{b}"] = metric.of_estimate(typical, _count(correct_MS))
    uncut_M = accuracy_MJ[:, -1]
    solved_M = np.where(np.isnan(uncut_M), np.nan, uncut_M > 0)
    count = _count(table.correct_MSJ[..., -1])
    out["solved"] = metric.over_problems(solved_M, count, within=SHARE)
    for drop in DROPS if table.budgets else ():
        saved = efficiency.compression(accuracy_MJ, tokens_MJ, drop)
        out[f"compression@{drop}"] = metric.of_estimate(saved, count)
    return out


def thinking_of(table: Table) -> Metrics:
    """Thinking on past a right answer, and stopping short of one; only cuts tell."""
    if not table.budgets:
        return {}
    correct, think = table.correct_MSJ, table.think_MSJ
    found = {
        "overthinking/harm": thinking.harm(correct),
        "overthinking/waste": thinking.waste(correct, think),
        "underthinking/problems": thinking.left_early(correct, table.forced_MSJ),
        "underthinking/left": thinking.left_right(correct, think),
    }
    count = _count(correct[..., -1])
    return {name: metric.over_problems(v_M, count, within=SHARE) for name, v_M in found.items()}


def aligned(tables: Sequence[Table]) -> list[Table]:
    """The same problems in the same order: those that every table has a sample of."""
    if len({table.ids_M for table in tables}) == 1:
        return list(tables)
    shared = set.intersection(*(set(table.ids_M) for table in tables))
    ids = [name for name in tables[0].ids_M if name in shared]
    return [table.of(ids) for table in tables]


def _count(values: Floats) -> int:
    return int((~np.isnan(values)).sum())
