"""Saved samples and their verdicts into tables, a line at a time: memory grows by numbers alone.

Shape suffixes: M problems, S samples of a problem, J columns (budgets, and last the uncut run),
N samples as they come.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.verdict import UNKNOWN
from trainer.eval.table import FINISHES, STATUSES, UNCUT, Mode, Table

_STATUS = {name: i for i, name in enumerate(STATUSES)}
_FINISH = {name: i for i, name in enumerate(FINISHES)}
_NAN = float("nan")
_UNKNOWN = [_STATUS[name] for name in sorted(UNKNOWN)]
Saved = Mapping[str, Any]


class Columns:
    """Samples of one task asked in one way, as they come; `table` when all have.

    Args:
        classes: number of each canonical answer, by problem; shared by all tables of a task.
    """

    def __init__(
        self,
        task: str,
        asked: Mapping[str, Any],
        cap: int,
        places: Mapping[str, int],
        classes: dict[str, dict[str, int]],
    ) -> None:
        self.task, self.asked, self.cap, self.places = task, asked, cap, places
        self.budgets = tuple(asked["budgets"])
        self._classes = classes
        self._of = {name: array("i") for name in ("problem", "sample", "closed", "finish")}
        self._score = array("d")
        self._at = {name: array("i") for name in ("status", "class", "think", "tokens", "forced")}
        self._sure = array("d")

    def __len__(self) -> int:
        return len(self._of["problem"])

    def add(self, row: Saved, verdicts: Sequence[Sequence[Any]]) -> None:
        """One sample with the verdicts of its cuts."""
        of, at = self._of, self._at
        of["problem"].append(self.places[row["id"]])
        of["sample"].append(row["sample"])
        of["closed"].append(row["closed"])
        of["finish"].append(_FINISH[row["finish"]])
        self._score.append(_number(row.get("score")))
        cuts = {
            cut["budget"]: (cut, verdict)
            for cut, verdict in zip(row["cuts"], verdicts, strict=True)
        }
        known = self._classes.setdefault(row["id"], {})
        for budget in (*self.budgets, UNCUT):
            cut, (status, answer) = cuts.get(budget) or cuts[UNCUT]
            at["status"].append(_STATUS[status])
            at["class"].append(-1 if answer is None else known.setdefault(answer, len(known)))
            for name in ("think", "tokens", "forced"):
                at[name].append(cut[name])
            self._sure.append(_number(cut.get("confidence")))

    def table(self, difficulty_M: NDArray[np.int64]) -> Table:
        """All that was added."""
        m_N = np.asarray(self._of["problem"], np.int64)
        s_N = np.asarray(self._of["sample"], np.int64)
        shape = (len(self.places), int(s_N.max(initial=-1)) + 1)
        wide = (*shape, len(self.budgets) + 1)

        def spread(values: array[Any], fill: Any, kind: Any, full: Sequence[int]) -> NDArray[Any]:
            out = np.full(full, fill, kind)
            each = np.frombuffer(values, values.typecode) if len(values) else np.zeros(0)
            out[m_N, s_N] = each.reshape(len(m_N), *full[2:]).astype(kind)
            return out

        def at(name: str, fill: Any = -1, kind: Any = np.int64) -> NDArray[Any]:
            return spread(self._at[name], fill, kind, wide)

        def of(name: str, fill: Any, kind: Any) -> NDArray[Any]:
            return spread(self._of[name], fill, kind, shape)

        status_MSJ = at("status")
        right_MSJ = (status_MSJ == _STATUS["ok"]).astype(np.float64)
        unknown_MSJ = np.isin(status_MSJ, [-1, *_UNKNOWN])
        present_MS = np.zeros(shape, np.bool_)
        present_MS[m_N, s_N] = True
        mode: Mode = self.asked["mode"]
        return Table(
            task=self.task,
            mode=mode,
            asked=self.asked["name"],
            target=self.asked["target"],
            budgets=self.budgets,
            cap=self.cap,
            ids_M=tuple(self.places),
            difficulty_M=difficulty_M,
            present_MS=present_MS,
            correct_MSJ=np.where(unknown_MSJ, np.nan, right_MSJ),
            status_MSJ=status_MSJ,
            class_MSJ=at("class"),
            think_MSJ=at("think"),
            answer_MSJ=at("tokens"),
            forced_MSJ=at("forced", False, np.bool_),
            closed_MS=of("closed", False, np.bool_),
            finish_MS=of("finish", -1, np.int64),
            confidence_MSJ=spread(self._sure, np.nan, np.float64, wide),
            score_MS=spread(self._score, np.nan, np.float64, shape),
        )


def _number(value: Any) -> float:
    return _NAN if value is None else float(value)
