"""Metrics of what was announced in the prompt: numbers of thinking tokens, or efforts.

Adherence is measured with the hard cap off: the thought as long as the model wanted it. Leak is
answering at length where thinking is asked to be short.

Shape suffixes: N ways of asking, M problems, S samples of a problem.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samplers.budget import EFFORTS
from trainer.eval import adherence, efficiency, metric, statistics
from trainer.eval.curve import Metrics
from trainer.eval.statistics import SHARE
from trainer.eval.table import Table


def prompted(tables: Sequence[Table], free: Table | None) -> Metrics:
    """Of tables with a `target`, ascending: accuracy and tokens at each, soft and hard, and how
    well the numbers are kept.

    Args:
        free: the same problems with nothing announced; without it there is no leak.
    """
    out: Metrics = {}
    for table in tables:
        b, used_MS = table.target, table.known(table.think_MSJ[..., -1])
        assert b is not None, table.asked
        for kind, j in (("", 0), ("soft_", -1)):
            correct_MS = table.correct_MSJ[..., j]
            out[f"prompt/{kind}accuracy@{b}"] = metric.from_samples(correct_MS, SHARE)
            tokens_MS = table.known(table.tokens_MSJ[..., j])
            out[f"prompt/{kind}tokens@{b}"] = metric.from_samples(tokens_MS)
        for name, kept_MS in _kept(used_MS, b).items():
            out[f"prompt/{name}@{b}"] = metric.from_samples(
                kept_MS, SHARE if name.startswith("violation") else None
            )
        if free is not None:
            out[f"prompt/leak@{b}"] = leak(table, free)
    if len(tables) > 1:
        out |= _followed(tables)
    return out


def efforts(tables: Sequence[Table], free: Table | None) -> Metrics:
    """Of tables asked for by effort: accuracy and tokens of each, leak, and ThinkDial's badge.

    effort/badge is 1 where every effort that has a threshold keeps it, by the drop in points;
    effort/badge_relative by the share of the highest effort's accuracy.

    Args:
        free: the same problems with nothing asked; leak is measured against the highest effort
            where there is none.
    """
    out: Metrics = {}
    order = {name: i for i, name in enumerate(EFFORTS)}
    ranked = sorted(tables, key=lambda table: order.get(table.asked, -1))
    against = free or (ranked[-1] if len(ranked) > 1 else None)
    for table in ranked:
        name = table.asked
        out[f"effort/accuracy@{name}"] = metric.from_samples(table.correct_MSJ[..., -1], SHARE)
        for kind, values in (
            ("tokens", table.tokens_MSJ),
            ("think_tokens", table.think_MSJ),
            ("answer_tokens", table.answer_MSJ),
        ):
            out[f"effort/{kind}@{name}"] = metric.from_samples(table.known(values[..., -1]))
        if against is not None and against is not table:
            out[f"effort/leak@{name}"] = leak(table, against)
    return out | _badge(out, [table.asked for table in ranked])


def leak(table: Table, free: Table) -> metric.Metric:
    """Answer tokens here over those of the free run, uncut."""
    answers = (t.known(t.answer_MSJ[..., -1]) for t in (table, free))
    return metric.of_means(adherence.leak, *answers, shared=False)


def _kept(used_MS: statistics.Floats, target: int) -> dict[str, statistics.Floats]:
    """`adherence.kept` of each sample: a sample on its own is a problem with one."""
    flat = adherence.kept(used_MS.reshape(-1, 1), target)
    return {name: values.reshape(used_MS.shape) for name, values in flat.items()}


def _followed(tables: Sequence[Table]) -> Metrics:
    """Whether a larger number gives a longer thought."""
    wanted_N = np.array([table.target for table in tables], dtype=np.float64)
    samples = max(table.present_MS.shape[1] for table in tables)
    used_NMS = np.full((len(tables), tables[0].problems, samples), np.nan)
    for used_MS, table in zip(used_NMS, tables, strict=True):
        used_MS[:, : table.present_MS.shape[1]] = table.known(table.think_MSJ[..., -1])
    count = int((~np.isnan(used_NMS)).sum())
    return {
        "prompt/rank_correlation": metric.of_estimate(
            adherence.rank_correlation(wanted_N, used_NMS), count
        ),
        "prompt/slope": metric.of_estimate(adherence.slope(wanted_N, used_NMS), count),
    }


def _badge(found: Metrics, names: Sequence[str]) -> Metrics:
    accuracy = {name: found[f"effort/accuracy@{name}"] for name in names}
    tokens = {name: found[f"effort/tokens@{name}"] for name in names}
    if not {"low", "medium", "high"} <= set(names):
        return {}
    badges = efficiency.badge(
        {name: each.value for name, each in accuracy.items()},
        {name: each.value for name, each in tokens.items()},
    )
    high = accuracy["high"]
    held = {
        "effort/badge": all(badge.absolute for badge in badges.values()),
        "effort/badge_relative": all(badge.relative for badge in badges.values()),
    }
    return {
        name: metric.of_estimate(
            statistics.Estimate(float(kept), np.nan, np.nan, high.n), high.samples
        )
        for name, kept in held.items()
    }
