"""Metrics of one table: accuracy and tokens at each budget, lengths, and what went wrong.

Everything that training logs of an evaluation comes from here too (trainer/eval/budgets.py). Names
are those of trainer/eval/README.md without the task.

Shape suffixes: M problems, S samples of a problem, J columns: budgets, and last the uncut run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.eval import metric, statistics
from trainer.eval.metric import Metric
from trainer.eval.statistics import SHARE, Prior
from trainer.eval.table import FINISHES, STATUSES, UNCUT, Table

Metrics = dict[str, Metric]


def at_budgets(table: Table) -> Metrics:
    """accuracy, tokens, think_tokens, answer_tokens and forced at every budget and uncut.

    cap_accuracy@b: closed within b unforced, and right. Unknown verdicts are in no accuracy.
    """
    out: Metrics = {}
    tokens = table.tokens_MSJ
    for j, b in enumerate(table.columns):
        out[f"accuracy@{b}"] = metric.from_samples(table.correct_MSJ[..., j], SHARE)
        for name, values in (
            ("tokens", tokens),
            ("think_tokens", table.think_MSJ),
            ("answer_tokens", table.answer_MSJ),
            ("forced", table.forced_MSJ),
        ):
            # Uncut nothing is forced and at 0 everything is, by what the words mean.
            within = SHARE if name == "forced" and b not in ("0", UNCUT) else None
            out[f"{name}@{b}"] = metric.from_samples(table.known(values[..., j]), within)
        if b != UNCUT:
            within_MS = table.closed_MS & (table.think_MSJ[..., -1] <= int(b))
            right_MS = within_MS * table.correct_MSJ[..., -1]
            out[f"cap_accuracy@{b}"] = metric.from_samples(right_MS, SHARE)
    return out


def areas(table: Table, priors: Sequence[Prior]) -> Metrics:
    """anytime/PRIOR over the finite budgets, and cap_area: accuracy where a thought must end by
    itself under a cap, mean over the caps 1 .. `table.cap`."""
    out: Metrics = {}
    correct = table.correct_MSJ[..., :-1]
    for prior in priors if table.budgets else ():
        at_M = statistics.anytime(statistics.over_samples(correct), table.budgets, prior)
        each_MS = statistics.anytime(correct, table.budgets, prior)
        known = int((~np.isnan(each_MS)).sum())
        fixed = metric.fixed_error(each_MS)
        out[f"anytime/{prior}"] = metric.over_problems(at_M, known, fixed, SHARE)
    worth_MS = table.closed_MS * statistics.under_caps(table.think_MSJ[..., -1], table.cap)
    out["cap_area"] = metric.from_samples(worth_MS * table.correct_MSJ[..., -1], SHARE)
    return out


def lengths(table: Table) -> Metrics:
    """Tokens of the uncut thought and of its answer; sd is that of all samples."""
    out: Metrics = {}
    for name, values in (("think_tokens", table.think_MSJ), ("answer_tokens", table.answer_MSJ)):
        tokens_MS = table.known(values[..., -1])
        out[f"{name}/mean"] = metric.from_samples(tokens_MS)
        out[f"{name}/median"] = metric.quantile(tokens_MS, 0.5)
        out[f"{name}/p95"] = metric.quantile(tokens_MS, 0.95)
        out[f"{name}/sd"] = metric.deviation(tokens_MS)
    return out


def health(table: Table) -> Metrics:
    """Shares of samples, uncut; unknown: of verdicts, at all budgets."""
    status_MS = table.status_MSJ[..., -1]
    unknown_MS = np.isnan(table.correct_MSJ).mean(axis=-1)
    shares = {
        "truncated": table.finish_MS == FINISHES.index("length"),
        "no_answer": status_MS == STATUSES.index("no_answer"),
        "unparseable": status_MS == STATUSES.index("unparseable"),
        "unknown": unknown_MS,
        "repetition": table.finish_MS == FINISHES.index("repetition"),
    }
    each = {name: table.known(share) for name, share in shares.items()}
    each["unknown"] = np.where(table.present_MS, unknown_MS, np.nan)  # of what was not made too
    return {name: metric.from_samples(share_MS, SHARE) for name, share_MS in each.items()}


def difficulties(table: Table) -> Metrics:
    """Uncut accuracy and thinking tokens for each difficulty that the data tell."""
    out: Metrics = {}
    for d in np.unique(table.difficulty_M[table.difficulty_M >= 0]):
        these_M = table.difficulty_M == d
        thoughts_MS = table.known(table.think_MSJ[..., -1])[these_M]
        correct_MS = table.correct_MSJ[these_M, :, -1]
        out[f"difficulty-{d}/accuracy"] = metric.from_samples(correct_MS, SHARE)
        out[f"difficulty-{d}/think_tokens"] = metric.from_samples(thoughts_MS)
    return out
