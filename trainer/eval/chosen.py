"""Metrics of selections and of early exits, offline: from saved traces, without generating.

Shape suffixes: M problems, S samples of a problem, N of them that are there, J columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samplers.selection import base as selection
from samplers.stopping import base as stopping
from samplers.stopping.base import Look
from trainer.eval import metric
from trainer.eval.curve import Metrics
from trainer.eval.statistics import SHARE, Floats
from trainer.eval.table import Table

Spec = str | Mapping[str, Any]


def selections(table: Table, specs: Sequence[Spec], ks: Sequence[int]) -> Metrics:
    """NAME@k/accuracy, /tokens (all that was generated) and /latency of each selection.

    A problem with fewer than k samples is left out; what needs scores is, where there are none.
    """
    out: Metrics = {}
    count_M = table.present_MS.sum(axis=1)
    draws = selection.draws_for(table.problems)
    for spec in specs:
        module, config = selection.resolve(spec)
        score_MS = scores(table)
        if getattr(module, "NEEDS", "") == "score" and score_MS is None:
            continue
        pools = _pools(table, score_MS)
        for k in ks:
            found_3M = np.full((3, table.problems), np.nan)
            for m in np.flatnonzero(count_M >= k):
                right_N = table.correct_MSJ[m, table.present_MS[m], -1]
                worth = selection.expected(module, config, pools[m], right_N, k, draws)
                found_3M[:, m] = worth.accuracy, worth.tokens, worth.latency
            samples = int(count_M[count_M >= k].sum())
            for kind, values_M in zip(("accuracy", "tokens", "latency"), found_3M, strict=True):
                name = f"{label(module, config)}@{k}/{kind}"
                within = SHARE if kind == "accuracy" else None
                out[name] = metric.over_problems(values_M, samples, within=within)
    return out


def scores(table: Table) -> Floats | None:
    """[M, S]: what a scorer said, else the model's confidence in its answer; None without both."""
    for score_MS in (table.score_MS, table.confidence_MSJ[..., -1]):
        if np.isfinite(score_MS).any():
            return score_MS
    return None


def exits(table: Table, specs: Sequence[Spec]) -> Metrics:
    """stop/NAME/accuracy, /tokens and /exited: rules that look where the trace was cut.

    Paid for are the thought up to the exit, every trial answer until then, and the final answer,
    which is that of the cut. A thought is looked at while it is under way. Rules that saved traces
    say nothing of, and tables without cuts, have no metrics.
    """
    out: Metrics = {}
    for spec in specs if table.budgets else ():
        rule, config = stopping.resolve(spec)
        if not stopping.offline(rule):
            continue
        exit_MS, looked_MS = _exits(table, rule, config)
        exited_MS = exit_MS >= 0
        column_MS = np.where(exited_MS, exit_MS, len(table.budgets))
        tried = np.arange(len(table.budgets)) < looked_MS[..., None]
        trials_MS = np.where(tried, table.answer_MSJ[..., :-1], 0).sum(axis=-1)
        paid_MS = _taken(table.tokens_MSJ, column_MS) + trials_MS
        name = f"stop/{label(rule, config)}"
        out[f"{name}/accuracy"] = metric.from_samples(_taken(table.correct_MSJ, column_MS), SHARE)
        out[f"{name}/tokens"] = metric.from_samples(table.known(paid_MS))
        out[f"{name}/exited"] = metric.from_samples(table.known(exited_MS), SHARE)
    return out


def label(module: ModuleType, config: Any) -> str:
    """majority, or short_m(m=1) where a setting is not the default."""
    name = module.__name__.rpartition(".")[2]
    changed = config.model_dump(exclude_defaults=True) if config is not None else {}
    told = ",".join(f"{key}={value}" for key, value in changed.items())
    return f"{name}({told})" if told else name


def _pools(table: Table, score_MS: Floats | None) -> list[selection.Pool]:
    """The uncut samples of each problem, [1, N]."""
    answer, think = table.class_MSJ[..., -1], table.think_MSJ[..., -1]
    tokens = table.tokens_MSJ[..., -1]
    score = np.full(table.present_MS.shape, np.nan) if score_MS is None else score_MS
    return [
        selection.Pool(
            answer[m, there][None],
            think[m, there][None],
            tokens[m, there][None],
            score[m, there][None],
        )
        for m, there in enumerate(table.present_MS)
    ]


def _taken(values_MSJ: NDArray[Any], column_MS: NDArray[np.int64]) -> NDArray[Any]:
    """[M, S]: of each sample the value in its column."""
    return np.take_along_axis(values_MSJ, column_MS[..., None], axis=-1)[..., 0]


def _exits(
    table: Table, rule: ModuleType, config: Any
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each sample the column of its exit (-1: none), and how many looks were taken."""
    shape = table.present_MS.shape
    exit_MS, looked_MS = np.full(shape, -1), np.zeros(shape, dtype=np.int64)
    budgets = table.budgets
    under_way_MS = (np.array(budgets) < table.think_MSJ[..., -1:]).sum(axis=-1)
    classes, sure = table.class_MSJ.tolist(), table.confidence_MSJ.tolist()
    for m, s in np.argwhere(table.present_MS).tolist():
        looks = [
            Look(budgets[j], None if (c := classes[m][s][j]) < 0 else str(c), sure[m][s][j])
            for j in range(under_way_MS[m, s])
        ]
        at = stopping.exit_of(rule, config, looks)
        exit_MS[m, s] = -1 if at is None else at
        looked_MS[m, s] = len(looks) if at is None else at + 1
    return exit_MS, looked_MS
