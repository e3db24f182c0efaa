"""Rollouts and groups made by hand: what tests of rows, advantages and batches share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.verdict import Verdict
from samplers.types import Answer, Finish, Group, Plan, Prompt, Rollout, Tokens
from trainer.types import TrainSequence


def run(ids: Sequence[int], forced: int = 0, finish: Finish = "stop", version: int = 0) -> Tokens:
    """Tokens of which the first `forced` are forced; the logprob of token i is -i / 100."""
    ids_T = np.array(ids, np.int32)
    logprobs_T = (-ids_T / 100).astype(np.float32)
    logprobs_T[:forced] = np.nan
    return Tokens(ids_T, logprobs_T, finish, ((0, version),))


def rollout(
    index: int = 0,
    thought: Sequence[int] = (11, 12, 13),
    answers: Sequence[Sequence[Answer]] | None = None,
    finish: Finish = "stop",
    prompt_ids: Sequence[int] = (1, 2),
    group: int = 0,
) -> Rollout:
    """Prompt 1 2, thought 11 12 13, one answer: a forced token 21 and a sampled one, 22."""
    if answers is None:
        answers = [[Answer(len(thought), run((21, 22), forced=1, finish=finish), "x")]]
    return Rollout(
        prompt=7,
        group=group,
        index=index,
        seed=index,
        plan=Plan(max_tokens=64),
        prompt_ids_T=np.array(prompt_ids, np.int32),
        thought=run(thought),
        closed=True,
        answers=tuple(tuple(cut) for cut in answers),
    )


def group(rewards: Sequence[float], serial: int = 0, **fields: Any) -> Group:
    """One rollout per reward; NaN is an unknown verdict. Thoughts differ in length."""
    n = len(rewards)
    rollouts = fields.pop("rollouts", None) or tuple(
        rollout(g, range(11, 12 + g), group=serial) for g in range(n)
    )
    verdicts = tuple(
        ((Verdict(r == 1, 0.0 if np.isnan(r) else r, "error" if np.isnan(r) else "ok"),),)
        for r in rewards
    )
    prompt = Prompt(7, "seven", (), "text", "gold", "exact")
    named = {"correct": np.array(rewards, dtype=np.float64).reshape(n, 1, 1)}
    return Group(prompt, serial, rollouts, verdicts, **({"rewards": named} | fields))


def sequence(
    row: int,
    length: int,
    trained: int | None = None,
    advantage: float = 1.0,
    parents: Sequence[int] | None = None,
    group: int | None = None,
    scored: bool = False,
) -> TrainSequence:
    """A row whose ids say where they are: row * 1000 + t. The last `trained` tokens train."""
    trained = length - 1 if trained is None else trained
    t = np.arange(length)
    mask_T = t >= length - trained
    values_T = (-(row + t / 100)).astype(np.float32)
    return TrainSequence(
        ids_T=(row * 1000 + t).astype(np.int32),
        parent_T=(t - 1 if parents is None else np.array(parents)).astype(np.int32),
        mask_T=mask_T,
        advantages_T=np.where(mask_T, advantage, 0).astype(np.float32),
        behaviour_T=np.where(mask_T, values_T, np.nan).astype(np.float32),
        versions_T=np.zeros(length, np.int32),
        prompt=row,
        group=row if group is None else group,
        rollout=0,
        old_T=values_T + np.float32(0.1) * (row % 3) if scored else None,
        ref_T=values_T - 1 if scored else None,
    )
