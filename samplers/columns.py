"""Jobs and rollouts as a few arrays: what travels between processes.

An object with its arrays costs 55 us to pickle, its share of the columns 3 us. Prompt, plan and
seed do not travel back: the driver has the jobs. The arrays of unpacked rollouts are views.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, replace
from itertools import islice
from typing import Any, get_args

import numpy as np

from samplers.types import Answer, Finish, Job, Rollout, Tokens, Watch

Columns = dict[str, Any]
_FINISHES: tuple[Finish, ...] = get_args(Finish)


def pack_jobs(jobs: Sequence[Job]) -> Columns:
    """Columns of `jobs`: a prompt or plan that several have travels once."""
    prompts = {id(job.prompt): job.prompt for job in jobs}
    plans = {id(job.plan): job.plan for job in jobs}
    prompt, plan = ({key: i for i, key in enumerate(some)} for some in (prompts, plans))
    resumed = [job.resume for job in jobs if job.resume is not None]
    rows = [
        (prompt[id(j.prompt)], plan[id(j.plan)], j.group, j.index, j.resume is not None)
        for j in jobs
    ]
    return {
        "rows": np.array(rows, np.int64).reshape(-1, 5),
        "seeds": np.array([job.seed for job in jobs], np.uint64),
        "sampling": np.array([(j.temperature, j.top_p, j.top_k) for j in jobs]).reshape(-1, 3),
        "prompts": list(prompts.values()),
        "plans": list(plans.values()),
        "resumed": pack(resumed) if resumed else None,
    }


def unpack_jobs(columns: Columns) -> list[Job]:
    """The jobs that were packed, in the same order."""
    prompts, plans, resumed = columns["prompts"], columns["plans"], columns["resumed"]
    each = (columns[name].tolist() for name in ("rows", "seeds", "sampling"))
    jobs, resumes = [], []
    for (prompt, plan, group, index, resume), seed, how in zip(*each, strict=True):
        (temperature, top_p, top_k), head = how, (prompts[prompt], plans[plan], group, index, seed)
        jobs.append(Job(*head, temperature, None, top_p, int(top_k)))
        resumes.append(resume)
    if resumed is None:
        return jobs
    begun = iter(unpack(resumed, [job for job, has in zip(jobs, resumes, strict=True) if has]))
    return [
        replace(job, resume=next(begun)) if has else job
        for job, has in zip(jobs, resumes, strict=True)
    ]


def pack(rollouts: Sequence[Rollout]) -> Columns:
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


def unpack(columns: Columns, jobs: Sequence[Job]) -> list[Rollout]:
    """The rollouts of `jobs`, which are those that were packed, in the same order."""
    with _uncollected():
        return list(_unpacked(columns, jobs))


def _unpacked(columns: Columns, jobs: Sequence[Job]) -> Iterator[Rollout]:
    rows = columns["rows"]
    assert [[j.group, j.index] for j in jobs] == rows[:, :2].tolist()
    runs, prompts = _runs(columns), _prompts(columns)
    probabilities = (None if p != p else p for p in columns["probabilities"].tolist())
    made = map(Answer, columns["after"].tolist(), runs, columns["texts"], probabilities)
    for job, (_, _, closed, unfinished, skipped, cuts, per_cut), watched in zip(
        jobs, rows.tolist(), columns["watches"], strict=True
    ):
        thought = next(runs)
        answers = tuple([tuple(islice(made, per_cut)) for _ in range(cuts)])
        head = (job.prompt.index, job.group, job.index, job.seed, job.plan)
        body = (next(prompts), thought, bool(closed), answers)
        watch = None if watched is None else Watch(*watched)
        yield Rollout(*head, *body, bool(unfinished), bool(skipped), watch)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Many objects, and none of them garbage: looking through them for some, again and again,
    took twice as long as making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _join(arrays: Sequence[Any], dtype: Any) -> Any:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype)


def _prompts(columns: dict[str, Any]) -> Iterator[Any]:
    ends = np.cumsum(columns["prompt_lengths"])
    for length, end in zip(columns["prompt_lengths"].tolist(), ends.tolist(), strict=True):
        yield columns["prompt_ids"][end - length : end]


def _runs(columns: dict[str, Any]) -> Iterator[Tokens]:
    spans = [(first, version) for first, version in columns["spans"].tolist()]
    known: dict[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]] = {}  # most are alike
    ids, logprobs = columns["ids"], columns["logprobs"]
    token = span = 0
    for length, finish, count in columns["runs"].tolist():
        stop = token + length
        alike = tuple(spans[span : span + count])
        mine = known.setdefault(alike, alike)
        yield Tokens(ids[token:stop], logprobs[token:stop], _FINISHES[finish], mine)
        token, span = stop, span + count
