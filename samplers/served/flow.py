"""Lots of rollouts in flight at a server; the interface of `samplers/flow.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Self

from samplers.types import Job, Rollout


class Flow:
    """Lots that come back as each of them is done. One thread may add while another takes."""

    def __init__(self, submit: Callable[[Job], Future[Rollout]]) -> None:
        self._submit, self._closed = submit, False
        self._turn = threading.Condition()
        self._lots: list[_Lot] = []

    def add(self, jobs: Sequence[Job], key: Any = None) -> None:
        """Ask for one lot more; `key` comes back with it in `finished`. An empty one is none.

        Raises:
            ValueError: the flow is closed.
        """
        with self._turn:
            if self._closed:
                raise ValueError("flow: closed; ask for the lot in a new one")
            futures = [self._submit(job) for job in jobs]
            if futures:
                self._lots.append((key, futures))
                self._turn.notify_all()
        for future in futures:
            future.add_done_callback(self._wake)

    def _wake(self, _: Any) -> None:
        with self._turn:
            self._turn.notify_all()

    def take(self) -> list[list[Rollout]]:
        """Wait until a lot is done, and return all that are; [] where none is left.

        Raises:
            ValueError: a plan that cannot be asked, or what the server refuses. Lots that are
                done are returned first.
        """
        return [rollouts for _, rollouts in self.finished()]

    def finished(self) -> list[tuple[Any, list[Rollout]]]:
        """`take`, with the keys."""
        with self._turn:
            self._turn.wait_for(lambda: not self._lots or any(map(_ended, self._lots)))
            failed = [lot for lot in self._lots if _error(lot) is not None]
            done = [lot for lot in self._lots if _ended(lot) and lot not in failed]
            lost = failed[:1] if not done else []
            self._lots = [lot for lot in self._lots if lot not in (*done, *lost)]
        for lot in lost:
            error = _error(lot)
            for future in lot[1]:
                future.cancel()
            assert error is not None
            raise error
        return [(key, [f.result() for f in futures]) for key, futures in done]

    def awaits(self) -> bool:
        """Wait until there is a lot, which another thread adds; False once the flow is closed."""
        with self._turn:
            self._turn.wait_for(lambda: self._lots or self._closed)
            return not self._closed

    def close(self) -> None:
        """End what is being made, and wait for that; lots not yet taken are lost."""
        with self._turn:
            self._closed = True
            lots, self._lots = self._lots, []
            self._turn.notify_all()
        for _, futures in lots:
            for future in futures:
                future.cancel()

    def __len__(self) -> int:
        return len(self._lots)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


_Lot = tuple[Any, list[Future[Rollout]]]


def _error(lot: _Lot) -> BaseException | None:
    """Why one of its rollouts will not come."""
    ended = [future for future in lot[1] if future.done()]
    if any(future.cancelled() for future in ended):
        return RuntimeError("served: closed while a lot was being made")
    return next((error for future in ended if (error := future.exception())), None)


def _ended(lot: _Lot) -> bool:
    """All of it is done, or one of it has failed: the rest would be paid for in vain."""
    return all(future.done() for future in lot[1]) or _error(lot) is not None
