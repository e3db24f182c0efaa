"""The rollout workers: who makes what, and how an engine that is lost is made anew.

What was being made by a lost engine is made again, whole, by the one that takes its place and
holds the weights that the others hold: where lists are fixed, the same rollouts bit for bit.

Where there is no room for another, its node being gone, it is away: the others do its work until
there is a place again, on whatever node has joined.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from queue import Empty
from typing import Any

from launch.actors import RolloutActor
from launch.answers import Who, gather, health, result, started
from launch.dispatch import CALLS, Columns, Dispatch, Done, Lots, held
from launch.heart import Heart
from launch.placement import Placement
from launch.streams import Streams
from launch.suspects import Suspects, ordered
from launch.team import SCHEDULE_S, Team
from samplers import columns
from samplers.engines.base import environment
from samplers.types import Job, Prompt, Rollout
from trainer.config import Stage
from trainer.faults import Fault, FaultConfig, Lost, Unmended

THREADS = {"rollout": 2 * CALLS, "flow": 1, "abort": 1, "pulse": 1}
"""Of an engine's actor, beside the main one: rollouts go on beside each other and beside weights;
lots are added in the order of asking, and none between an engine's falling asleep and waking."""
TRIES = 3
"""Times that an engine is made anew in vain before the run fails."""
WAIT_S = 5.0
"""What others wait for a lost engine's new place before they do its work."""
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
        self._calls, self._sent = count(), dict[int, tuple[Any, int, int, Done]]()
        """What Ray calls it, engine, its life and who waits, by number."""
        self._ended, self._flows = threading.Event(), count()
        self.away: dict[int, dict[Any, Who]] = {}
        """Engines without a place, and what those are asked that found one, while they load."""
        self._refused: set[int] = set()
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

    @property
    def present(self) -> list[int]:
        """Those that are not away."""
        return [index for index in range(len(self)) if index not in self.away]

    def build(self) -> dict[Any, Who]:
        """Whether its chat template opens the thought, of each."""
        return self.team.every(*self._build)

    # What is made

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
        """Whole groups by turns, one ordered list to each engine. That of one that is away goes to
        the first that has nothing else to do: a list is the same bits wherever it is made."""
        numbers = {group: i for i, group in enumerate(dict.fromkeys(j.group for j in jobs))}
        lists: dict[int, list[Job]] = {}
        wanted, made = self.suspects.part(jobs)
        for job in wanted:
            lists.setdefault(numbers[job.group] % len(self), []).append(job)
        done, at = Done(), dict[int, tuple[int, int]]()
        with held() as keep:
            while lists or at:
                busy = {engine for _, engine in at.values()}
                under = {number for number, _ in at.values()}
                for number, engine in self._matched(lists.keys() - under, busy):
                    at[self._send(engine, lists[number], done)] = number, engine
                call, packed = self._take(done)
                number, engine = at.pop(call)
                rollouts = self._came(engine, lists[number], packed)
                if rollouts is not None:
                    del lists[number]
                    made += rollouts
                    keep(len(rollouts))
        return ordered(jobs, made)

    def _matched(self, lists: Iterable[int], busy: Iterable[int]) -> list[tuple[int, int]]:
        """Lists to be sent, each with its own engine, or an idle one where that is away."""
        idle = set(self.present).difference(busy)
        own = [(number, number) for number in sorted(lists) if number in idle]
        idle -= {engine for _, engine in own}
        orphans = (number for number in sorted(lists) if number in self.away)
        return own + list(zip(orphans, sorted(idle), strict=False))

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
        for index in self.present:
            with self._unless_away(index):
                self.one(index, "abort", group="abort", weights=False)
        self._sent.clear()
        self.heart.forget()
        self._ended.clear()

    def one(
        self, index: int, method: str, *args: Any, group: str | None = None, weights: bool = True
    ) -> Any:
        """The answer of one; of the one in its place, where it is lost.

        Raises:
            Lost: so were those in its place, or there is none for it any more.
        """
        for tries in range(1, TRIES + 1):
            life = self.team.lives[index]
            try:
                with self.heart.answering([index]):
                    return gather(self.team.ask(index, method, *args, group=group))[0]
            except Lost as lost:
                if tries == TRIES:
                    raise
                self.revive(index, life, str(lost), weights=weights)
                if index in self.away:
                    raise
        raise AssertionError("the last try returns or raises")

    def some(self, turn: int, method: str, *args: Any) -> Any:
        """The answer of one of those that are there, by turns."""
        while True:
            there = self.present
            index = there[turn % len(there)]
            with self._unless_away(index):
                return self.one(index, method, *args)

    @contextlib.contextmanager
    def _unless_away(self, index: int) -> Iterator[None]:
        try:
            yield
        except Lost:
            if index not in self.away:
                raise

    def turn(self, what: str) -> None:
        """All `sleep`, or `wake`: those too that take the place of one that was lost."""
        there = self.present
        with self.heart.answering(there):
            asked = [
                (index, self.team.lives[index], self.team.ask(index, what, group="flow"))
                for index in there
            ]
            for index, life, one in asked:
                try:
                    gather(one)
                except Lost as lost:
                    self.revive(index, life, str(lost))
                    with self._unless_away(index):
                        self.one(index, what, group="flow")

    def _send(self, engine: int, jobs: list[Job], done: Done) -> int:
        life, packed = self.team.lives[engine], columns.pack_jobs(jobs)
        (ref,) = self.team.ask(engine, "rollout", packed, group="rollout")
        number = next(self._calls)
        self._sent[number] = ref, engine, life, done
        ref.future().add_done_callback(lambda _: done.put(number))  # ray.wait looks through all
        self.heart.begin(engine)
        return number

    def _take(self, done: Done) -> tuple[int, Columns | None]:
        """The first that is done and its rollouts; None where its engine was lost: another stands
        in its place."""
        while not self._ended.is_set():
            with contextlib.suppress(Empty):
                number = done.get(timeout=0.5)
                ref, engine, life, _ = self._sent.pop(number)
                self.heart.end(engine)
                try:
                    return number, result(ref, self.team.who(engine))
                except Lost as lost:
                    self.revive(engine, life, str(lost))
                    return number, None
        for number, (_, engine, _, whose) in list(self._sent.items()):
            if whose is done:
                del self._sent[number]
                self.heart.end(engine)
        raise RuntimeError("rollouts were aborted")

    # What is lost

    def revive(self, index: int, life: int, why: str, *, weights: bool = True) -> None:
        """Make an engine anew, once for all who saw its `life` end; it then has the weights.
        Without a place for it, it is away.

        Raises:
            Lost: so did the new ones.
            Unmended: there is no place for any engine.
        """
        with self._mending:
            if self.team.lives[index] != life or index in self.away:
                return
            began = time.monotonic()
            with self._undisturbed(index):
                for tries in range(1, TRIES + 1):
                    try:
                        others = [one for one in self.present if one != index]
                        self.team.vacate(index)
                        if not self.team.placed(index, WAIT_S if others else SCHEDULE_S):
                            self._leave(index, why, others)
                            return
                        self.team.start(index)
                        started(self.team.ask(index, *self._build))
                        self.team.know(index)
                        if weights:
                            self._weights(index)
                        if index in self.away:
                            return
                        break
                    except Lost as lost:
                        if lost.role != "rollout":
                            raise
                        if tries == TRIES:
                            raise Lost("rollout", index, f"could not be mended: {lost}") from None
            seconds, why = time.monotonic() - began, self._hangs.pop(index, why)
            self._told(Fault("rollout", index, f"{why}; it was started anew", seconds))

    def _leave(self, index: int, why: str, others: Sequence[int]) -> None:
        """No place is left for an engine."""
        if not others:
            raise Unmended(f"{self._hangs.pop(index, why)}; {self.team.unplaced(index)}")
        self.team.lives[index] += 1  # who saw its end need not see to it again
        self.away[index] = {}
        self.dispatch.there[index] = False
        self._beats.pop(index, None)
        why = (
            f"{self._hangs.pop(index, why)}; there is no place for another: its work goes to others"
        )
        self._told(Fault("rollout", index, why))

    def loaded(self) -> list[int]:
        """Those that were away, found a place and have loaded their model: they lack the weights.
        Others that found a place begin to load. Waits for nothing."""
        import ray

        out = []
        for index, asked in list(self.away.items()):
            if not asked and self.team.placed(index, 0.0):
                self.team.start(index)
                self.away[index] = self.team.ask(index, *self._build)
            elif asked and ray.wait(list(asked), timeout=0)[0]:
                try:
                    gather(asked)
                    self.team.know(index)
                    out.append(index)
                except Exception as error:  # a node that is no good is no reason to end
                    self.refuse(index, error)
        return out

    def refuse(self, index: int, error: Exception) -> None:
        """It stays away: where it found a place it cannot work."""
        self.team.vacate(index)
        self.away[index] = {}
        why = f"{self.team.who(index)} could not join: {str(error).strip().splitlines()[0]}"
        if index not in self._refused:  # it is tried again and again
            self._refused.add(index)
            self._told(Fault("rollout", index, f"{why}; the others do its work"))

    def join(self, index: int) -> None:
        """It has the weights: from now on it is given something to do."""
        del self.away[index]
        self._refused.discard(index)
        self._beats.pop(index, None)
        self.dispatch.there[index] = True
        self._told(Fault("rollout", index, f"{self.team.who(index)} is there again"))

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
            return columns.unpack(packed, jobs)
        if not self.suspects.lost(jobs):
            return None
        with self._mending:
            return self.suspects.tried(jobs, partial(self._alone, engine))

    def _alone(self, engine: int, jobs: Sequence[Job]) -> list[Rollout]:
        engine = self.present[0] if engine in self.away else engine
        self._send(engine, list(jobs), done := Done())
        _, packed = self._take(done)
        if packed is None:
            raise Lost("rollout", engine, "died")
        return columns.unpack(packed, jobs)

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
