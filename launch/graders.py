"""The reward workers: items by stretches, each with a pool of verifier processes behind it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from launch.actors import GraderActor
from launch.answers import Who, gather, started
from launch.placement import Placement
from launch.pulse import GROUP, Pulse
from launch.team import Team
from rewards.verdict import Verdict
from trainer.config import Stage
from trainer.faults import Fault, Lost
from trainer.world import Item

CALLS = 8
"""Calls that a worker serves at once (training ahead, evaluation, figures): an item that hangs is
waited for by who asked, and by nobody else."""
TRIES = 3
"""Workers that may be lost over the same items before the run fails."""


class Graders:
    """Verdicts depend on the item alone: what a lost worker had is graded again by the next.

    Args:
        patience: seconds of silence after which one is taken for lost.
        told: called with each loss that was mended.
    """

    def __init__(
        self, stage: Stage, placement: Placement, patience: float, told: Callable[[Fault], None]
    ) -> None:
        self._build = ("build", stage, sys.path)
        options: dict[str, Any] = {"concurrency_groups": GROUP, "max_concurrency": CALLS}
        self.team = Team("grader", GraderActor, placement, **options)
        self._patience, self._told, self._mending = patience, told, threading.Lock()

    def build(self) -> dict[Any, Who]:
        return self.team.every(*self._build)

    def grade(self, items: Sequence[Item]) -> list[Verdict]:
        """By stretches: a group's answers, equal ones among them, meet in one cache."""
        each = -(-len(items) // len(self.team))
        shares = [items[i * each : (i + 1) * each] for i in range(len(self.team))]
        asked = [
            (index, self.team.lives[index], share, self.team.ask(index, "grade", share))
            for index, share in enumerate(shares)
            if share
        ]
        return [verdict for one in asked for verdict in self._graded(*one)]

    def _graded(
        self, index: int, life: int, share: Sequence[Item], asked: dict[Any, Who]
    ) -> list[Verdict]:
        for tries in range(1, TRIES + 1):
            try:
                verdicts: list[Verdict] = self._answers(asked)[0]
                return verdicts
            except Lost as lost:
                if tries == TRIES:
                    raise
                life = self._revive(index, life, str(lost))
                asked = self.team.ask(index, "grade", share)
        raise AssertionError("the last try returns or raises")

    def stats(self) -> dict[str, float]:
        """The worst of them."""
        stats = []
        for index in range(len(self.team)):
            life = self.team.lives[index]
            try:
                stats += self._answers(self.team.ask(index, "stats"))
            except Lost as lost:  # the next one knows nothing yet
                self._revive(index, life, str(lost))
        names = {name for one in stats for name in one}
        return {name: max(one[name] for one in stats if name in one) for name in names}

    def _answers(self, asked: dict[Any, Who]) -> list[Any]:
        those = [who.index for who in asked.values()]
        return gather(asked, idle=Pulse(self.team, those, self._patience))

    def _revive(self, index: int, life: int, why: str) -> int:
        """Make a worker anew, once for all who saw its `life` end.

        Raises:
            Lost: so did the new ones.
        """
        with self._mending:
            if self.team.lives[index] == life:
                began = time.monotonic()
                for tries in range(1, TRIES + 1):
                    try:
                        self.team.replace(index)
                        started(self.team.ask(index, *self._build))
                        self.team.know(index)
                        break
                    except Lost:
                        if tries == TRIES:
                            raise
                seconds = time.monotonic() - began
                self._told(Fault("grader", index, f"{why}; it was started anew", seconds))
            return self.team.lives[index]

    def close(self) -> None:
        self.team.close()
