"""Whether engines that have work go on with it: one that does not is taken for hung, and killed.

An engine says how often it has stepped. Beats that show nothing new are counted, not seconds: a
driver that was stopped for an hour has not seen its engines stand still.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

BEATS = 4
"""Times that an engine is asked within the patience."""
LONGEST_S = 5.0
"""Between two of them, where few engines have work."""
ASKED, FEWEST = 10, 2
"""Engines that are asked in a second, and times within the patience that each is asked even so:
it costs the driver 0.2 ms."""


class Heart:
    """A thread that listens to the engines that have work. Close it.

    Args:
        pulse: an engine's number -> what it last said, a growing count; None: nothing yet.
        kill: ends an engine: (number, why).
        patience: seconds without news after which that is done.
    """

    def __init__(
        self, pulse: Callable[[int], Any], kill: Callable[[int, str], None], patience: float
    ) -> None:
        self._pulse, self._kill, self._patience = pulse, kill, patience
        self._every = _every(1, patience)
        """Seconds between the last beat and the next."""
        self._loads, self._still = Counter[int](), dict[int, float]()  # seconds without news
        self._answering = Counter[int]()
        self._heard: dict[int, Any] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, engine: int) -> None:
        """It is given something to do."""
        with self._lock:
            self._loads[engine] += 1
            self._watch()

    def end(self, engine: int) -> None:
        """It is done with one thing, or lost."""
        with self._lock:
            self._loads[engine] = max(0, self._loads[engine] - 1)

    def forget(self) -> None:
        """Nobody waits any more for what any of them was given."""
        with self._lock:
            self._loads.clear()

    @contextlib.contextmanager
    def answering(self, engines: Iterable[int]) -> Iterator[None]:
        """While these do what has no steps: who answers is at it, whatever it says."""
        mine = Counter(engines)
        with self._lock:
            self._answering.update(mine)
            self._watch()
        try:
            yield
        finally:
            with self._lock:
                self._answering.subtract(mine)

    def _watch(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._listen, name="heart", daemon=True)
            self._thread.start()

    def _listen(self) -> None:
        while not self._ended.wait(self._every):
            for engine in self.beat():
                if not self._ended.is_set():
                    self._kill(engine, f"made no progress in {self._patience:g} s")

    def beat(self) -> list[int]:
        """Listen once: the engines that have stood still for the patience."""
        with self._lock:
            answering = {engine for engine, n in self._answering.items() if n > 0}
            busy = {engine for engine, load in self._loads.items() if load > 0} | answering
            for engine in [e for e in self._still if e not in busy]:
                del self._still[engine]
        hung = []
        for engine in sorted(busy):
            said = self._pulse(engine)
            news = said is not None and (engine in answering or said != self._heard.get(engine))
            self._heard[engine] = said if said is not None else self._heard.get(engine)
            self._still[engine] = 0.0 if news else self._still.get(engine, 0.0) + self._every
            if self._still[engine] >= self._patience:
                hung.append(engine)
                self._still[engine] = 0.0
        self._every = _every(len(busy), self._patience)
        return hung

    def close(self) -> None:
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(LONGEST_S)


def _every(engines: int, patience: float) -> float:
    """Seconds between two beats."""
    return max(min(LONGEST_S, patience / BEATS), min(engines / ASKED, patience / FEWEST))
