"""What becomes of a run that lost what cannot be mended in its place: back to its newest checkpoint
with learners started anew, or an end that says how to go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from launch.fleet import Fleet
from trainer import checkpoint
from trainer.config import Recipe
from trainer.faults import Fault, Lost, Unmended
from trainer.stop import Stop
from trainer.tracking import Tracker

T = TypeVar("T")
REASONS = "did memory run out (dmesg tells), or is a node gone?"


class Restarts:
    """Counts how often a run began again since its newest checkpoint was made."""

    def __init__(self, recipe: Recipe, tracker: Tracker, stop: Stop) -> None:
        self._most, self._stop = recipe.faults.restarts, stop
        self._root = recipe.folder.absolute() / "checkpoints"
        self._tracker = tracker
        self._since, self._count = checkpoint.newest(self._root), 0

    def tried(self, start: Callable[[], T]) -> T:
        """What `start` makes; it is called again where a process is lost meanwhile.

        Raises:
            Unmended: too often.
        """
        while True:
            try:
                return start()
            except Lost as lost:
                self._again(lost)
                self._tell(lost, "while it started; started anew")

    def back(
        self, lost: Lost, fleet: Fleet, index: int, first: int
    ) -> tuple[Path, Mapping[str, Any]] | None:
        """Start learners anew: the checkpoint of stage `index` to go on from and its driver's
        state; None: from the stage's start.

        Raises:
            Unmended: too often, or it was no learner that was lost.
            Ended: it was asked to end, and what there is to keep is kept.
        """
        if lost.role != "learner":
            raise Unmended(f"{lost}; {REASONS}")
        if self._stop.asked:
            kept = checkpoint.newest(self._root)
            self._stop.end(checkpoint.step_of(kept) if kept else 0, kept)
        try:
            self._again(lost)
            self.tried(lambda: fleet.restart(lost))
        except Unmended:
            self._tell(lost, "not mended")
            raise
        newest = checkpoint.intact(self._root)
        checkpoint.abandon(self._root, newest)
        state = checkpoint.driver_state(newest) if newest else None
        if newest is None or state is None or state["stage"] != index:
            self._tracker.rewind(first or -1)  # not even step 0 is logged
            return None
        self._tracker.rewind(state["first"] + state["step"])
        return newest, state

    def _tell(self, lost: Lost, what: str) -> None:
        fault = Fault(lost.role, lost.index, f"{lost} {what}")
        self._tracker.fault(max(self._tracker.last, 0), asdict(fault))

    def _again(self, lost: Lost) -> None:
        newest = checkpoint.newest(self._root)
        if newest != self._since:
            self._since, self._count = newest, 0
        if self._count == self._most:
            raise Unmended(
                f"{lost}; without a new checkpoint in between the run began again "
                f"{self._count} times, and faults.restarts={self._most} allows no more; {REASONS}"
            ) from lost
        self._count += 1


def resumable(folder: Path) -> str:
    """What goes on with a run that ended by itself."""
    kept = checkpoint.newest(folder / "checkpoints")
    on = f"goes on from {kept.name}" if kept else "begins anew, as there is no checkpoint"
    return f"`laconic resume {folder}` {on}"
