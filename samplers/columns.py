"""Rollouts as a few arrays: what travels between processes.

An object with its arrays costs 55 us to pickle, its share of the columns 3 us. Prompt, plan and
seed do not travel: the driver has the jobs. The arrays of unpacked rollouts are views.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any, get_args

import numpy as np

from samplers.types import Answer, Finish, Job, Rollout, Tokens, Watch

_FINISHES: tuple[Finish, ...] = get_args(Finish)


def pack(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Columns of `rollouts`, in their order.

    A run is a stretch of tokens. Per rollout the runs are its prompt, its thought and its answers,
    cut by cut; prompts have no logprobs, finish or spans.
    """
    answers = [a for r in rollouts for cut in r.answers for a in cut]
    runs = [t for r in rollouts for t in (r.thought, *(a.tokens for c in r.answers for a in c))]
    prompts = [r.prompt_ids_T for r in rollouts]
    rows = [
        (r.group, r.index, r.closed, r.unfinished, r.skipped, len(r.answers), len(r.answers[0]))
        for r in rollouts
    ]
    return {
        "rows": np.array(rows, np.int64).reshape(-1, 7),
        "prompt_ids": _join(prompts, np.int32),
        "prompt_lengths": np.array([len(p) for p in prompts], np.int32),
        "ids": _join([t.ids_T for t in runs], np.int32),
        "logprobs": _join([t.logprobs_T for t in runs], np.float32),
        # [runs, 3]: tokens, finish reason, spans
        "runs": np.array(
            [(len(t), _FINISHES.index(t.finish), len(t.spans)) for t in runs], np.int32
        ).reshape(-1, 3),
        "spans": np.array([s for t in runs for s in t.spans], np.int32).reshape(-1, 2),
        "after": np.array([a.after for a in answers], np.int32),
        "texts": [a.text for a in answers],
        "probabilities": np.array([a.probability for a in answers], np.float64),  # None: NaN
        "watches": [None if r.watch is None else astuple(r.watch) for r in rollouts],
    }


def unpack(columns: dict[str, Any], jobs: Sequence[Job]) -> list[Rollout]:
    """The rollouts of `jobs`, which are those that were packed, in the same order."""
    rows = columns["rows"]
    assert [(j.group, j.index) for j in jobs] == [(int(r[0]), int(r[1])) for r in rows]
    runs, prompts = _runs(columns), _prompts(columns)
    afters, texts = iter(columns["after"].tolist()), iter(columns["texts"])
    probabilities = (None if p != p else p for p in columns["probabilities"].tolist())
    out = []
    for job, (_, _, closed, unfinished, skipped, cuts, per_cut), watched in zip(
        jobs, rows.tolist(), columns["watches"], strict=True
    ):
        thought = next(runs)
        answers = tuple(
            tuple(
                Answer(next(afters), next(runs), next(texts), next(probabilities))
                for _ in range(per_cut)
            )
            for _ in range(cuts)
        )
        head = (job.prompt.index, job.group, job.index, job.seed, job.plan)
        body = (next(prompts), thought, bool(closed), answers)
        watch = None if watched is None else Watch(*watched)
        out.append(Rollout(*head, *body, bool(unfinished), bool(skipped), watch))
    return out


def _join(arrays: Sequence[Any], dtype: Any) -> Any:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype)


def _prompts(columns: dict[str, Any]) -> Iterator[Any]:
    ends = np.cumsum(columns["prompt_lengths"])
    for length, end in zip(columns["prompt_lengths"].tolist(), ends.tolist(), strict=True):
        yield columns["prompt_ids"][end - length : end]


def _runs(columns: dict[str, Any]) -> Iterator[Tokens]:
    spans = [(first, version) for first, version in columns["spans"].tolist()]
    token = span = 0
    for length, finish, count in columns["runs"].tolist():
        stop = token + length
        yield Tokens(
            columns["ids"][token:stop],
            columns["logprobs"][token:stop],
            _FINISHES[finish],
            tuple(spans[span : span + count]),
        )
        token, span = stop, span + count
