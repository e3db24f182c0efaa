"""Runs an allocator: its asks become plans, rollouts, verdicts and, at last, groups to train."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

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


class Collected(NamedTuple):
    """What came of a step."""

    groups: list[Group]
    """To train."""
    carried: list[Group]
    """With unfinished rollouts (chunked plans), not verified: the next step goes on with them."""


class _Open(NamedTuple):
    """A group that is being made: what is finished of it, and what is to be done."""

    prompt: Prompt
    draw: int
    slots: Sequence[Rollout | Job]


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
    carried: Sequence[Group] = (),
    last: bool = False,
) -> Collected:
    """One step's groups. A draw sampled twice is one group: verdicts cover all its rollouts.

    Args:
        carried: what the step before left unfinished; a chunk of it is made with the first samples.
        last: nothing is carried on from here: rollouts are made to their ends.
    """
    asks = allocation.allocate(stream)
    going: list[_Open] = []
    paused = [_resumed(group, temperature, last) for group in carried]
    ready: deque[Group] = deque()
    held: dict[int, Group] = {}
    out = Collected([], [])
    reply: Group | None = None
    while True:
        try:
            ask = asks.send(reply)
        except StopIteration:
            break
        reply = None
        match ask:
            case Sample(draw):
                going.append(_begun(ask, plans, held.get(draw), seed, temperature, last))
            case Receive():
                if not ready and (paused or going):
                    made = _made([*paused, *going], make)
                    paused, going = [], []
                    out.carried.extend(g for g in made if _unfinished(g))
                    assert not (last and out.carried), "a rollout without a chunk is finished"
                    whole = [g for g in made if not _unfinished(g)]
                    for group in verify(whole) if whole else ():
                        held[group.serial] = _join(held.get(group.serial), group)
                        ready.append(held[group.serial])
                reply = ready.popleft() if ready else None
            case Annotate(group, what):
                reply = annotate(group, what)
            case Finish(group, kept_G):
                out.groups.append(replace(group, kept_G=kept_G))
            case PutBack(draw, prompt):
                stream.put_back(draw, prompt)
    return out


def _begun(
    ask: Sample, plans: Plans, held: Group | None, seed: int, temperature: float, last: bool
) -> _Open:
    """More rollouts of a draw: in chunks only the first ones, since a draw's first tokens would
    otherwise be too old before its last ones are made."""
    first = len(held) if held else 0
    plans_key = seeds.key(seed, _PLANS, ask.draw, first)
    jobs = [
        Job(
            prompt=ask.prompt,
            plan=replace(plan, chunk=None) if held or last else plan,
            group=ask.draw,
            index=first + i,
            seed=seeds.key(seed, ask.draw, first + i),
            temperature=temperature,
        )
        for i, plan in enumerate(plans(ask.prompt, ask.n, plans_key))
    ]
    return _Open(ask.prompt, ask.draw, jobs)


def _resumed(group: Group, temperature: float, last: bool) -> _Open:
    """The group's unfinished rollouts are jobs again."""
    slots = [
        Job(
            prompt=group.prompt,
            plan=replace(rollout.plan, chunk=None) if last else rollout.plan,
            group=group.serial,
            index=rollout.index,
            seed=rollout.seed,
            temperature=temperature,
            resume=rollout,
        )
        if rollout.unfinished
        else rollout
        for rollout in group.rollouts
    ]
    return _Open(group.prompt, group.serial, slots)


def _made(going: Sequence[_Open], make: Make) -> list[Group]:
    """The groups as far as their jobs lead, all of them done in one call."""
    jobs = [slot for one in going for slot in one.slots if isinstance(slot, Job)]
    rollouts = iter(make(jobs))
    return [
        Group(
            one.prompt,
            one.draw,
            tuple(next(rollouts) if isinstance(slot, Job) else slot for slot in one.slots),
        )
        for one in going
    ]


def _unfinished(group: Group) -> bool:
    return any(rollout.unfinished for rollout in group.rollouts)


def _join(old: Group | None, new: Group) -> Group:
    if old is None:
        return new
    return replace(old, rollouts=old.rollouts + new.rollouts, verdicts=old.verdicts + new.verdicts)
