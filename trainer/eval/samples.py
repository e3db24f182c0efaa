"""Samples as they are saved: one JSON line each, appended as lots finish, paid for once.

A line holds what was generated and nothing that is derived from it:

    {"task", "id", "sample", "asked", "seed", "prompt_tokens", "think_tokens", "closed", "finish",
     "thought_logprob", "score",
     "cuts": [{"budget", "think", "tokens", "text", "forced", "finish", "confidence"}, ...],
     "thought": text, of a few, "watch": what a live stopping rule did and cost}

`cuts` ascend and end with "inf", the uncut run. A budget at or beyond the end of a thought that
closed itself is left out: its answer is the uncut one. `tokens` are those that were sampled of the
answer. A process that is killed leaves at most one torn last line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from samplers.types import Answer, Rollout, Tokens
from trainer.eval.budgets import UNCUT, answers_of

SAMPLES, PROBLEMS, VERDICTS, SETTINGS = (
    "samples.jsonl",
    "problems.jsonl",
    "verdicts.jsonl",
    "eval.json",
)
LEAST = -9999.0
"""Stands for the logarithm of 0, which JSON has no number for; vLLM's servers say the same."""
Row = dict[str, Any]
Key = tuple[str, str, int, str]
"""task, id, sample, asked"""


def key_of(row: Mapping[str, Any]) -> Key:
    return row["task"], row["id"], row["sample"], row["asked"]


def row_of(key: Key, rollout: Rollout, grid: Sequence[int], thought: str | None = None) -> Row:
    """The line of one sample.

    Args:
        grid: the finite budgets at which its thought was cut.
        thought: its text, where that is kept.
    """
    task, name, sample, asked = key
    answers = answers_of(rollout, len(grid))
    think = rollout.think_tokens
    cuts = [
        _cut(rollout, budget, answer)
        for budget, answer in zip(grid, answers[:-1], strict=True)
        if not (rollout.ended and budget >= think)
    ]
    cuts.append(_cut(rollout, UNCUT, answers[-1]))
    row = {
        "task": task,
        "id": name,
        "sample": sample,
        "asked": asked,
        "seed": rollout.seed,
        "prompt_tokens": len(rollout.prompt_ids_T),
        "think_tokens": think,
        "closed": rollout.ended,
        "finish": cuts[-1]["finish"],
        "thought_logprob": _mean_logprob(rollout.thought),
        "score": None,
        "cuts": cuts,
    }
    if rollout.watch is not None:
        row["watch"] = asdict(rollout.watch)
    return row if thought is None else row | {"thought": thought}


def _cut(rollout: Rollout, budget: int | str, answer: Answer | None) -> Row:
    last = answer.tokens if answer and len(answer.tokens) else rollout.thought
    logprob = _mean_logprob(answer.tokens) if answer else None
    own = budget == UNCUT or (
        rollout.ended and answer is not None and answer.after >= len(rollout.thought)
    )
    think = rollout.think_tokens
    if not own:  # a server that ignores its budget is seen by what it answers behind
        think = answer.after if answer is not None else min(think, int(budget))
    return {
        "budget": budget,
        "think": think,
        "tokens": int((~answer.tokens.forced_T).sum()) if answer else 0,
        "text": answer.text if answer else None,
        "forced": not own and answer is not None and answer.reached,
        "finish": last.finish,
        "confidence": None if logprob is None else _short(math.exp(logprob)),
    }


def _mean_logprob(tokens: Tokens) -> float | None:
    """Of what was sampled; None: nothing was."""
    logprobs_T = tokens.logprobs_T[~np.isnan(tokens.logprobs_T)].clip(min=LEAST)
    return _short(float(logprobs_T.mean(dtype=np.float64))) if len(logprobs_T) else None


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":"), default=str, allow_nan=False) + "\n"


def read(path: Path) -> Iterator[Row]:
    """The lines of a file one after the other; a torn last one is left out, a missing file empty.

    Raises:
        ValueError: a broken line, by file and number.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, 1):
            if not text.endswith("\n"):
                return  # a process was killed while it wrote this
            try:
                row = json.loads(text)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: broken JSON; remove the line to go on without")
            yield row


def mend(path: Path) -> None:
    """Cut a torn last line off."""
    if not path.is_file():
        return
    with path.open("rb+") as stream:
        end = stream.seek(0, 2)
        at = end
        while at > 0:  # back to the last line feed
            start = max(0, at - (1 << 16))
            stream.seek(start)
            found = stream.read(at - start).rfind(b"\n")
            if found >= 0:
                at = start + found + 1
                break
            at = start
        if at < end:
            stream.truncate(at)
