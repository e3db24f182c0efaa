"""Whether those who are waited for still live. One that died is told by Ray; one that is stopped,
or cut off from the others, never says anything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from launch.answers import POLL_S, Who, present
from launch.team import Team
from trainer.faults import Lost

GROUP = {"pulse": 1}
"""Of an actor's concurrency: a thread that answers whatever the others are at."""


class Pulse:
    """To be called while nobody answers, as `gather` does.

    It counts how often it was called, not seconds: a driver that was itself stopped for an hour has
    not heard anybody be silent.

    Args:
        those: numbers of those in `team` that are waited for.
        patience: seconds of silence after which one is killed.
    """

    def __init__(self, team: Team, those: Iterable[int], patience: float) -> None:
        self._team, self._those, self._patience = team, list(those), patience
        self._most = max(1, math.ceil(patience / POLL_S))
        self._asked: dict[object, Who] = {}
        self._silent = 0

    def __call__(self) -> None:
        """Raises:
        Unmended: nobody is left.
        Lost: one was silent for too long, and was killed.
        """
        import ray

        present()
        if self._asked:
            pending = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)[1]
            self._silent += 1
            if not pending:
                self._asked, self._silent = {}, 0
            elif self._silent >= self._most:
                self._end({ref: self._asked[ref] for ref in pending})
        else:
            for index in self._those:
                self._asked |= self._team.ask(index, "pulse", group="pulse")

    def _end(self, silent: Mapping[object, Who]) -> None:
        for who in silent.values():
            self._team.kill(who.index)
        one = next(iter(silent.values()))
        raise Lost(one.role, one.index, f"said nothing for {self._patience:g} s and was killed")
