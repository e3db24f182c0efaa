"""Whether engines that have work go on with it: one that does not is taken for hung, and killed.

An engine says how often it has stepped. Beats that show nothing new are counted, not seconds: a
driver that was stopped for an hour has not seen its engines stand still.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

BEATS = 4
"""Times that an engine is asked within the patience."""
LONGEST_S = 5.0
"""Between two of them."""


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
        self._every = min(LONGEST_S, patience / BEATS)
        self._loads, self._still = Counter[int](), Counter[int]()
        self._heard: dict[int, Any] = {}
        self._pauses, self._ended = 0, threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, engine: int) -> None:
        """It is given something to do."""
        with self._lock:
            self._loads[engine] += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="heart", daemon=True)
                self._thread.start()

    def end(self, engine: int) -> None:
        """It is done with one thing, or lost."""
        with self._lock:
            self._loads[engine] -= 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While engines do what has a deadline of its own."""
        with self._lock:
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                self._still.clear()

    def _listen(self) -> None:
        while not self._ended.wait(self._every):
            for engine in self.beat():
                self._kill(engine, f"made no progress in {self._patience:g} s")

    def beat(self) -> list[int]:
        """Listen once: the engines that have stood still for the patience."""
        with self._lock:
            busy = [e for e, load in self._loads.items() if load > 0] if not self._pauses else []
            for engine in [e for e in self._still if e not in busy]:
                del self._still[engine]
        hung = []
        for engine in busy:
            said = self._pulse(engine)
            news = said is not None and said != self._heard.get(engine)
            self._heard[engine] = said if said is not None else self._heard.get(engine)
            self._still[engine] = 0 if news else self._still[engine] + 1
            if self._still[engine] * self._every >= self._patience:
                hung.append(engine)
                self._still[engine] = 0
        return hung

    def close(self) -> None:
        self._ended.set()
