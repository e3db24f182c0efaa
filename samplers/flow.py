"""Rollouts in lots: many are in flight in an engine's one running batch, and each comes back alone.

For who decides by the lots that are done what else to ask for. What is asked meanwhile joins the
batch between two steps, so slots that a finished rollout leaves are taken at once; with rounds
they would wait for the slowest of all (continuous batching, Orca, OSDI 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from samplers.types import Job, Rollout

if TYPE_CHECKING:
    from samplers.rollout import Call, RolloutWorker


class Flow:
    """Lots of one rollout worker (`trainer.world.Flow`). One thread may add while another takes.

    The engine works while somebody waits: in `take` here, or for anything else of the worker.
    """

    def __init__(self, worker: RolloutWorker) -> None:
        self._worker, self._closed = worker, False
        self._lots: list[tuple[Any, Call]] = []

    def add(self, jobs: Sequence[Job], key: Any = None) -> None:
        """Ask for one lot more; `key` comes back with it in `finished`. An empty one is none.

        Raises:
            ValueError: the flow is closed.
        """
        with self._worker.turn:
            if self._closed:
                raise ValueError("flow: closed; ask for the lot in a new one")
            if jobs:
                self._lots.append((key, self._worker.submit(jobs)))
                self._worker.turn.notify_all()

    def take(self) -> list[list[Rollout]]:
        """Wait until a lot is done, and return all that are; [] where none is left.

        Raises:
            ValueError: a plan that this model, prompt or context cannot hold.
            Exception: the engine's own, where it failed.
        """
        return [rollouts for _, rollouts in self.finished()]

    def finished(self) -> list[tuple[Any, list[Rollout]]]:
        """`take`, with the keys."""
        self._worker.until(lambda: not self._lots or any(call.ended for _, call in self._lots))
        with self._worker.turn:
            done = [lot for lot in self._lots if lot[1].ended]
            self._lots = [lot for lot in self._lots if not lot[1].ended]
        for _, call in done:
            if call.error is not None:
                raise call.error
        return [(key, call.value) for key, call in done]

    def awaits(self) -> bool:
        """Wait until there is a lot, which another thread adds; False once the flow is closed."""
        with self._worker.turn:
            self._worker.turn.wait_for(lambda: self._lots or self._closed)
            return not self._closed

    def close(self) -> None:
        """End what is being made, and wait for that; lots not yet taken are lost."""
        with self._worker.turn:
            self._closed = True
            lots, self._lots = self._lots, []
            self._worker.cancel(call for _, call in lots)
            self._worker.turn.notify_all()
        self._worker.until(lambda: all(call.ended for _, call in lots))
        for _, call in lots:
            if isinstance(call.error, KeyboardInterrupt | SystemExit):  # came while it waited here
                raise call.error

    def __len__(self) -> int:
        return len(self._lots)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
