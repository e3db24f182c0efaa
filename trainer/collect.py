"""Runs an allocator: its asks become plans, rollouts, verdicts and, at last, groups to train."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from samplers import seeds
from samplers.allocation.base import (
    Allocation,
    Annotate,
    Finish,
    PutBack,
    Receive,
    Sample,
    Stream,
)
from samplers.types import Group, Job, Plan, Prompt, Rollout

Plans = Callable[[Prompt, int, int], Sequence[Plan]]
"""(prompt, how many, key of its random numbers) -> plans, by the stage's budget policy."""
_PLANS = 0x706C616E  # keeps the random numbers of plans apart from those of rollouts
Make = Callable[[list[Job]], list[Rollout]]
Verify = Callable[[list[Group]], list[Group]]
Enrich = Callable[[Group, str], Group]


def collect(
    allocation: Allocation,
    stream: Stream,
    plans: Plans,
    make: Make,
    verify: Verify,
    annotate: Enrich,
    *,
    seed: int,
    temperature: float,
) -> list[Group]:
    """One step's groups. A draw sampled twice is one group: verdicts cover all its rollouts."""
    asks = allocation.allocate(stream)
    wanted: list[Sample] = []
    ready: deque[Group] = deque()
    held: dict[int, Group] = {}
    done: list[Group] = []
    reply: Group | None = None
    while True:
        try:
            ask = asks.send(reply)
        except StopIteration:
            break
        reply = None
        match ask:
            case Sample():
                wanted.append(ask)
            case Receive():
                if not ready and wanted:
                    jobs = [_jobs(s, plans, held.get(s.draw), seed, temperature) for s in wanted]
                    fresh = _groups(wanted, jobs, make([j for js in jobs for j in js]))
                    for group in verify(fresh):
                        held[group.serial] = _join(held.get(group.serial), group)
                        ready.append(held[group.serial])
                    wanted = []
                reply = ready.popleft() if ready else None
            case Annotate(group, what):
                reply = annotate(group, what)
            case Finish(group, kept_G):
                done.append(replace(group, kept_G=kept_G))
            case PutBack(draw, prompt):
                stream.put_back(draw, prompt)
    return done


def _jobs(
    ask: Sample, plans: Plans, held: Group | None, seed: int, temperature: float
) -> list[Job]:
    first = len(held) if held else 0
    plans_key = seeds.key(seed, _PLANS, ask.draw, first)
    return [
        Job(
            prompt=ask.prompt,
            plan=plan,
            group=ask.draw,
            index=first + i,
            seed=seeds.key(seed, ask.draw, first + i),
            temperature=temperature,
        )
        for i, plan in enumerate(plans(ask.prompt, ask.n, plans_key))
    ]


def _groups(
    asks: Sequence[Sample], jobs: Sequence[Sequence[Any]], rollouts: list[Rollout]
) -> list[Group]:
    groups, at = [], 0
    for ask, mine in zip(asks, jobs, strict=True):
        groups.append(Group(ask.prompt, ask.draw, tuple(rollouts[at : at + len(mine)])))
        at += len(mine)
    return groups


def _join(old: Group | None, new: Group) -> Group:
    if old is None:
        return new
    return replace(old, rollouts=old.rollouts + new.rollouts, verdicts=old.verdicts + new.verdicts)
