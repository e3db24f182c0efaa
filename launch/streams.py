"""Lots of rollouts on their way to engines and back, through Ray: the far side of a flow.

Each engine has one stream, a generator of its actor, which yields lots as they are done, while
lots more are added beside it. So a thread of the actor serves however many lots are in flight.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from launch.answers import result
from launch.heart import Heart
from launch.team import Team
from samplers import columns
from samplers.columns import Columns
from samplers.types import Job
from trainer.faults import Lost

CLOSE_S = 30.0
"""How long `close` waits for an engine to end its step; who hangs longer is told elsewhere."""


class Streams:
    """One flow's. Used by one thread.

    Args:
        team: the engines.
        flow: its number; no other flow of these engines has it.
        wake: called before anything is sent: engines may sleep while learners work.
        ended: set when rollouts are aborted.
        lost: puts another in the place of an engine that died: (number, its life, why).
        heart: knows who is at work.
    """

    def __init__(
        self,
        team: Team,
        flow: int,
        wake: Callable[[], None],
        ended: threading.Event,
        lost: Callable[[int, int, str], None],
        heart: Heart,
    ) -> None:
        self._team, self._flow, self._wake, self._ended = team, flow, wake, ended
        self._lost, self._heart = lost, heart
        self._streams: dict[Any, int] = {}
        """Whose each is."""
        self._lives: dict[int, int] = {}
        """Of the engines when their streams began."""
        self._sent: dict[Any, int] = {}
        """Lots that an engine has not yet been seen to have, and which engine."""
        self._at: dict[int, int] = {}
        """Engine of every lot that is under way, by the lot's number."""

    def send(self, engine: int, number: int, jobs: list[Job]) -> None:
        """Lot `number` to an engine; does not wait."""
        self._wake()
        if engine not in self._lives:
            (stream,) = self._team.ask(engine, "stream", self._flow, group="rollout")
            self._streams[stream] = engine
            self._lives[engine] = self._team.lives[engine]
        packed = columns.pack_jobs(jobs)
        (sent,) = self._team.ask(engine, "add", self._flow, number, packed, group="flow")
        self._sent[sent], self._at[number] = engine, engine
        self._heart.begin(engine)

    def take(self) -> list[tuple[int, Columns | None]]:
        """Wait for lots: the number and rollouts of all that are done, None of those that were
        lost with their engine: another stands in its place.

        Raises:
            RuntimeError: rollouts were aborted.
            ValueError: a plan that an engine cannot hold.
        """
        import ray

        done: list[tuple[int, Columns | None]] = []
        while not done:
            if self._ended.is_set():
                raise RuntimeError("rollouts were aborted")
            pool = [*self._streams, *self._sent]
            if ray.wait(pool, num_returns=1, timeout=0.5)[0]:
                for ref in ray.wait(pool, num_returns=len(pool), timeout=0)[0]:
                    done += self._of(ref)
        return done

    def _of(self, ref: Any) -> list[tuple[int, Columns | None]]:
        engine = self._sent.pop(ref, self._streams.get(ref, -1))
        if engine < 0:  # it went with an engine that was lost
            return []
        who = self._team.who(engine)
        try:
            if ref not in self._streams:
                result(ref, who)
                return []
            made = next(ref, None)
            if made is None:  # it failed before, and somebody asks again
                raise RuntimeError(f"{who} makes no more of these rollouts")
            lots: list[tuple[int, Columns | None]] = result(made, who)
        except Lost as lost:
            return self._bury(engine, str(lost))
        lots = [lot for lot in lots if lot[0] in self._at]  # once, however often it was sent
        for number, _ in lots:
            self._heart.end(self._at.pop(number))
        return lots

    def _bury(self, engine: int, why: str) -> list[tuple[int, Columns | None]]:
        """What an engine had is lost with it."""
        self._streams = {ref: e for ref, e in self._streams.items() if e != engine}
        self._sent = {ref: e for ref, e in self._sent.items() if e != engine}
        numbers = [number for number, e in self._at.items() if e == engine]
        for number in numbers:
            self._heart.end(self._at.pop(number))
        self._lost(engine, self._lives.pop(engine), why)
        return [(number, None) for number in numbers]

    def close(self) -> None:
        """End what is being made, and wait until the engines have done so."""
        import ray

        if not ray.is_initialized():
            return
        until = time.monotonic() + CLOSE_S
        ends: list[Any] = []
        for engine in self._streams.values():
            ends += self._team.ask(engine, "end", self._flow, group="flow")
        while self._streams and time.monotonic() < until:
            for stream in ray.wait(list(self._streams), num_returns=1, timeout=0.5)[0]:
                if _over(stream):  # what it still yields is dropped unread
                    del self._streams[stream]
        if ends:  # a stream ends before what its engine was making does
            ray.wait(ends, num_returns=len(ends), timeout=max(0.0, until - time.monotonic()))
        for engine in self._at.values():
            self._heart.end(engine)
        for mine in (self._streams, self._lives, self._sent, self._at):
            mine.clear()


def _over(stream: Any) -> bool:
    """Whether nothing more comes of it; of a dead engine nothing does."""
    import ray

    try:
        return next(stream, None) is None
    except ray.exceptions.RayError:
        return True
