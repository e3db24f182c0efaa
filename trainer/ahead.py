"""Batches sampled ahead of training, and never too far: nothing is born too old.

A producer thread samples batch j as soon as `j - max_staleness` steps have been trained and their
weights have come to the engines. Whatever it samples then is at most `max_staleness` versions old
when batch j is trained, however long it takes. Not a queue's depth but the weights bound it.

Without in-flight updates engines finish what is at hand before they load: a step takes the longer
of generation and training, and the sync.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

from trainer.faults import Stopped

T = TypeVar("T")
PATIENCE_S = 30.0
"""How long `close` waits for the producer; then what it waits for is about to be ended."""


class Ahead(Generic[T]):
    """Makes batches `first` to `last` - 1 in a thread of its own, which the first `next` starts.

    Args:
        make: samples one batch, given its number; called in the producer's thread.
        abort: ends what `make` waits for; may be called again.
        in_flight: weights are loaded while a batch is being sampled.
    """

    def __init__(
        self,
        make: Callable[[int], T],
        abort: Callable[[], None],
        first: int,
        last: int,
        max_staleness: int,
        in_flight: bool,
    ) -> None:
        self._make, self._abort, self._in_flight = make, abort, in_flight
        self._next, self._last = first, last
        self._trained = first  # steps whose weights have come to the engines
        self._max_staleness = max_staleness
        self._changed = threading.Condition()
        self._ready: deque[T] = deque()
        self._busy = self._loading = self._stop = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def next(self) -> T:
        """The next batch, in order; raises what the producer raised.

        Raises:
            Stopped: there is none, and nothing is made any more.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sampling", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error or self._stop)
            if self._error is not None:
                raise self._error
            if not self._ready:
                raise Stopped
            return self._ready.popleft()

    def sync(self, load: Callable[[], None]) -> None:
        """Bring new weights to the engines by `load`, and let the batch begin that waited."""
        with self._changed:
            self._loading = not self._in_flight
            self._changed.wait_for(lambda: self._in_flight or not self._busy)
        try:
            load()
        finally:
            with self._changed:
                self._loading = False
                self._trained += 1
                self._changed.notify_all()

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Around each call that generates: no weights are loaded meanwhile unless in flight."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop or not self._loading)
            if self._stop:
                raise Stopped
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def stop(self) -> None:
        """End the producer, whatever it is doing, without waiting. To be called until it has."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._thread is not None and self._thread.is_alive():
            with suppress(Exception):  # what is already dead is ended
                self._abort()

    def close(self) -> None:
        """End the producer and wait for it."""
        for _ in range(int(PATIENCE_S / 0.5)):
            self.stop()
            if self._thread is None or not self._thread.is_alive():
                return
            self._thread.join(0.5)

    def _run(self) -> None:
        try:
            while self._next < self._last:
                with self._changed:
                    self._changed.wait_for(lambda: self._stop or self._admitted)
                    if self._stop:
                        return
                batch = self._make(self._next)
                with self._changed:
                    self._ready.append(batch)
                    self._next += 1
                    self._changed.notify_all()
        except Stopped:
            pass
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    @property
    def _admitted(self) -> bool:
        return self._trained + self._max_staleness >= self._next
