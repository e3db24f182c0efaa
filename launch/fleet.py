"""Where Ray comes in: plain classes become actors, and together they are a World.

An engine or a reward worker that is lost is started anew, and what it was at is done again. A
learner that is lost is `Lost` to who called: the run goes back to its last checkpoint then.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from launch.answers import Who, gather, present
from launch.dispatch import Lots
from launch.engines import TRIES, Engines
from launch.graders import Graders
from launch.hardware import Cluster
from launch.learners import Learners
from launch.placement import place
from launch.transport import Seat, choose, names, ways
from launch.usage import Nodes
from rewards.verdict import Verdict
from samplers.ring import Source, SyncError, refuse
from samplers.types import Ids, Job, Rollout
from trainer.config import Stage
from trainer.faults import Fault, FaultConfig, Lost
from trainer.sync import Transport
from trainer.types import Batch, Floats, MicroBatch
from trainer.world import Item

CLOSE_S, HURRY_S = 5.0, 0.5
"""What learners and reward workers get to leave in order; where somebody leaves at once."""


class Fleet:
    """A World of Ray actors for one stage."""

    def __init__(
        self,
        stage: Stage,
        model: str,
        seed: int = 0,
        deterministic: bool = True,
        faults: FaultConfig | None = None,
    ) -> None:
        self.stage, self.version, self._by_turns = stage, 0, deterministic
        self._turn, self._learned = "wake", 0  # steps of the learners that engines have
        self._kind: Transport | None = None
        self._sources: dict[int, Source] = {}
        self._tied: list[tuple[int, int]] = []  # engines whose sources these are, and their lives
        self._syncing, self._mended = threading.RLock(), list[Fault]()
        self._parts, self.nodes = list[Any](), Nodes()
        self.opened: bool | None = None
        """Whether the chat template opens the thought; None where nothing is generated."""
        import ray

        present()
        try:
            self.placement = place(stage, Cluster.of_ray(ray.nodes()))
            faults = faults or FaultConfig()
            patience = faults.heartbeat
            self.learners = self._part(Learners(stage, model, self.placement, seed, patience))
            mending = (self._bring, self._mended.append, self._syncing)
            self.engines = self._part(Engines(stage, model, self.placement, faults, *mending))
            self.left_out = self.engines.suspects.guilty
            self.graders = self._part(Graders(stage, self.placement, patience, self._mended.append))
            self._build()
            self.connect()
        except BaseException:
            self.close(0.0)  # nobody has joined anything yet
            raise

    def _part(self, part: Any) -> Any:
        self._parts.append(part)
        return part

    def _build(self) -> None:
        learners = self.learners.build()
        if self.placement.shared:  # vLLM measures what it finds free while it starts
            self.learners.begun(learners)
        engines = self.engines.build()
        asked = engines | learners | self.graders.build()
        opened = self.learners.begun(asked)[: len(engines)]
        self.opened = opened[0] if opened else None
        for part in self._parts:
            part.team.know()

    # How weights travel

    def connect(self, engines: Sequence[int] | None = None) -> None:
        """Settle how weights travel to these engines (all of them), and tell everyone.

        Raises:
            ValueError: they cannot travel as asked, or at all, from where everyone sits.
        """
        mine = self.engines.present if engines is None else list(engines)
        if not mine:
            return
        learners, team = len(self.learners.team), self.engines.team
        asked = self.learners.team.every("where")
        for index in mine:
            asked |= team.ask(index, "where", group="pulse")
        seats: list[Seat] = gather(asked, self.stage.sync.deadline)
        sync, learner, theirs = self.stage.sync, seats[0], seats[learners:]
        if self._kind is None:
            engine = self.stage.rollout.engine.name
            self._kind = choose(sync, engine, seats[:learners], theirs)
        each = ways(self._kind, sync, learner, theirs)
        kind = "tcp" if "tcp" in each else each[0]
        source = self.learners.connect(kind, names(theirs, learner, mine))
        firsts = accumulate((seat.readers for seat in theirs), initial=0)
        self._sources = {i: source.of(n).by(w) for i, n, w in zip(mine, firsts, each, strict=False)}
        self._tied = [(index, team.lives[index]) for index in mine]

    def sync(self) -> None:
        """Every rank takes part in publishing; every engine loads the same buckets.

        Raises:
            Lost: a learner died, or does not answer.
            SyncError: what was sent did not arrive, though everyone is there.
        """
        with self._syncing:
            self.version += 1
            if len(self.engines):
                self._take_turns("wake")
                self._load(joining=self.engines.loaded())

    def _load(self, alone: int | None = None, joining: Sequence[int] = ()) -> None:
        """The learners' weights, to every engine that is there or joins, or to one; those found
        lost are made anew meanwhile."""
        for tries in range(1, TRIES + 1):
            there = [i for i in self.engines.present if alone in (None, i)]
            engines = sorted([*there, *joining])
            if not engines:
                return
            try:
                with self.engines.heart.answering(engines):
                    self._try_to_load(engines, alone is not None)
                for index in joining:
                    self.engines.join(index)
                return
            except (Lost, SyncError) as error:
                mended = self._mend(there, error) or bool(joining)
                for index in joining:  # whoever it was: next time
                    self.engines.refuse(index, error)
                joining = ()
                self._tied = []  # whatever they were tied by is torn
                if tries == TRIES or not mended:
                    raise

    def _try_to_load(self, engines: Sequence[int], alone: bool) -> None:
        if self._tied != [(index, self.engines.team.lives[index]) for index in engines]:
            self.connect(engines)
        asked, learned = self.learners.publish()
        if not alone:
            self._learned = learned
        # alone, after a step, it has now what the next sync brings to all
        version = self.version + int(learned != self._learned)
        for index in engines:
            asked |= self.engines.team.ask(index, "receive", self._sources[index], version)
        gather(asked, self.stage.sync.deadline)

    def _mend(self, engines: Sequence[int], error: Exception) -> bool:
        """Start those of the engines anew that are dead or do not answer: whether there are any.

        Raises:
            Lost: it is a learner.
        """
        sick = self.engines.sick(engines)
        for index in sick:
            if index in self._sources and self._kind in ("shm", "tcp"):
                refuse(self._sources[index], "died")
        self.learners.check(hung=True)
        for index in sick:
            life = self.engines.team.lives[index]
            self.engines.revive(index, life, str(error), weights=False)
        return bool(sick)

    def _bring(self, engine: int) -> None:
        """To an engine that was made anew what the learners hold."""
        with self._syncing:
            self._load(engine)

    # What is made

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
        """Whole groups go to engines by turns, one ordered list each; or to who has room."""
        self._take_turns("wake")
        return (self.engines.rollout if self._by_turns else self.engines.dispatch.run)(jobs)

    def flow(self) -> Lots:
        """Lots go to who has room, whatever the number of engines; asleep ones wake for them."""
        return self.engines.flow(partial(self._take_turns, "wake"))

    def abort(self) -> None:
        self.engines.abort()

    def probe(self, ids: Sequence[Ids]) -> list[Floats]:
        """By another engine at each version."""
        self._take_turns("wake")
        scores: list[Floats] = self.engines.some(self.version, "score", ids)
        return scores

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        text: list[str] = self.engines.some(0, "decode", ids)
        return text

    def grade(self, items: Sequence[Item]) -> list[Verdict]:
        return self.graders.grade(items)

    def grading(self) -> dict[str, float]:
        return self.graders.stats()

    def faults(self) -> list[Fault]:
        """What was mended since this was last asked."""
        mended = self._mended[:]
        del self._mended[: len(mended)]
        return mended

    # What is learned

    def score(self, batch: Batch, which: str) -> list[Floats]:
        self._take_turns("sleep")
        return self.learners.score(batch, which)

    def norms(self, batch: Batch, scope: str) -> list[Floats]:
        self._take_turns("sleep")
        return self.learners.norms(batch, scope)

    def variance(self, shares: Sequence[Sequence[Sequence[MicroBatch]]]) -> tuple[float, float]:
        self._take_turns("sleep")
        return self.learners.variance(shares)

    def step(self, batch: Batch) -> dict[str, Any]:
        self._take_turns("sleep")
        return self.learners.step(batch) | self.nodes.figures()

    def restart(self, lost: Lost) -> None:
        """Weights as they were when the stage began, by learners started anew; engines that are
        still there stay.

        Raises:
            Lost: a learner again.
        """
        began = time.monotonic()
        with self._syncing:
            self._take_turns("sleep")
            self._tied, self.version, self._learned = [], -1, 0
            self.learners.restart()
            self.engines.again()
            self.sync()
        what = f"{lost}; all learners were started anew"
        self._mended.append(Fault("learner", lost.index, what, time.monotonic() - began))

    def _take_turns(self, what: str) -> None:
        """Engines on the learners' own GPUs `sleep`, or `wake` when the learners make room."""
        sleeps = getattr(self.stage.rollout.engine, "sleep", True)  # vLLM's has to be asked for
        if not (self.placement.shared and sleeps) or what == self._turn:
            return
        if what == "wake":
            self.learners.rest()
        self.engines.turn(what)
        self._turn = what

    def save(self, folder: Path) -> None:
        self.learners.save(folder)

    def load(self, folder: Path) -> None:
        self.learners.load(folder)

    def export(self, folder: Path) -> None:
        self.learners.export(folder)

    def profile(self, folder: Path | None) -> None:
        asked: dict[Any, Who] = {}
        for part in self._parts:
            for index in range(len(part.team)):
                name = f"{part.team.role}-{index}"
                asked |= part.team.ask(index, "profile", str(folder) if folder else None, name)
        with contextlib.suppress(Lost):  # it is not missed before it is needed
            gather(asked)

    def close(self, patience: float = CLOSE_S) -> None:
        """Learners leave their process group cleanly, in so many seconds; then every actor is
        ended."""
        import ray

        if not ray.is_initialized():
            return
        leaving: list[Any] = []
        for part in self._parts:
            if patience and part.team.role != "rollout":
                leaving += part.team.every("close")
        with contextlib.suppress(Exception):  # whatever is already dead need not say goodbye
            ray.wait(leaving, num_returns=len(leaving), timeout=patience) if leaving else None
        for part in self._parts:
            part.close()
        self._parts.clear()
        self.nodes.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        at_once = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.close(HURRY_S if at_once else CLOSE_S)
