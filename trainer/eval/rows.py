"""Rows of training's evaluations: one for every problem, sample and budget, and the table of them.

Shape suffixes: M problems, S samples of a problem, J columns: budgets, and last the uncut run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.verdict import UNKNOWN, Verdict
from samplers.types import Answer, Job, Prompt, Rollout
from trainer.eval.table import FINISHES, STATUSES, UNCUT, Table

Row = dict[str, Any]
Decode = Callable[[Sequence[Sequence[int]]], list[str]]


def rows_of(
    job: Job,
    rollout: Rollout,
    answers: Sequence[Answer | None],
    verdicts: Sequence[Verdict],
    grid: Sequence[int],
) -> list[Row]:
    """One row for each finite budget and, last, for the uncut run."""
    rows = []
    for budget, answer, verdict in zip((*grid, UNCUT), answers, verdicts, strict=True):
        ran_free = budget == UNCUT or (rollout.ended and _own(rollout, answer))
        row = {"budget": budget, **told(job, rollout, answer, verdict)}
        if isinstance(budget, int):
            row["think_tokens"] = min(rollout.think_tokens, budget)
        row["forced"] = not ran_free and answer is not None and answer.reached
        rows.append(row)
    return rows


def told(job: Job, rollout: Rollout, answer: Answer | None, verdict: Verdict) -> Row:
    """What is said of a sample and one answer of it."""
    difficulty = job.prompt.meta.get("difficulty")
    last = answer.tokens if answer and len(answer.tokens) else rollout.thought
    return {
        "id": job.prompt.id,
        "sample": job.index,
        "difficulty": None if difficulty is None else int(difficulty),
        "correct": verdict.correct,
        "status": verdict.status,
        "answer": verdict.answer,
        "think_tokens": rollout.think_tokens,
        "answer_tokens": int((~answer.tokens.forced_T).sum()) if answer else 0,
        "closed": rollout.ended,
        "finish": last.finish,
    }


def _own(rollout: Rollout, answer: Answer | None) -> bool:
    """The answer follows the whole thought."""
    return answer is not None and answer.after >= len(rollout.thought)


def shown(
    decode: Decode,
    jobs: Sequence[Job],
    rollouts: Sequence[Rollout],
    rows: Sequence[Row],
    count: int,
) -> list[Row]:
    """The first sample of `count` problems, spread evenly over the difficulties, with texts."""
    first = [i for i, job in enumerate(jobs) if job.index == 0]
    first.sort(key=lambda i: int(jobs[i].prompt.meta.get("difficulty") or 0))  # stable
    count = min(count, len(first))
    picked = [first[k * len(first) // count] for k in range(count)]
    thoughts = decode([rollouts[i].thought.ids_T.tolist() for i in picked])
    width = len(rows) // len(jobs)
    return [
        {
            **rows[(i + 1) * width - 1],
            "prompt": jobs[i].prompt.text or _last_message(jobs[i].prompt),
            "gold": jobs[i].prompt.answer,
            "thought": thought,
            "text": rollouts[i].final.text if rollouts[i].ended or width == 1 else None,
            "answers": {
                str(row["budget"]): [row["answer"], row["correct"]]
                for row in rows[i * width : (i + 1) * width]
            },
        }
        for i, thought in zip(picked, thoughts, strict=True)
    ]


def _last_message(prompt: Prompt) -> str:
    return prompt.messages[-1]["content"] if prompt.messages else ""


def table_of(rows: Sequence[Row], grid: Sequence[int] = (), cap: int | None = None) -> Table:
    """The table of rows that are problem-major and complete."""
    columns, samples = len(grid) + 1, 1 + max(row["sample"] for row in rows)
    shape = (len(rows) // (samples * columns), samples, columns)
    assert np.prod(shape) == len(rows), "rows are problem-major and complete"

    def column(values: Sequence[Any]) -> NDArray[Any]:
        return np.array(values).reshape(shape)

    status = column([row["status"] for row in rows])
    correct = column([float(row["correct"]) for row in rows])
    seen: dict[tuple[str, str], int] = {}  # one numbering for all problems: equal within one
    keys = [(row["id"], row["answer"]) for row in rows]
    numbers = [-1 if key[1] is None else seen.setdefault(key, len(seen)) for key in keys]
    nothing_MSJ = np.full(shape, np.nan)
    first = rows[:: samples * columns]
    return Table(
        task="",
        mode="truncate",
        asked="",
        target=None,
        budgets=tuple(grid),
        cap=cap or 1,
        ids_M=tuple(row["id"] for row in first),
        difficulty_M=np.array([-1 if r["difficulty"] is None else r["difficulty"] for r in first]),
        present_MS=np.ones(shape[:2], dtype=bool),
        correct_MSJ=np.where(np.isin(status, list(UNKNOWN)), np.nan, correct),
        status_MSJ=column([STATUSES.index(row["status"]) for row in rows]),
        class_MSJ=column(numbers),
        think_MSJ=column([row["think_tokens"] for row in rows]),
        answer_MSJ=column([row["answer_tokens"] for row in rows]),
        forced_MSJ=column([row.get("forced", False) for row in rows]),
        closed_MS=column([row["closed"] for row in rows])[..., -1],
        finish_MS=column([FINISHES.index(row["finish"]) for row in rows])[..., -1],
        confidence_MSJ=nothing_MSJ,
        score_MS=nothing_MSJ[..., -1],
    )
