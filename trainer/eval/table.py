"""Samples of one task, asked in one way, as arrays: what every metric and figure is a function of.

Shape suffixes: M problems, S samples of a problem, J columns: the budgets, and last the uncut run.
Ragged samples are padded: `present_MS` tells. What is not there is NaN, -1 or False.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Mode = Literal["truncate", "prompt", "effort"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
STATUSES = ("ok", "wrong", "no_answer", "unparseable", "timeout", "error", "gold_error")
FINISHES = ("stop", "length", "abort", "repetition")
UNCUT = "inf"


@dataclass(frozen=True, slots=True)
class Table:
    """In `truncate` nothing is announced and every budget is a cut of one trace. In `prompt` a
    number is announced (`target`), its one budget column is the same trace cut there: announced and
    enforced; the last column is announced alone. In `effort` there is the uncut run alone."""

    task: str
    mode: Mode
    asked: str
    """What was announced: '' nothing, '512' a number, 'low' an effort."""
    target: int | None
    budgets: tuple[int, ...]
    """The finite ones, ascending: columns 0 .. J - 2."""
    cap: int
    """Most tokens of a response."""
    ids_M: tuple[str, ...]
    difficulty_M: Ints
    """-1: nobody says."""
    present_MS: Bools
    correct_MSJ: Floats
    """1 right, 0 wrong; NaN: the verdict is unknown, or there is no sample."""
    status_MSJ: Ints
    """Index into `STATUSES`; -1: no sample."""
    class_MSJ: Ints
    """Equal numbers within a problem are equal canonical answers; -1: no answer."""
    think_MSJ: Ints
    """Thinking tokens, the end marker not counted."""
    answer_MSJ: Ints
    """Sampled tokens of the answer."""
    forced_MSJ: Bools
    """The thought was closed by force there, and the model answered."""
    closed_MS: Bools
    """The uncut thought ended by itself."""
    finish_MS: Ints
    """Index into `FINISHES`, of the uncut run."""
    confidence_MSJ: Floats
    """Geometric mean of the probabilities of the answer's sampled tokens."""
    score_MS: Floats
    """What an outside scorer said; NaN: none did."""

    @property
    def problems(self) -> int:
        return len(self.ids_M)

    @property
    def tokens_MSJ(self) -> Ints:
        """Thought and answer."""
        return self.think_MSJ + self.answer_MSJ

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the J columns, as in metrics: the finite budgets, and last 'inf'."""
        return (*map(str, self.budgets), UNCUT)

    def known(self, values_MS: NDArray[Any]) -> Floats:
        """[M, S] as numbers, NaN where there is no sample, or no engine survived making it."""
        made_MS = self.present_MS & (self.finish_MS != FINISHES.index("abort"))
        return np.where(made_MS, values_MS.astype(np.float64), np.nan)

    def of(self, ids: Sequence[str]) -> Table:
        """The same for these problems, in this order."""
        row = {name: m for m, name in enumerate(self.ids_M)}
        order_M = np.array([row[name] for name in ids], dtype=np.int64)
        per_problem = {
            f.name: getattr(self, f.name)[order_M]
            for f in fields(self)
            if isinstance(getattr(self, f.name), np.ndarray)
        }
        return replace(self, ids_M=tuple(ids), **per_problem)
