"""What is wrong with an evaluation, or with the model in it, that figures alone do not show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from trainer.eval.adherence import LEAK
from trainer.eval.metric import Metric
from trainer.eval.table import FINISHES, Table

TRUNCATED, REPEATED, UNKNOWN = 0.05, 0.05, 0.01
"""Shares above which they are told."""
ADHERENCE = "adherence"


def findings(tables: Sequence[Table], metrics: Mapping[str, Metric]) -> list[str]:
    """One line each, the gravest first; none where nothing was found."""
    graded = [line for table in tables for line in _of_table(table)]
    told: dict[tuple[str, str], list[Table]] = {}
    for table in tables:
        if table.asked:
            told.setdefault((table.task, table.mode), []).append(table)
    heard = [line for some in told.values() for line in _unheard(some, metrics)]
    return [*exceeded(tables), *heard, *graded, *_leaks(metrics), *_draws(tables, metrics)]


def exceeded(tables: Sequence[Table]) -> list[str]:
    """Hard budgets that were not kept: the thought is longer than what was to end it."""
    out = []
    for table in tables:
        for j, b in enumerate(table.budgets):
            over_MS = table.think_MSJ[..., j] > b
            if over_MS.any():
                share = over_MS.sum() / table.present_MS.sum()
                most = int(table.think_MSJ[..., j][over_MS].max())
                out.append(
                    f"{table.task}: {ADHERENCE}: the hard budget of {b} was exceeded in "
                    f"{share:.1%} of samples, by up to {most - b} tokens: the engine or server "
                    "ignored it"
                )
    return out


def _of_table(table: Table) -> list[str]:
    """Samples that were cut at the cap, went in circles, or could not be graded."""
    there = max(int(table.present_MS.sum()), 1)
    asked = f"{table.task} at '{table.asked}'" if table.asked else table.task

    def share(name: str) -> float:
        at_MS = (table.finish_MS == FINISHES.index(name)) & table.present_MS
        return float(at_MS.sum() / there)

    out = []
    if (cut := share("length")) > TRUNCATED:
        out.append(
            f"{asked}: truncated: {cut:.1%} of samples ran into the cap of {table.cap} tokens and "
            "count as wrong; raise --max-tokens"
        )
    if (loops := share("repetition")) > REPEATED:
        out.append(f"{asked}: repetition: {loops:.1%} of samples went in circles and were ended")
    ungraded = np.isnan(table.correct_MSJ) & table.present_MS[..., None]
    if (unknown := ungraded.sum() / (there * len(table.columns))) > UNKNOWN:
        out.append(
            f"{asked}: unknown: {unknown:.1%} of verdicts (timeout, error, a gold that cannot be "
            "graded) are in no accuracy"
        )
    if table.problems == 1 and not table.asked:
        out.append(f"{asked}: one problem: there is no interval, and nothing to say of others")
    return out


def _unheard(tables: Sequence[Table], metrics: Mapping[str, Metric]) -> list[str]:
    """Announced numbers, or efforts, that change nothing."""
    if len(tables) < 2:
        return []
    first, *others = tables
    task, names = first.task, ", ".join(table.asked for table in tables)
    what = "efforts" if first.mode == "effort" else "announced budgets"
    if all(_same(first, table) for table in others):
        return [
            f"{task}: the {what} ({names}) have no effect at all: every thought is as long under "
            "each; does the chat template drop them?"
        ]
    found = metrics.get(f"{task}/prompt/rank_correlation")
    if first.mode == "effort" or found is None or found.low > 0:
        return []
    value = "none" if math.isnan(found.value) else f"{found.value:.2f}"
    return [
        f"{task}: thoughts do not grow with the {what} ({names}): rank correlation {value} "
        f"[{found.low:.2f}, {found.high:.2f}]"
    ]


def _same(a: Table, b: Table) -> bool:
    there = a.present_MS.shape == b.present_MS.shape and (a.present_MS == b.present_MS).all()
    return bool(there and (a.think_MSJ[..., -1] == b.think_MSJ[..., -1])[a.present_MS].all())


def _leaks(metrics: Mapping[str, Metric]) -> list[str]:
    return [
        f"{name.partition('/')[0]}: {name.partition('/')[2]}: answers are {found.value:.1f} times "
        "as long as without it: thinking leaks into them"
        for name, found in metrics.items()
        if "/leak@" in name and not name.startswith("all/") and found.value > LEAK
    ]


def _draws(tables: Sequence[Table], metrics: Mapping[str, Metric]) -> list[str]:
    """pass@k of fewer than 2 k samples is noisy."""
    out = []
    for task in dict.fromkeys(table.task for table in tables):
        samples = max(t.present_MS.sum(axis=1).max(initial=0) for t in tables if t.task == task)
        near = [
            k for k in range(2, samples + 1) if f"{task}/pass@{k}" in metrics and samples < 2 * k
        ]
        if near:
            ks = ", ".join(map(str, near))
            out.append(
                f"{task}: pass@k at k = {ks} of {samples} samples is noisy; take 2 k or more"
            )
    return out
