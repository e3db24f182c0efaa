"""Runs an allocator: its asks become plans, rollouts, verdicts and, at last, groups to train."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from samplers import seeds
from samplers.allocation.base import (
    Allocation,
    Annotate,
    Discard,
    Finish,
    Keep,
    PutBack,
    Receive,
    Reply,
    Sample,
    Stream,
)
from samplers.types import Group, Job, Plan, Prompt, Rollout
from trainer.metrics import Clock
from trainer.world import Flow

Plans = Callable[[Prompt, int, int], Sequence[Plan]]
"""(prompt, how many, key of its random numbers) -> plans, by the stage's budget policy."""
_PLANS = 0x706C616E  # keeps the random numbers of plans apart from those of rollouts
Make = Callable[[list[Job]], list[Rollout]]
Verify = Callable[[list[Group]], list[Group]]
Enrich = Callable[[Sequence[Group], str], Sequence[Group]]


class Collected(NamedTuple):
    """What came of a step."""

    groups: list[Group]
    """To train, by draw."""
    carried: list[Group]
    """For the next step, not judged: with unfinished rollouts (chunked plans), or kept for it."""
    discarded: list[Group]
    """Verified, and not to train."""
    made: dict[int, int]
    """Rollouts made of draws that were put back."""


class Making(Protocol):
    """Rollouts in lots: `trainer.world.Flow`, or `Rounds`."""

    def add(self, jobs: Sequence[Job]) -> None: ...
    def take(self) -> list[list[Rollout]]: ...


class Rounds:
    """One call a round: all that was asked for, in one ordered list, comes back together."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._lots: list[list[Job]] = []

    def add(self, jobs: Sequence[Job]) -> None:
        self._lots.append(list(jobs))

    def take(self) -> list[list[Rollout]]:
        lots, self._lots = self._lots, []
        rollouts = iter(self._make([job for lot in lots for job in lot]))
        return [[next(rollouts) for _ in lot] for lot in lots]


class Timed:
    """A flow whose waiting is the phase `generate`."""

    def __init__(self, flow: Flow, clock: Clock) -> None:
        self.add, self._flow, self._clock = flow.add, flow, clock

    def take(self) -> list[list[Rollout]]:
        with self._clock.phase("generate"):
            return self._flow.take()


def collect(
    allocation: Allocation,
    stream: Stream,
    plans: Plans,
    making: Making,
    verify: Verify,
    annotate: Enrich,
    *,
    seed: int,
    temperature: float,
    carried: Sequence[Group] = (),
    made: Mapping[int, int] | None = None,
    last: bool = False,
) -> Collected:
    """One step's groups. A draw sampled twice is one group: verdicts cover all its rollouts.

    Everything that was asked for is made, whether the allocator waits for it or not.

    Args:
        carried: what the step before left: a chunk of what is unfinished is made with the first
            samples, what was kept is received first.
        made: rollouts made, in earlier steps, of draws that were put back.
        last: nothing is carried on from here: rollouts are made to their ends.
    """
    desk = _Desk(plans, making, verify, seed, temperature, last, dict(made or {}))
    for group in carried:
        desk.go_on(group)
    asks, out = allocation.allocate(stream), Collected([], [], [], {})
    reply: Reply = None
    while True:
        try:
            ask = asks.send(reply)
        except StopIteration:
            break
        reply = None
        match ask:
            case Sample():
                desk.begin(ask)
            case Receive():
                reply = desk.receive()
            case Annotate(groups, what):
                reply = tuple(annotate(groups, what))
            case Finish(group):
                desk.let_go(group.serial)
                out.groups.append(_finished(ask))
            case Keep(group):
                desk.let_go(group.serial)
                (out.discarded if last else out.carried).append(group)
            case Discard(group):
                desk.let_go(group.serial)
                out.discarded.append(group)
            case PutBack(draw, prompt):
                out.made.update(desk.made_of(draw))
                stream.put_back(draw, prompt)
            case _:
                raise _unknown(ask)
    out.discarded.extend(desk.clear())
    out.carried.extend(desk.unfinished)
    out.groups.sort(key=_order)  # they came as they were done, the short ones first
    return out


def _unknown(ask: Any) -> ValueError:
    return ValueError(
        f"allocation: {type(ask).__name__} is nothing that can be asked for; yield one of those in "
        "samplers/allocation/base.py"
    )


def _finished(ask: Finish) -> Group:
    """The group as it trains.

    Raises:
        ValueError: its selection or weights are not one entry per rollout.
    """
    for name, values in (("kept_G", ask.kept_G), ("weights_G", ask.weights_G)):
        if values is not None and np.shape(values) != (len(ask.group),):
            raise ValueError(
                f"allocation: {name} of {np.shape(values)} for {len(ask.group)} rollouts; give one "
                "entry to each"
            )
    return replace(ask.group, kept_G=ask.kept_G, weights_G=ask.weights_G)


def _order(group: Group) -> tuple[int, int]:
    return group.serial, group.part


class _Open(NamedTuple):
    """Rollouts of a draw that are being made: what is finished of them, and what is to be done."""

    prompt: Prompt
    draw: int
    slots: Sequence[Rollout | Job]

    @property
    def jobs(self) -> list[Job]:
        return [slot for slot in self.slots if isinstance(slot, Job)]


@dataclass(slots=True)
class _Desk:
    """Rollouts on their way from asked for to received."""

    plans: Plans
    making: Making
    verify: Verify
    seed: int
    temperature: float
    last: bool
    made: dict[int, int]
    """Rollouts asked for, of each draw: the index of its next one."""
    open: dict[tuple[int, int], _Open] = field(default_factory=dict)
    """By (draw, index of the first job)."""
    whole: list[Group] = field(default_factory=list)
    """Complete, to be verified."""
    ready: deque[Group] = field(default_factory=deque)
    held: dict[int, Group] = field(default_factory=dict)
    """What was verified of each draw and not yet named by the allocator."""
    parts: dict[int, int] = field(default_factory=dict)
    """How often a draw was let go."""
    unfinished: list[Group] = field(default_factory=list)

    def begin(self, ask: Sample) -> None:
        """More rollouts of a draw: in chunks only the first ones, since a draw's first tokens
        would otherwise be too old before its last ones are made."""
        if ask.n < 1:
            raise ValueError(f"allocation: {ask.n} rollouts of draw {ask.draw}; ask for 1 or more")
        first = self.made.get(ask.draw, 0)
        self.made[ask.draw] = first + ask.n
        plans_key = seeds.key(self.seed, _PLANS, ask.draw, first)
        jobs = [
            Job(
                prompt=ask.prompt,
                plan=replace(plan, chunk=None) if first or self.last else plan,
                group=ask.draw,
                index=first + i,
                seed=seeds.key(self.seed, ask.draw, first + i),
                temperature=self.temperature,
            )
            for i, plan in enumerate(self.plans(ask.prompt, ask.n, plans_key))
        ]
        self._send(_Open(ask.prompt, ask.draw, jobs))

    def go_on(self, group: Group) -> None:
        """With what an earlier step left: its unfinished rollouts are jobs again."""
        slots = [
            Job(
                prompt=group.prompt,
                plan=replace(rollout.plan, chunk=None) if self.last else rollout.plan,
                group=group.serial,
                index=rollout.index,
                seed=rollout.seed,
                temperature=self.temperature,
                resume=rollout,
            )
            if rollout.unfinished
            else rollout
            for rollout in group.rollouts
        ]
        self.made[group.serial] = 1 + max(rollout.index for rollout in group.rollouts)
        one = _Open(group.prompt, group.serial, slots)
        if one.jobs:
            self._send(one)
        else:
            self.whole.append(_group(one, ()))

    def _send(self, one: _Open) -> None:
        self.open[one.draw, one.jobs[0].index] = one
        self.making.add(one.jobs)

    def receive(self) -> Group | None:
        while not self.ready and (self.whole or self.open):
            self._advance()
        return self.ready.popleft() if self.ready else None

    def _advance(self) -> None:
        """Wait for something to be done, unless something is, and verify what is complete."""
        for rollouts in self.making.take() if not self.whole else ():
            one = self.open.pop((rollouts[0].group, rollouts[0].index))
            group = _group(one, rollouts)
            going = any(rollout.unfinished for rollout in group.rollouts)
            assert not (going and self.last), "a rollout without a chunk is finished"
            (self.unfinished if going else self.whole).append(group)
        whole, self.whole = self.whole, []
        for group in self.verify(whole) if whole else ():
            draw = group.serial
            part = replace(group, part=self.parts.get(draw, 0))
            self.held[draw] = _join(self.held.get(draw), part)
            self.ready.append(self.held[draw])

    def let_go(self, draw: int) -> None:
        """What comes of this draw from now on is another group.

        Raises:
            ValueError: nothing of it was received, or not since it was named.
        """
        if self.held.pop(draw, None) is None:
            raise ValueError(
                f"allocation: draw {draw} was finished, kept or discarded twice, or never received"
            )
        self.parts[draw] = self.parts.get(draw, 0) + 1

    def made_of(self, draw: int) -> dict[int, int]:
        return {draw: self.made[draw]} if draw in self.made else {}

    def clear(self) -> list[Group]:
        """Whatever was asked for and never named."""
        while self.whole or self.open:
            self._advance()
        return list(self.held.values())


def _group(one: _Open, rollouts: Sequence[Rollout]) -> Group:
    """The draw as far as its jobs led."""
    done = iter(rollouts)
    slots = (next(done) if isinstance(slot, Job) else slot for slot in one.slots)
    return Group(one.prompt, one.draw, tuple(slots))


def _join(old: Group | None, new: Group) -> Group:
    if old is None:
        return new
    return replace(old, rollouts=old.rollouts + new.rollouts, verdicts=old.verdicts + new.verdicts)
