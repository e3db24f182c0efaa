"""What the loop needs of the machines that run a stage. Ray provides it in launch/fleet.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from rewards.verdict import Verdict
from samplers.types import Ids, Job, Rollout
from trainer.faults import Fault
from trainer.types import Batch, Floats, MicroBatch

Item = tuple[str | None, str, Mapping[str, Any]]
"""(answer text, gold, meta): what a verifier is asked."""


class Flow(Protocol):
    """Rollouts in lots that come back as each of them is done. One thread uses it.

    A context manager: leaving it closes it.
    """

    def add(self, jobs: Sequence[Job]) -> None:
        """Ask for one lot more, begun at once or as soon as there is room; empty lots are none."""
        ...

    def take(self) -> list[list[Rollout]]:
        """All lots that are done, in any order: waits for one where none is.

        Each holds its rollouts in the order of their jobs. Nothing where no lot is left.

        Raises:
            RuntimeError: an engine failed, or was aborted; no lot comes any more.
        """
        ...

    def close(self) -> None:
        """End what is being made; lots not yet taken are lost."""
        ...

    def __len__(self) -> int:
        """Lots added and not yet taken."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: Any) -> None: ...


class World(Protocol):
    """Engines, graders and learners. Every call returns when it is done, or raises.

    What is lost is mended, and what it was at done again, by whichever call needs it. A learner
    cannot be: every call may raise `trainer.faults.Lost`, and then goes on from a checkpoint who
    called.

    One thread may call `rollout`, `grade`, `score`, `norms` or `probe` while another calls
    anything.
    """

    version: int
    """Weight version that the engines hold: 0 before the first update."""
    left_out: set[tuple[str, ...]]
    """Prompts that no engine survives, of training and of evaluations, in its own words."""

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
        """Rollouts in the order of their jobs; unfinished ones where a plan comes in chunks."""
        ...

    def flow(self) -> Flow:
        """Rollouts in lots, for who decides by those that are done what else to ask for."""
        ...

    def abort(self) -> None:
        """End what `rollout` or a flow is making, in whatever thread: it ends soon, or raises."""
        ...

    def probe(self, ids: Sequence[Ids]) -> list[Floats]:
        """Logprobs of ids[1:] of each sequence at the training temperature, by an engine."""
        ...

    def grade(self, items: Sequence[Item]) -> list[Verdict]: ...

    def grading(self) -> dict[str, float]:
        """How verifiers do since they started: latencies in seconds, workers lost, counts."""
        ...

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]: ...

    def faults(self) -> list[Fault]:
        """What was lost and mended since this was last asked."""
        ...

    def score(self, batch: Batch, which: str) -> list[Floats]:
        """Logprobs of the scored tokens of every micro-batch, updates then ranks then
        micro-batches; `which`: policy or reference."""
        ...

    def norms(self, batch: Batch, scope: str) -> list[Floats]:
        """Per row of every micro-batch, in the order of `score`, the norm of the gradient of its
        log likelihood with respect to `scope` (`trainer/gradnorms.py`)."""
        ...

    def variance(self, shares: Sequence[Sequence[Sequence[MicroBatch]]]) -> tuple[float, float]:
        """Of the gradients of groups; per rank, the micro-batches of each: `trainer/measure.py`."""
        ...

    def step(self, batch: Batch) -> dict[str, Any]:
        """Take the batch's optimiser steps on the learners: figures, and `notes` for people."""
        ...

    def sync(self) -> None:
        """Bring the learners' weights to the engines, under a new version."""
        ...

    def save(self, folder: Path) -> None:
        """Everything the learners need to go on: weights, optimiser, random state."""
        ...

    def load(self, folder: Path) -> None: ...

    def export(self, folder: Path) -> None:
        """A model folder that transformers loads."""
        ...

    def profile(self, folder: Path | None) -> None:
        """Every process begins to record its times into `folder`; None: they end."""
        ...
