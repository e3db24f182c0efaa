"""The rollout workers: who makes what, and how an engine that is lost is made anew.

What was being made by a lost engine is made again, whole, by the one that takes its place and
holds the weights that the others hold: where lists are fixed, the same rollouts bit for bit.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

from launch.actors import RolloutActor
from launch.answers import Who, gather, health, result, started
from launch.dispatch import CALLS, Columns, Dispatch, Lots, outbound, unpacked
from launch.heart import Heart
from launch.placement import Placement
from launch.streams import Streams
from launch.suspects import Suspects, ordered
from launch.team import Team
from samplers.engines.base import environment
from samplers.types import Ids, Job, Prompt, Rollout
from trainer.config import Stage
from trainer.faults import Fault, FaultConfig, Lost
from trainer.types import Floats

THREADS = {"rollout": 2 * CALLS, "flow": 1, "abort": 1, "pulse": 1}
"""Of an engine's actor, beside the main one: rollouts go on beside each other and beside weights;
lots are added in the order of asking, and none between an engine's falling asleep and waking."""
TRIES = 3
"""Times that an engine is made anew in vain before the run fails."""
PATIENCE_S = 10.0
"""What an engine that lives may take to say so, whatever it is at."""


class Engines:
    """One rollout worker each, of a stage.

    Args:
        weights: brings the current weights to a new engine, given its number.
        told: called with each loss that was mended.
        mending: held while an engine is made anew, and by who brings weights to all.
    """

    def __init__(
        self,
        stage: Stage,
        model: str,
        placement: Placement,
        faults: FaultConfig,
        weights: Callable[[int], None],
        told: Callable[[Fault], None],
        mending: threading.RLock,
    ) -> None:
        self._build = ("build", stage, model, placement.device)
        variables = environment(stage.rollout.engine)
        options = {"runtime_env": {"env_vars": variables}} if variables else {}
        self.team = Team("rollout", RolloutActor, placement, concurrency_groups=THREADS, **options)
        self._weights, self._told, self._mending = weights, told, mending
        self._sent: dict[Any, tuple[int, int]] = {}  # engine and its life, by reference
        self._ended, self._flows = threading.Event(), count()
        self.suspects = Suspects(faults.kills, self._quarantined)
        self._reviving: set[int] = set()
        self._beats: dict[int, Any] = {}
        self._hangs: dict[int, str] = {}
        self.heart = Heart(self._pulse, self._hung, faults.heartbeat)
        self.dispatch = Dispatch(
            len(self.team),
            stage.rollout.engine.slots,
            self._send,
            self._take,
            self._came,
            self.suspects.part,
        )

    def __len__(self) -> int:
        return len(self.team)

    def build(self) -> dict[Any, Who]:
        """Whether its chat template opens the thought, of each."""
        return self.team.every(*self._build)

    # What is made

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
        """Whole groups by turns, one ordered list to each engine."""
        numbers = {group: i for i, group in enumerate(dict.fromkeys(j.group for j in jobs))}
        lists: list[list[Job]] = [[] for _ in range(len(self))]
        wanted, none = self.suspects.part(jobs)
        for job in wanted:
            lists[numbers[job.group] % len(self)].append(job)
        at = {self._send(e, mine): (e, mine) for e, mine in enumerate(lists) if mine}
        made = none
        while at:
            ref, packed = self._take(list(at))
            engine, mine = at.pop(ref)
            rollouts = self._came(engine, mine, packed)
            if rollouts is None:
                at[self._send(engine, mine)] = engine, mine
                continue
            made += rollouts
        return ordered(jobs, made)

    def flow(self, wake: Callable[[], None]) -> Lots:
        """Lots go to who has room, whatever the number of engines; `wake` comes before each."""
        streams = Streams(self.team, next(self._flows), wake, self._ended, self.revive, self.heart)
        return self.dispatch.flow(streams)

    def abort(self) -> None:
        """For a run that ends, or begins again: what is being made is of no use to anybody."""
        self._ended.set()
        self.team.every("abort", group="abort")

    def again(self) -> None:
        """After an abort, or after who asked was lost: from now on it is wanted again."""
        self._ended.set()
        for index in range(len(self)):
            self.one(index, "abort", group="abort", weights=False)
        self._sent.clear()
        self.heart.forget()
        self._ended.clear()

    def one(
        self, index: int, method: str, *args: Any, group: str | None = None, weights: bool = True
    ) -> Any:
        """The answer of one; of the one in its place, where it is lost."""
        for tries in range(1, TRIES + 1):
            life = self.team.lives[index]
            try:
                with self.heart.answering([index]):
                    return gather(self.team.ask(index, method, *args, group=group))[0]
            except Lost as lost:
                if tries == TRIES:
                    raise
                self.revive(index, life, str(lost), weights=weights)
        raise AssertionError("the last try returns or raises")

    def turn(self, what: str) -> None:
        """All `sleep`, or `wake`: those too that take the place of one that was lost."""
        with self.heart.answering(range(len(self))):
            asked = [
                (self.team.lives[index], self.team.ask(index, what, group="flow"))
                for index in range(len(self))
            ]
            for index, (life, one) in enumerate(asked):
                try:
                    gather(one)
                except Lost as lost:
                    self.revive(index, life, str(lost))
                    self.one(index, what, group="flow")

    def score(self, index: int, ids: Sequence[Ids]) -> list[Floats]:
        scores: list[Floats] = self.one(index, "score", ids)
        return scores

    def _send(self, engine: int, jobs: list[Job]) -> Any:
        life, (packed, resumed) = self.team.lives[engine], outbound(jobs)
        (ref,) = self.team.ask(engine, "rollout", packed, resumed, group="rollout")
        self._sent[ref] = engine, life
        self.heart.begin(engine)
        return ref

    def _take(self, refs: list[Any]) -> tuple[Any, Columns | None]:
        """The first that is done and its rollouts; None where its engine was lost: another stands
        in its place."""
        import ray

        while not self._ended.is_set():
            done, _ = ray.wait(refs, num_returns=1, timeout=0.5)
            if done:
                engine, life = self._sent.pop(done[0])
                self.heart.end(engine)
                try:
                    return done[0], result(done[0], self.team.who(engine))
                except Lost as lost:
                    self.revive(engine, life, str(lost))
                    return done[0], None
        for ref in refs:
            self.heart.end(self._sent.pop(ref)[0])
        raise RuntimeError("rollouts were aborted")

    # What is lost

    def revive(self, index: int, life: int, why: str, *, weights: bool = True) -> None:
        """Make an engine anew, once for all who saw its `life` end; it then has the weights.

        Raises:
            Lost: so did the new ones.
        """
        with self._mending:
            if self.team.lives[index] != life:
                return
            began = time.monotonic()
            with self._undisturbed(index):
                for tries in range(1, TRIES + 1):
                    try:
                        self.team.replace(index)
                        started(self.team.ask(index, *self._build))
                        self.team.know(index)
                        if weights:
                            self._weights(index)
                        break
                    except Lost as lost:
                        if lost.role != "rollout":
                            raise
                        if tries == TRIES:
                            raise Lost("rollout", index, f"could not be mended: {lost}") from None
            seconds, why = time.monotonic() - began, self._hangs.pop(index, why)
            self._told(Fault("rollout", index, f"{why}; it was started anew", seconds))

    @contextlib.contextmanager
    def _undisturbed(self, index: int) -> Iterator[None]:
        """While it starts nobody expects an engine to say anything."""
        self._reviving.add(index)
        self._beats.pop(index, None)
        try:
            yield
        finally:
            self._reviving.discard(index)

    def sick(self, engines: Iterable[int]) -> list[int]:
        """Those of `engines` that are dead, or do not answer: these are ended."""
        asked: dict[Any, Who] = {}
        for index in engines:
            asked |= self.team.ask(index, "pulse", group="pulse")
        dead, mute = health(asked, PATIENCE_S)
        for who in mute:
            self.team.kill(who.index)
        return sorted(who.index for who in (*dead, *mute))

    def _came(
        self, engine: int, jobs: Sequence[Job], packed: Columns | None
    ) -> list[Rollout] | None:
        """The rollouts of `jobs`. Where their engine was lost: if one of them was found guilty of
        it, what the others came to alone; None: they may be sent again."""
        if packed is not None:
            self.suspects.cleared(jobs)
            return unpacked(packed, jobs)
        if not self.suspects.lost(jobs):
            return None
        with self._mending:
            return self.suspects.tried(jobs, partial(self._alone, engine))

    def _alone(self, engine: int, jobs: Sequence[Job]) -> list[Rollout]:
        ref = self._send(engine, list(jobs))
        _, packed = self._take([ref])
        if packed is None:
            raise Lost("rollout", engine, "died")
        return unpacked(packed, jobs)

    def _quarantined(self, prompt: Prompt) -> None:
        what = (
            f"prompt '{prompt.id}' was with {self.suspects.kills} engines when they died, at last "
            "alone: it is left out"
        )
        self._told(Fault("rollout", -1, what))

    def _pulse(self, engine: int) -> Any:
        """What the engine said since it was last asked, which is done anew."""
        import ray

        if engine in self._reviving:
            return object()
        asked = self._beats.get(engine)
        said = None
        if asked is not None and ray.wait([asked], timeout=0)[0]:
            try:
                beats = ray.get(asked)
            except ray.exceptions.RayError:
                return object()  # it is dead, which others are about to notice
            said = (self.team.lives[engine], beats) if beats is not None else object()
            asked = None
        if asked is None:
            (self._beats[engine],) = self.team.ask(engine, "pulse", group="pulse")
        return said

    def _hung(self, engine: int, why: str) -> None:
        if engine not in self._reviving:
            self._beats.pop(engine, None)
            self._hangs[engine] = f"engine {engine} {why} and was killed"
            self.team.kill(engine)

    def close(self) -> None:
        self.heart.close()
        self.team.close()
