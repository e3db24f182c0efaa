"""Lots of rollouts on their way to engines and back, through Ray: the far side of a flow.

Each engine has one stream, a generator of its actor, which yields lots as they are done, while
lots more are added beside it. So a thread of the actor serves however many lots are in flight.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from launch.dispatch import Columns, outbound
from launch.mistakes import told_remotely
from samplers.ring import SyncError
from samplers.types import Job

CLOSE_S = 30.0
"""How long `close` waits for an engine to end its step; who hangs longer is told elsewhere."""


def result(ref: Any, who: str = "a worker process") -> Any:
    """What an actor answered: a user's error is raised as itself, a death by name."""
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        users = isinstance(cause, ValueError) and told_remotely(error)
        raise cause if users or isinstance(cause, SyncError) else error from None
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(f"{who} died: {error}") from None


class Streams:
    """One flow's. Used by one thread.

    Args:
        actors: of the engines.
        flow: its number; no other flow of these actors has it.
        wake: called before anything is sent: engines may sleep while learners work.
        ended: set when rollouts are aborted.
    """

    def __init__(
        self,
        actors: Sequence[Any],
        flow: int,
        wake: Callable[[], None],
        ended: threading.Event,
    ) -> None:
        self._actors, self._flow, self._wake, self._ended = list(actors), flow, wake, ended
        self._streams: dict[Any, int] = {}
        """Whose each is."""
        self._sent: dict[Any, int] = {}
        """Lots that an engine has not yet been seen to have, and which engine."""

    def send(self, engine: int, number: int, jobs: list[Job]) -> None:
        """Lot `number` to an engine; does not wait."""
        self._wake()
        actor = self._actors[engine]
        if engine not in self._streams.values():
            stream = actor.stream.options(concurrency_group="rollout").remote(self._flow)
            self._streams[stream] = engine
        add = actor.add.options(concurrency_group="flow")
        self._sent[add.remote(self._flow, number, *outbound(jobs))] = engine

    def take(self) -> list[tuple[int, Columns]]:
        """Wait for lots: the number and rollouts of all that are done.

        Raises:
            RuntimeError: an engine died, or rollouts were aborted.
            ValueError: a plan that an engine cannot hold.
        """
        import ray

        done: list[tuple[int, Columns]] = []
        while not done:
            if self._ended.is_set():
                raise RuntimeError("rollouts were aborted")
            pool = [*self._streams, *self._sent]
            if ray.wait(pool, num_returns=1, timeout=0.5)[0]:
                for ref in ray.wait(pool, num_returns=len(pool), timeout=0)[0]:
                    done += self._of(ref)
        return done

    def _of(self, ref: Any) -> list[tuple[int, Columns]]:
        if ref in self._sent:
            result(ref, f"engine {self._sent.pop(ref)}")
            return []
        who = f"engine {self._streams[ref]}"
        made = next(ref, None)
        if made is None:  # it failed before, and somebody asks again
            raise RuntimeError(f"{who} makes no more of these rollouts")
        lots: list[tuple[int, Columns]] = result(made, who)
        return lots

    def close(self) -> None:
        """End what is being made, and wait until the engines have done so."""
        import ray

        if not ray.is_initialized():
            return
        until = time.monotonic() + CLOSE_S
        ends = [
            self._actors[engine].end.options(concurrency_group="flow").remote(self._flow)
            for engine in self._streams.values()
        ]
        while self._streams and time.monotonic() < until:
            for stream in ray.wait(list(self._streams), num_returns=1, timeout=0.5)[0]:
                if next(stream, None) is None:  # what it still yields is dropped unread
                    del self._streams[stream]
        if ends:  # a stream ends before what its engine was making does
            ray.wait(ends, num_returns=len(ends), timeout=max(0.0, until - time.monotonic()))
        self._streams.clear()
        self._sent.clear()
