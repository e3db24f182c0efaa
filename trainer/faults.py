"""What may fail in a run and be mended: losses of its processes, and requests to stop."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from samplers.seam import Component

if TYPE_CHECKING:
    from trainer.tracking import Tracker
    from trainer.world import World

Role = Literal["learner", "rollout", "grader"]


class FaultConfig(Component):
    """How long, and how often, a run mends what fails before it gives up."""

    restarts: int = Field(default=3, ge=0)
    """Times that learners are started again without a new checkpoint in between."""
    kills: int = Field(default=3, ge=1)
    """Engines that a prompt may take down before it is left out of the run."""
    heartbeat: float = Field(default=120.0, gt=0)
    """Seconds without progress after which an engine with work is taken for hung, and killed."""


class Lost(RuntimeError):  # noqa: N818 - what happened, as people say it
    """A process of the run died, or was killed because it hung.

    Args:
        why: a line for people, without the process's name.
    """

    def __init__(self, role: Role, index: int, why: str) -> None:
        super().__init__(f"{NAMES[role]} {index} {why}")
        self.role, self.index = role, index


class Unmended(RuntimeError):  # noqa: N818 - what people are to know of it
    """A run cannot go on by itself: one line that says why, and how it can."""


class Stopped(Exception):  # noqa: N818 - not an error
    """The run was asked to stop, and what was under way was given up."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One that was mended."""

    role: Role
    index: int
    what: str
    """A line for people: what happened, and what was done."""
    seconds: float = 0.0
    """That mending took."""


class Mended:
    """What a stage tells of the losses that its World has mended."""

    def __init__(self, world: World, tracker: Tracker) -> None:
        self._world, self._tracker = world, tracker
        self._untold = Counter[str]()  # by role: no step's figures have them yet

    def tell(self, step: int) -> None:
        """Write down, and say, what there is since the last time."""
        for fault in self._world.faults():
            self._tracker.fault(step, asdict(fault))
            self._untold[fault.role] += 1

    def figures(self, step: int) -> dict[str, int]:
        """faults/ROLE of those that no step has told; nothing where there were none."""
        self.tell(step)
        told, self._untold = self._untold, Counter()
        return {f"faults/{role}": count for role, count in told.items()}


NAMES: dict[Role, str] = {
    "learner": "learner rank",
    "rollout": "engine",
    "grader": "reward worker",
}
