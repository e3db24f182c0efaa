"""The learner ranks: every call is all ranks', in one order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from launch.actors import LearnerActor
from launch.answers import Who, gather, health, started
from launch.placement import Placement
from launch.pulse import GROUP, Pulse
from launch.team import Team
from samplers.ring import Source
from trainer.config import Stage
from trainer.faults import Lost, Unmended
from trainer.sync import Transport
from trainer.types import Batch, Floats, MicroBatch

PATIENCE_S = 10.0
"""What a rank that lives, and is at nothing, may take to say so."""


class Learners:
    """Data-parallel ranks. One that dies takes the others with it: a collective has no holes.

    Every method raises `Lost` where a rank died, or was silent for `patience` seconds; `restart`
    then begins with the model anew.
    """

    def __init__(
        self, stage: Stage, model: str, placement: Placement, seed: int, patience: float
    ) -> None:
        self.stage, self._order, self._patience = stage, threading.RLock(), patience
        self._about = (stage, model), (placement.device, seed)
        self.team = Team("learner", LearnerActor, placement, concurrency_groups=GROUP)
        self._updates = 0  # steps that were asked for

    def build(self) -> dict[Any, Who]:
        (stage, model), (device, seed) = self._about
        meet = self.meeting()
        return self._each(lambda rank: ("build", stage, model, rank, meet, device, seed))

    def restart(self) -> None:
        """Ranks as new: nothing of what they had is left but what is on the disk."""
        for rank in range(len(self.team)):
            self.team.replace(rank)
        self.begun(self.build())
        self.team.know()

    def begun(self, asked: dict[Any, Who]) -> list[Any]:
        """Answers of ranks that start, and of others that start beside them.

        Raises:
            Lost: a rank died.
        """
        return self._answers(asked, started)

    def meeting(self) -> tuple[str, int]:
        """Host and a free port of rank 0."""
        place: tuple[str, int] = self._answers(self.team.ask(0, "address"))[0]
        return place

    def connect(self, kind: Transport, names: Sequence[str]) -> Source:
        """Make ready to send weights to readers of these names."""
        host, port = self.meeting()
        source: Source = self._all(lambda _: ("connect", kind, names, port, host))[0]
        return source

    def publish(self) -> tuple[dict[Any, Who], int]:
        """Send the weights; and how many steps were asked for before, whose outcome they are."""
        with self._order:
            return self._each(lambda _: ("publish",)), self._updates

    def rest(self) -> None:
        self._all(lambda _: ("rest",))

    def score(self, batch: Batch, which: str) -> list[Floats]:
        scored = self._of_each(batch, lambda share: ("score", share, which))
        return [logprobs_N for logprobs_N, _ in scored]

    def norms(self, batch: Batch, scope: str) -> list[Floats]:
        return self._of_each(batch, lambda share: ("norms", share, scope))

    def _of_each(self, batch: Batch, call: Callable[[Any], tuple[Any, ...]]) -> list[Any]:
        """The ranks' answers to each micro-batch: updates, then ranks, then micro-batches."""
        out: list[Any] = []
        for shares in batch.updates:
            out += chain.from_iterable(self._all(partial(_of_share, call, shares)))
        return out

    def variance(self, shares: Sequence[Sequence[Sequence[MicroBatch]]]) -> tuple[float, float]:
        sums: tuple[float, float] = self._all(lambda rank: ("variance", shares[rank]))[0]
        return sums

    def step(self, batch: Batch) -> dict[str, Any]:
        epochs = self.stage.epochs
        with self._order:
            self._updates += 1
            asked = self._each(lambda rank: ("step", batch.share(rank), epochs))
        results = self._answers(asked)
        metrics: dict[str, Any] = dict(results[0])
        metrics["time/learner"] = max(r["seconds"] for r in results)
        metrics["memory/learner_mb"] = max(r["peak_memory_mb"] for r in results)
        return {k: v for k, v in metrics.items() if k not in ("seconds", "peak_memory_mb")}

    def save(self, folder: Path) -> None:
        self._all(lambda _: ("save", str(folder / "learner")))
        self.export(folder / "model")

    def load(self, folder: Path) -> None:
        self._all(lambda _: ("load", str(folder / "learner")))

    def export(self, folder: Path) -> None:
        self._all(lambda _: ("export", str(folder)))

    def _each(self, call: Callable[[int], tuple[Any, ...]]) -> dict[Any, Who]:
        """`call(rank)` says method and arguments: calls of two threads come to each rank in one
        order."""
        with self._order:
            out: dict[Any, Who] = {}
            for rank in range(len(self.team)):
                out |= self.team.ask(rank, *call(rank))
            return out

    def _all(self, call: Callable[[int], tuple[Any, ...]]) -> list[Any]:
        return self._answers(self._each(call))

    def _answers(
        self, asked: dict[Any, Who], wait: Callable[[dict[Any, Who]], list[Any]] | None = None
    ) -> list[Any]:
        try:
            if wait is not None:
                return wait(asked)
            everyone = range(len(self.team))  # who is stopped keeps the others waiting
            return gather(asked, idle=Pulse(self.team, everyone, self._patience))
        except (Lost, Unmended, ValueError):
            raise
        except Exception:
            self.check()  # ranks that are left fail of the one that is not
            raise

    def check(self, *, hung: bool = False) -> None:
        """Whether all are there; with `hung` those that do not answer are ended.

        Raises:
            Lost: one is not.
        """
        dead, mute = health(self.team.every("where"), PATIENCE_S)
        if dead:
            raise Lost("learner", dead[0].index, "died")
        if mute and hung:
            for who in mute:
                self.team.kill(who.index)
            raise Lost("learner", mute[0].index, f"did not answer in {PATIENCE_S:g} s; killed")

    def close(self) -> None:
        self.team.close()


def _of_share(
    call: Callable[[Any], tuple[Any, ...]], shares: Sequence[Any], rank: int
) -> tuple[Any, ...]:
    return call(shares[rank])
