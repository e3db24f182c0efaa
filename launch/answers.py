"""What actors answer, and who of them no longer does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from launch.mistakes import told_remotely
from samplers.ring import SyncError
from trainer.faults import NAMES, Lost, Role, Unmended

POLL_S = 5.0
START_S = 3600.0
"""What a process may take to start, the largest model and the slowest disk included."""


@dataclass(frozen=True, slots=True)
class Who:
    """A process of the run."""

    role: Role
    index: int

    def __str__(self) -> str:
        return f"{NAMES[self.role]} {self.index}"


def result(ref: Any, who: Who) -> Any:
    """What `who` answered.

    Raises:
        Lost: it died.
        ValueError, SyncError, OSError: as it raised them, a ValueError only if it is a user's.
    """
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, SyncError) or (isinstance(cause, ValueError) and told_remotely(error)):
            raise cause from None
        if isinstance(cause, OSError):
            raise cause from error
        raise error from None
    except ray.exceptions.RayError as error:  # it died, or its answer did, with the node it lay on
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise Lost(who.role, who.index, f"died: {first}") from None


def gather(
    asked: Mapping[Any, Who],
    deadline: float = math.inf,
    what: str = "weight sync",
    idle: Callable[[], None] | None = None,
) -> list[Any]:
    """Answers of all, in the order of `asked`; or the first failure, as soon as it is there.

    Args:
        deadline: seconds after which those that did not answer are a SyncError.
        what: they were asked to do, for people.
        idle: called whenever nobody has answered for a while; it may raise.

    Raises:
        Unmended: nobody can answer any more.
    """
    import ray

    pending, until, answers = list(asked), time.monotonic() + deadline, {}
    while pending:
        left = until - time.monotonic()
        if left <= 0:
            silent = ", ".join(str(asked[ref]) for ref in pending)
            raise SyncError(f"{what}: {silent} did not answer within {deadline:g} s")
        done, pending = ray.wait(pending, num_returns=1, timeout=min(POLL_S, left))
        if not done:
            (idle or present)()
        for ref in done:
            answers[ref] = result(ref, asked[ref])
    return [answers[ref] for ref in asked]


def started(asked: Mapping[Any, Who]) -> list[Any]:
    """Answers of processes that load their models.

    Raises:
        Unmended: one stands still.
    """
    try:
        return gather(asked, START_S, "start")
    except SyncError as error:
        raise Unmended(str(error)) from None


def present() -> None:
    """Raise Unmended where nobody is left who could answer."""
    import ray

    if not any(node["Alive"] for node in ray.nodes()):
        raise Unmended(
            "Ray's own process (raylet) died, and all others with it; did memory run out?"
        )


def health(asked: Mapping[Any, Who], patience: float) -> tuple[list[Who], list[Who]]:
    """Who of those that were asked anything is dead, and who did not answer in so many seconds."""
    import ray

    if not asked:
        return [], []
    done, mute = ray.wait(list(asked), num_returns=len(asked), timeout=patience)
    dead = []
    for ref in done:
        try:
            ray.get(ref)
        except ray.exceptions.RayTaskError:  # whatever it says, it lives
            continue
        except ray.exceptions.RayError:
            dead.append(asked[ref])
    return dead, [asked[ref] for ref in mute]
