"""Which engine makes which rollouts where load decides: work moves to whoever will be done first.

A few groups travel a call, whole as far as they fit: rollouts of a prompt share its prefill. An
allocator may give a prompt more than that; its rollouts are jobs of their own, and travel apart.
An engine holds a few times what it has slots for: a call keeps its place until its longest rollout
ends, and slots must not run dry meanwhile. What is left waits here for the next one with room. How
early each engine was done is remembered, so that also a step that fits into the slots of all is
shared out by it.
"""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, pairwise
from queue import SimpleQueue
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from samplers import columns
from samplers.columns import Columns
from samplers.types import Job, Rollout

HELD = 3
"""Most rollouts that an engine holds, in slots. Simulated with long-tailed lengths: with 1.5 half
the slots are idle towards the end of every call, with 3 a twentieth."""
PARTS = 4
"""Calls that fill an engine's slots. With 16 handing over between callers cost a tenth."""
CALLS = HELD * PARTS
"""Most calls of one step that an engine holds at a time."""
SHARE = 4
"""Calls that an engine gets for its share of a step, where it holds all of it at once."""
MANY = 20_000
"""Rollouts that are worth it."""
Counts = NDArray[np.int64]
Done = SimpleQueue[int]
"""Numbers of calls, as their rollouts come."""


class Dispatch:
    """Shares lists of jobs out to engines. Threads may call it at once.

    Args:
        send: (engine, jobs, queue) -> the number of the call, which is put into the queue when
            its rollouts are there.
        take: waits for the next of a queue: its number and columns, or None where its engine was
            lost and there is another in its place.
        came: (engine, jobs, their columns) -> their rollouts; None: they are to be sent again.
        part: jobs -> those that may be made, and rollouts that stand for the others.
    """

    def __init__(
        self,
        engines: int,
        slots: int,
        send: Callable[[int, list[Job], Done], int],
        take: Callable[[Done], tuple[int, Columns | None]],
        came: Callable[[int, list[Job], Columns | None], list[Rollout] | None] | None = None,
        part: Callable[[Sequence[Job]], tuple[list[Job], list[Rollout]]] = lambda j: (list(j), []),
    ) -> None:
        self._slots, self._send, self._take = slots, send, take
        self.came, self.part = came or _came, part
        self.call = math.ceil(slots / PARTS)
        """Rollouts of a call, where engines get many."""
        self.speeds = np.ones(engines)
        """What each engine gets done in a given time, relative to the others."""
        self.there = np.ones(engines, bool)
        """Engines that may be given something."""

    def run(self, jobs: Sequence[Job]) -> list[Rollout]:
        """Rollouts in the order of their jobs."""
        wanted, none = self.part(jobs)
        waiting, at = deque(self.chunks(wanted)), dict[int, tuple[int, list[Job]]]()
        loads, calls = (np.zeros(len(self.speeds), np.int64) for _ in range(2))
        done = Done()
        started = time.monotonic()
        seconds = [0.0] * len(self.speeds)
        made = {(r.group, r.index): r for r in none}
        with held() as keep:
            while waiting or at:
                while waiting and (engine := self.seat(len(waiting[0]), loads, calls)) is not None:
                    chunk = waiting.popleft()
                    at[self._send(engine, chunk, done)] = engine, chunk
                    loads[engine] += len(chunk)
                    calls[engine] += 1
                number, packed = self._take(done)
                engine, chunk = at.pop(number)
                loads[engine] -= len(chunk)
                calls[engine] -= 1
                rollouts = self.came(engine, chunk, packed)
                if rollouts is None:
                    waiting.appendleft(chunk)
                    continue
                made |= {(r.group, r.index): r for r in rollouts}
                keep(len(rollouts))
                seconds[engine] = max(time.monotonic() - started, 1e-3)
        self.learn(seconds)
        return [made[job.group, job.index] for job in jobs]

    def flow(self, streams: Streams) -> Lots:
        """Rollouts in lots, shared out as they are asked for."""
        return Lots(self, streams)

    def chunks(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Groups in order, so many a call that an engine gets a few calls a step; what of a group
        is more than a call is cut."""
        groups: dict[int, list[Job]] = {}
        for job in jobs:
            groups.setdefault(job.group, []).append(job)
        share = len(jobs) / len(self.speeds)
        size = math.ceil(share / SHARE) if share <= HELD * self._slots else self.call
        out: list[list[Job]] = [[]]
        for piece in (piece for group in groups.values() for piece in cut(group, size)):
            if out[-1] and len(out[-1]) + len(piece) > size:
                out.append([])
            out[-1] += piece
        return out if jobs else []

    def seat(self, size: int, loads: Counts, calls: Counts) -> int | None:
        """The engine that would be done with `size` more rollouts first, if it has room."""
        full = (calls > 0) & ((loads + size > HELD * self._slots) | (calls >= CALLS))
        full |= ~self.there
        ends = np.where(full, np.inf, (loads + size) / self.speeds)
        engine = int(ends.argmin())
        return None if full[engine] else engine

    def learn(self, seconds: list[float]) -> None:
        """Who was done before the others gets more next time; who had nothing to do drifts back.

        Not tokens per second: an engine that is far from full makes them the slower, the fewer
        it was given, and would be given ever fewer.
        """
        worked = [s for s in seconds if s]
        if not worked:
            return
        mean = sum(worked) / len(worked)
        learned = [
            speed * math.sqrt(mean / s) if s else speed**0.8
            for speed, s in zip(self.speeds.tolist(), seconds, strict=True)
        ]
        middle = math.exp(sum(map(math.log, learned)) / len(learned))
        self.speeds = np.clip(np.array(learned) / middle, 1 / 16, 16.0)


@contextmanager
def held() -> Iterator[Callable[[int], None]]:
    """To be told how many rollouts have come that stay until the end: many are no longer looked
    through for garbage with every few thousand objects that follow."""
    come = frozen = 0

    def keep(rollouts: int) -> None:
        nonlocal come, frozen
        come += rollouts
        if come - frozen >= MANY:
            gc.freeze()
            frozen = come

    try:
        yield keep
    finally:
        if frozen:  # what was garbage among it has waited
            gc.unfreeze()
            gc.collect()


def cut(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Pieces of at most `size`, in order and as even as can be."""
    pieces = math.ceil(len(jobs) / size)
    ends = [len(jobs) * i // pieces for i in range(pieces + 1)]
    return [list(jobs[start:end]) for start, end in pairwise(ends)]


class Streams(Protocol):
    """The way of jobs to engines and back (`launch.streams` through Ray), in numbered lots."""

    def send(self, engine: int, number: int, jobs: list[Job]) -> None: ...
    def take(self) -> list[tuple[int, Columns | None]]:
        """Number and rollouts of lots that are done: waits for one. None: lost with their engine,
        in whose place there is another."""
        ...

    def close(self) -> None: ...


class Lots:
    """Lots of jobs on several engines (`trainer.world.Flow`).

    A large lot travels in parts, each a lot to its engine, and comes back when the last of them is
    done. An engine counts what it was given until it is back. So a lot that is asked for meanwhile
    goes to who has most room at once, or waits here for whoever has room first.
    """

    def __init__(self, dispatch: Dispatch, streams: Streams) -> None:
        self._dispatch, self._streams = dispatch, streams
        self._waiting: deque[tuple[int, list[Job]]] = deque()
        self._at: dict[int, tuple[int, list[Job]]] = {}  # engine and jobs, by number
        self._parts: dict[int, dict[int, list[Rollout]]] = {}  # of its lot, by number
        self._none: list[list[Rollout]] = []  # lots of which nothing is to be made
        self._numbers, self._left = count(), 0
        self._loads = np.zeros(len(dispatch.speeds), np.int64)
        self._seconds = [0.0] * len(dispatch.speeds)
        self._started = time.monotonic()

    def add(self, jobs: Sequence[Job]) -> None:
        wanted, none = self._dispatch.part(jobs)
        if none and not wanted:
            self._none.append(none)
            self._left += 1
        elif jobs:
            parts = [(next(self._numbers), part) for part in cut(jobs, self._dispatch.call)]
            lot: dict[int, list[Rollout]] = {number: [] for number, _ in parts}
            self._parts |= dict.fromkeys(lot, lot)
            self._waiting += parts
            self._left += 1
            self._send()

    def take(self) -> list[list[Rollout]]:
        out, self._none = self._none, []
        while self._at and not out:
            for number, packed in self._streams.take():
                engine, jobs = self._at.pop(number)
                self._loads[engine] -= len(jobs)
                rollouts = self._dispatch.came(engine, jobs, packed)
                if rollouts is None:
                    self._waiting.appendleft((number, jobs))
                    continue
                lot = self._parts.pop(number)
                lot[number] = rollouts
                if all(lot.values()):
                    out.append([rollout for part in lot.values() for rollout in part])
                self._seconds[engine] = max(time.monotonic() - self._started, 1e-3)
            self._send()
        self._left -= len(out)
        return out

    def _send(self) -> None:
        while self._waiting:
            number, jobs = self._waiting[0]
            engine = self._dispatch.seat(len(jobs), self._loads, np.minimum(self._loads, 1))
            if engine is None:
                return
            self._waiting.popleft()
            self._at[number] = engine, jobs
            self._loads[engine] += len(jobs)
            self._streams.send(engine, number, jobs)

    def close(self) -> None:
        if not len(self):  # else it says nothing of who is done early
            self._dispatch.learn(self._seconds)
        self._waiting.clear()
        self._at.clear()
        self._parts.clear()
        self._left = 0
        self._seconds = [0.0] * len(self._seconds)
        self._streams.close()

    def __len__(self) -> int:
        return self._left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _came(engine: int, jobs: Sequence[Job], packed: Columns | None) -> list[Rollout] | None:
    return None if packed is None else columns.unpack(packed, jobs)
