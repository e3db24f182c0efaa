"""Tables of samples made by hand: thoughts of known lengths that know their answer from a point on.

Shape suffixes: M problems, S samples of a problem, J columns: budgets, and last the uncut run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.eval.table import FINISHES, STATUSES, Table

OK, WRONG, NONE, TIMEOUT = (STATUSES.index(s) for s in ("ok", "wrong", "no_answer", "timeout"))


def made(
    length_MS: ArrayLike,
    need_MS: ArrayLike,
    budgets: Sequence[int] = (),
    *,
    cap: int = 100,
    answer: int = 3,
    seed: int = 0,
    **changed: Any,
) -> Table:
    """Thoughts of `length` tokens, right from `need` on; those as long as `cap` never close.

    Wrong answers are of three kinds; the right one is class 0. `changed` replaces fields.
    """
    length, need = np.broadcast_arrays(np.asarray(length_MS), np.asarray(need_MS))
    rng = np.random.default_rng(seed)
    closed = length < cap
    at_J = np.array([*budgets, cap])
    think = np.minimum(length[..., None], at_J)
    right = think >= need[..., None]
    silent = np.zeros(think.shape, dtype=bool)
    silent[..., -1] = ~closed
    right &= ~silent
    wrong = rng.integers(1, 4, think.shape)
    table = Table(
        task="t",
        mode="truncate",
        asked="",
        target=None,
        budgets=tuple(budgets),
        cap=cap,
        ids_M=tuple(f"p{m}" for m in range(len(length))),
        difficulty_M=np.arange(len(length)) % 2,
        present_MS=np.ones(length.shape, dtype=bool),
        correct_MSJ=right.astype(float),
        status_MSJ=np.where(silent, NONE, np.where(right, OK, WRONG)),
        class_MSJ=np.where(silent, -1, np.where(right, 0, wrong)),
        think_MSJ=think,
        answer_MSJ=np.where(silent, 0, answer),
        forced_MSJ=(length[..., None] > at_J) & (at_J < cap),
        closed_MS=closed,
        finish_MS=np.where(closed, FINISHES.index("stop"), FINISHES.index("length")),
        confidence_MSJ=rng.random(think.shape),
        score_MS=np.full(length.shape, np.nan),
    )
    return replace(table, **changed)


def random(
    problems: int, samples: int, budgets: Sequence[int] = (), seed: int = 0, **changed: Any
) -> Table:
    """Problems that need more or less thought, and a model that is not sure how much."""
    rng = np.random.default_rng(seed)
    cap = int(changed.get("cap", 100))
    need_M1 = rng.integers(0, cap, (problems, 1))
    need = np.clip(need_M1 + rng.integers(-10, 11, (problems, samples)), 0, cap)
    length = np.clip(need + rng.integers(-15, 40, (problems, samples)), 1, cap)
    return made(length, need, budgets, seed=seed, **changed)


def taken(table: Table, problems: ArrayLike, samples: ArrayLike | None = None) -> Table:
    """The same with these problems, and these samples of each, by index."""
    problems = np.asarray(problems)
    out: dict[str, NDArray[Any]] = {}
    for name in Table.__dataclass_fields__:
        values = getattr(table, name)
        if isinstance(values, np.ndarray):
            values = values[problems]
            out[name] = values if samples is None or values.ndim == 1 else values[:, samples]
    return replace(table, ids_M=tuple(table.ids_M[m] for m in problems), **out)


def without(table: Table, missing_MS: ArrayLike) -> Table:
    """The same where these samples were never made."""
    gone = np.asarray(missing_MS, dtype=bool)
    deep = gone[..., None]
    return replace(
        table,
        present_MS=table.present_MS & ~gone,
        correct_MSJ=np.where(deep, np.nan, table.correct_MSJ),
        status_MSJ=np.where(deep, -1, table.status_MSJ),
        class_MSJ=np.where(deep, -1, table.class_MSJ),
        think_MSJ=np.where(deep, -1, table.think_MSJ),
        answer_MSJ=np.where(deep, -1, table.answer_MSJ),
        forced_MSJ=np.where(deep, False, table.forced_MSJ),
        closed_MS=table.closed_MS & ~gone,
        finish_MS=np.where(gone, -1, table.finish_MS),
        confidence_MSJ=np.where(deep, np.nan, table.confidence_MSJ),
        score_MS=np.where(gone, np.nan, table.score_MS),
    )
