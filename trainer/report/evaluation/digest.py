"""What figures need of a table of samples, so that no report holds the samples of all its models.

Shape suffixes as in trainer/eval/table.py: M problems, S samples, J columns (budgets, last uncut);
K: kinds of `KINDS`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.verdict import UNKNOWN
from trainer.eval import statistics
from trainer.eval.table import FINISHES, STATUSES, Bools, Floats, Ints, Table

KINDS = (
    "right",
    "right, forced",
    "wrong",
    "wrong, forced",
    "unparseable",
    "repeated itself",
    "no room to answer",
    "no answer",
    "verdict unknown",
)
"""What a sample is at a budget. No room to answer: the response met its cap and has no answer."""


@dataclass(frozen=True)
class Digest:
    """One way of asking."""

    mode: str
    asked: str
    target: int | None
    budgets: tuple[int, ...]
    cap: int
    ids_M: tuple[str, ...]
    difficulty_M: Ints
    samples: int
    """Of all problems together."""
    most: int
    """Samples of the problem that has most."""
    right_MJ: Floats
    """Share of right samples; NaN: every verdict is unknown."""
    forced_MJ: Floats
    answered_MJ: Floats
    """Share of samples with an answer."""
    think_MJ: Floats
    answer_MJ: Floats
    kinds_JK: Floats
    """Share of each of `KINDS`: mean over problems."""
    lengths_MS: NDArray[np.int32]
    """Thinking tokens of the uncut run; -1: no sample."""
    verdicts_MS: NDArray[np.int8]
    """Of the uncut run: 1 right, 0 wrong, -1 unknown or no sample."""


def digest(table: Table) -> Digest:
    here_MSJ = np.broadcast_to(table.present_MS[..., None], table.correct_MSJ.shape)
    kind_MSJ = _kinds(table)
    return Digest(
        table.mode,
        table.asked,
        table.target,
        table.budgets,
        table.cap,
        table.ids_M,
        table.difficulty_M,
        int(table.present_MS.sum()),
        int(table.present_MS.sum(axis=1).max(initial=0)),
        statistics.over_samples(table.correct_MSJ),
        _mean(table.forced_MSJ, here_MSJ),
        _mean(kind_MSJ < KINDS.index("repeated itself"), here_MSJ),
        _mean(table.think_MSJ, here_MSJ),
        _mean(table.answer_MSJ, here_MSJ),
        _shares(kind_MSJ, here_MSJ),
        np.where(table.present_MS, table.think_MSJ[..., -1], -1).astype(np.int32),
        np.nan_to_num(table.correct_MSJ[..., -1], nan=-1.0).astype(np.int8),
    )


def _kinds(table: Table) -> NDArray[np.int8]:
    """Index into `KINDS` of each sample at each column, [M, S, J]."""
    status_MSJ, forced_MSJ = table.status_MSJ, table.forced_MSJ
    uncut = np.zeros(status_MSJ.shape[2], dtype=bool)
    uncut[-1:] = True
    finish_MSJ = table.finish_MS[..., None]
    none = status_MSJ == STATUSES.index("no_answer")
    said = {
        "right": status_MSJ == STATUSES.index("ok"),
        "right, forced": (status_MSJ == STATUSES.index("ok")) & forced_MSJ,
        "wrong": status_MSJ == STATUSES.index("wrong"),
        "wrong, forced": (status_MSJ == STATUSES.index("wrong")) & forced_MSJ,
        "unparseable": status_MSJ == STATUSES.index("unparseable"),
        "no answer": none,
        "repeated itself": none & uncut & (finish_MSJ == FINISHES.index("repetition")),
        "no room to answer": none & uncut & (finish_MSJ == FINISHES.index("length")),
        "verdict unknown": np.isin(status_MSJ, [STATUSES.index(s) for s in UNKNOWN]),
    }
    out = np.full(status_MSJ.shape, len(KINDS), dtype=np.int8)
    for name, which in said.items():  # later ones are narrower
        out[which] = KINDS.index(name)
    return out


def _mean(values_MSJ: Bools | Ints, here_MSJ: Bools) -> Floats:
    """Over the samples that are there; NaN of none."""
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(here_MSJ, values_MSJ, 0).sum(axis=1) / here_MSJ.sum(axis=1)
    return mean


def _shares(kind_MSJ: NDArray[np.int8], here_MSJ: Bools) -> Floats:
    each = [_mean(kind_MSJ == k, here_MSJ) for k in range(len(KINDS))]
    return np.stack([mean_columns(share_MJ) for share_MJ in each], axis=-1)


def mean_columns(values_MJ: Floats) -> Floats:
    """Mean over problems of each column, unknown ones apart; NaN of none."""
    known = ~np.isnan(values_MJ)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known, values_MJ, 0).sum(axis=0) / known.sum(axis=0)
    return mean
