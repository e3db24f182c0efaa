"""Which engine makes which rollouts where load decides: work moves to whoever will be done first.

Whole groups travel, a few of them a call, and an engine holds not much more than it has slots for.
What is left waits here for the next one with room. How fast each engine was is remembered, so that
also a step that fits into the slots of all is shared out by it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from samplers import columns
from samplers.types import Job, Rollout

CALLS = 12
"""Most calls of one step that an engine holds at a time."""
SHARE = 4
"""Calls that an engine gets for its share of a step, where that fits its slots."""
Columns = dict[str, Any]


class Dispatch:
    """Shares lists of jobs out to engines. Threads may call it at once.

    Args:
        send: (engine, jobs) -> a hashable reference to the rollouts that come of them.
        take: waits for one of these references: the reference and its columns.
    """

    def __init__(
        self,
        engines: int,
        slots: int,
        send: Callable[[int, list[Job]], Any],
        take: Callable[[list[Any]], tuple[Any, Columns]],
    ) -> None:
        self._slots, self._send, self._take = slots, send, take
        self.speeds = [1.0] * engines
        """Tokens per second of each engine, relative to their mean."""

    def run(self, jobs: Sequence[Job]) -> list[Rollout]:
        """Rollouts in the order of their jobs."""
        waiting, at = deque(self.chunks(jobs)), dict[Any, tuple[int, list[Job]]]()
        loads, calls, tokens = ([0] * len(self.speeds) for _ in range(3))
        started = time.monotonic()
        ended = [started] * len(self.speeds)
        made: dict[tuple[int, int], Rollout] = {}
        while waiting or at:
            while waiting and (engine := self._seat(len(waiting[0]), loads, calls)) is not None:
                chunk = waiting.popleft()
                at[self._send(engine, chunk)] = engine, chunk
                loads[engine] += len(chunk)
                calls[engine] += 1
            ref, packed = self._take(list(at))
            engine, chunk = at.pop(ref)
            made |= {(r.group, r.index): r for r in columns.unpack(packed, chunk)}
            loads[engine] -= len(chunk)
            calls[engine] -= 1
            tokens[engine] += len(packed["ids"])
            ended[engine] = time.monotonic()
        self._learn([n / max(end - started, 1e-3) for n, end in zip(tokens, ended, strict=True)])
        return [made[job.group, job.index] for job in jobs]

    def chunks(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Whole groups in order, so many a call that an engine gets a few calls a step."""
        groups: dict[int, list[Job]] = {}
        for job in jobs:
            groups.setdefault(job.group, []).append(job)
        size = min(math.ceil(len(jobs) / (SHARE * len(self.speeds))), max(1, self._slots // 8))
        out: list[list[Job]] = [[]]
        for group in groups.values():
            if out[-1] and len(out[-1]) + len(group) > size:
                out.append([])
            out[-1] += group
        return out if jobs else []

    def _seat(self, size: int, loads: list[int], calls: list[int]) -> int | None:
        """The engine that would be done with `size` more rollouts first, if it has room."""
        # Half as many as slots wait at an engine: a call keeps its place until its longest ends.
        limit = self._slots + self._slots // 2
        room = [
            engine
            for engine in range(len(loads))
            if not calls[engine] or (loads[engine] + size <= limit and calls[engine] < CALLS)
        ]
        return min(room, key=lambda e: (loads[e] + size) / self.speeds[e], default=None)

    def _learn(self, rates: list[float]) -> None:
        """Half of what is known of an engine is its last step; without work it drifts to 1."""
        worked = [rate for rate in rates if rate]
        if not worked:
            return
        mean = sum(worked) / len(worked)
        self.speeds = [
            0.5 * speed + 0.5 * rate / mean if rate else 0.9 * speed + 0.1
            for speed, rate in zip(self.speeds, rates, strict=True)
        ]
