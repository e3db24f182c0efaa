"""The rollout worker: one engine, one running batch, however many callers.

`samplers/run.py` says what a budget means; the worker moves every rollout on between engine steps,
so no phase waits for the slowest of a batch. Evaluation and `laconic generate` use it too.

Several threads may call at once. What they ask for stands in one line; whoever finds nobody at the
engine steps it for all until its own is done, and then another one takes over.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from samplers import render
from samplers.check import check_plan
from samplers.engines import base
from samplers.flow import Flow
from samplers.render import Renderer, ThinkingConfig
from samplers.ring import Source
from samplers.run import THOUGHT, Place, Run, sampled, split
from samplers.types import Floats, Ids, Job, Request, Rollout
from samplers.watched import Watched

__all__ = ["THOUGHT", "RolloutWorker", "Run", "split"]


@dataclass(eq=False)
class _Asked:
    """What a thread waits for."""

    ended: bool = False
    value: Any = None
    error: BaseException | None = None

    def end(self, value: Any = None, error: BaseException | None = None) -> None:
        self.value, self.error, self.ended = value, error, True


@dataclass(eq=False)
class Call(_Asked):
    """Jobs that come back together: their rollouts on the way, and the list of them as `value`."""

    jobs: Sequence[Job] = ()
    number: int = -1
    runs: list[Run] = field(default_factory=list)
    open: int = 0
    """Requests whose completion has not come."""
    aborted: frozenset[tuple[int, int]] = frozenset()
    """(group, index) of rollouts that are to end."""
    canonical: Callable[[str], str] = str.strip
    """How stopping rules tell equal answers."""
    thought: list[int] = field(default_factory=list)
    """Jobs whose thought has ended, in the order in which they did."""


@dataclass(eq=False)
class _Errand(_Asked):
    """Something to do with the engine between two steps."""

    do: Callable[[], Any] = lambda: None
    drained: bool = False
    """Only when nothing is in flight; whatever was asked later waits behind it."""


class RolloutWorker:
    """Makes rollouts with one engine. Jobs come in lists, a few calls a step. Thread-safe.

    An error of the engine reaches every caller that waits for it.
    """

    def __init__(self, engine: base.Engine, renderer: Renderer) -> None:
        self.engine, self.renderer = engine, renderer
        self.turn = threading.Condition()
        """Held by who changes what others wait for."""
        self._led = False
        self._line: deque[_Asked] = deque()
        self._calls: dict[int, Call] = {}  # in flight, by number
        self._owners: dict[int, tuple[int, int, Place]] = {}  # request: call, rollout, place
        self._numbers, self._requests = 0, itertools.count()
        kinds = ("rollouts", "thought", "answer", "forced", "looks", "tried", "exits")
        self._stats = dict.fromkeys(kinds, 0)
        self._seconds = 0.0
        self.beats = 0
        """Engine steps, and whatever else was done: who watches sees it grow while it works."""

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        config: base.Config | None = None,
        thinking: ThinkingConfig | None = None,
        dtype: str | None = None,
        trust_remote_code: bool = False,
    ) -> RolloutWorker:
        """Engine and renderer of a model folder or hub name; `dtype` overrides the config's."""
        config = config or base.Config()
        if dtype is not None:
            config = config.model_copy(update={"dtype": dtype})
        renderer = render.load(model, thinking, trust_remote_code)
        return cls(base.start(model, config, trust_remote_code), renderer)

    def generate(self, jobs: Sequence[Job]) -> list[Rollout]:
        """Make all rollouts, in job order.

        Raises:
            ValueError: a plan that this model, prompt or context cannot hold; nothing is generated.
        """
        rollouts: list[Rollout] = self._wait(Call(jobs=jobs))
        return rollouts

    def flow(self) -> Flow:
        """Several lists in flight in the one running batch, each of them back when it is done."""
        return Flow(self)

    def between(self, do: Callable[[], Any], *, drained: bool = False) -> Any:
        """Run `do` between two engine steps and return what it returns.

        Args:
            drained: wait until nothing is in flight, and let whatever is asked later wait; else
                it runs before the next step.
        """
        return self._wait(_Errand(do=do, drained=drained))

    def load_weights(
        self,
        weights: Iterable[tuple[str, Any]],
        version: int | None = None,
        *,
        in_flight: bool = False,
    ) -> None:
        """New weights for the engine.

        Args:
            in_flight: at once, so that a rollout may hold tokens of several versions (its spans
                say which); else when all that has begun is finished, and before anything new is.
        """
        self.between(lambda: self.engine.load_weights(weights, version), drained=not in_flight)

    def receive(self, source: Source, version: int, *, in_flight: bool = False) -> None:
        """`load_weights` with what a learner sends to `source`."""
        self.between(lambda: self.engine.receive(source, version), drained=not in_flight)

    def score(self, ids: Sequence[Ids], temperature: float = 1.0) -> list[Floats]:
        """Teacher-forced logprobs of ids[1:] of each sequence, under the weights held now."""
        scores: list[Floats] = self.between(lambda: self.engine.score(ids, temperature))
        return scores

    def abort(self, rollouts: Iterable[tuple[int, int]] | None = None) -> None:
        """End rollouts that were asked for, by (group, index), before the next step; None: all."""
        wanted = None if rollouts is None else frozenset(rollouts)
        with self.turn:
            waiting = [asked for asked in self._line if isinstance(asked, Call)]
            for call in (*self._calls.values(), *waiting):
                every = frozenset((job.group, job.index) for job in call.jobs)
                call.aborted |= every if wanted is None else every & wanted

    def cancel(self, calls: Iterable[Call], jobs: Iterable[Job] | None = None) -> None:
        """`abort` all rollouts of calls that were submitted, or those of some of their jobs."""
        wanted = None if jobs is None else frozenset((job.group, job.index) for job in jobs)
        with self.turn:
            for call in calls:
                every = frozenset((job.group, job.index) for job in call.jobs)
                call.aborted |= every if wanted is None else every & wanted

    # One line, one leader

    def _wait(self, asked: _Asked) -> Any:
        """Queue `asked` and come back when it has ended."""
        self._queue(asked)
        self.until(lambda: asked.ended)
        if asked.error is not None:
            raise asked.error
        return asked.value

    def _queue(self, asked: _Asked) -> None:
        with self.turn:
            self._line.append(asked)

    def submit(self, jobs: Sequence[Job], canonical: Callable[[str], str] = str.strip) -> Call:
        """`generate` without waiting: it ends while somebody waits `until` something."""
        call = Call(jobs=jobs, canonical=canonical)
        self._queue(call)
        return call

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for what is in the line or in flight to make `done` true, leading where nobody
        does. An error of the engine ends all of it, and is not raised here."""
        with self.turn:
            self.turn.wait_for(lambda: done() or not self._led)
            leads = not done()
            self._led = self._led or leads
        if leads:
            self._lead(done)

    def _lead(self, done: Callable[[], bool]) -> None:
        started = time.perf_counter()
        try:
            while not done():
                while (due := self._due()) is not None:
                    self._begin(due)
                if self._owners:
                    self._step()
        except BaseException as error:
            self._fail(error)
        finally:
            with self.turn:
                self._seconds += time.perf_counter() - started
                self._led = False
                self.turn.notify_all()

    def _due(self) -> _Asked | None:
        """The next of the line, if it may begin."""
        with self.turn:
            first = self._line[0] if self._line else None
            if isinstance(first, _Errand) and first.drained and self._calls:
                return None
            if isinstance(first, Call):
                first.number, self._numbers = self._numbers, self._numbers + 1
                self._calls[first.number] = first
            return self._line.popleft() if first is not None else None

    def _begin(self, asked: _Asked) -> None:
        """A mistake in what was asked belongs to who asked it."""
        self.beats += 1
        try:
            if isinstance(asked, _Errand):
                self._end(asked, asked.do())
            elif isinstance(asked, Call):
                asked.runs = self._runs(asked)
                self._send(
                    (asked.number, r, x) for r, run in enumerate(asked.runs) for x in run.begin()
                )
                asked.thought = [r for r, run in enumerate(asked.runs) if not run.thinking]
                self._finish([asked])
        except BaseException as error:
            if isinstance(asked, Call):
                self._drop([asked])
            self._end(asked, error=error)
            if not isinstance(error, Exception):  # an interrupt is everybody's
                raise

    def _step(self) -> None:
        """One engine step for all calls in flight."""
        self._abort_marked()
        owners = self._owners
        made = self.engine.step()
        self.beats += 1
        # What nobody waits for any more was left behind by a call that failed.
        self.engine.release(c.handle for c in made if c.handle is not None and c.id not in owners)
        done = sorted((c for c in made if c.id in owners), key=lambda c: owners[c.id])
        ended = [(*owners.pop(c.id), c) for c in done]
        for n, r, _, c in ended:
            self._calls[n].open -= 1
            if c.handle is not None:
                self._calls[n].runs[r].over.append(c.handle)
        # Follow-ups are admitted in rollout order, so a run's tokens can be repeated.
        self._send((n, r, x) for n, r, p, c in ended for x in self._calls[n].runs[r].take(p, c))
        for n, r in dict.fromkeys((n, r) for n, r, *_ in ended):
            run = self._calls[n].runs[r]
            self.engine.release(run.over)
            run.over.clear()
        # Once each: a rule may have had several completions of one thought.
        for n, r in dict.fromkeys((n, r) for n, r, place, _ in ended if place.cut < 0):
            run = self._calls[n].runs[r]
            if not run.thinking and run.thought.finish != "abort":
                self._calls[n].thought.append(r)
        self._finish([self._calls[n] for n in dict.fromkeys(n for n, *_ in ended)])

    def _send(self, new: Iterable[tuple[int, int, tuple[Place, Request]]]) -> None:
        requests = []
        for call, run, (place, request) in new:
            requests.append(request)
            self._owners[request.id] = (call, run, place)
            self._calls[call].open += 1
        self.engine.add(requests)

    def _finish(self, calls: Iterable[Call]) -> None:
        for call in calls:
            if not call.open:
                rollouts = [run.finish() for run in call.runs]
                for run, rollout in zip(call.runs, rollouts, strict=True):
                    self._count(rollout, 1)
                    if run.job.resume is not None:  # what it came with was counted before
                        self._count(run.job.resume, -1)
                with self.turn:
                    del self._calls[call.number]
                self._end(call, rollouts)

    def _end(self, asked: _Asked, value: Any = None, error: BaseException | None = None) -> None:
        with self.turn:
            asked.end(value, error)
            self.turn.notify_all()

    def _fail(self, error: BaseException) -> None:
        """The engine failed: so did everything that waits for it."""
        with self.turn:
            waiting = [*self._calls.values(), *self._line]
            self._line.clear()
        self._drop([asked for asked in waiting if isinstance(asked, Call)])
        for asked in waiting:
            self._end(asked, error=error)

    def _drop(self, calls: Sequence[Call]) -> None:
        """Forget calls that failed; the engine may still hold requests of theirs."""
        numbers = {call.number for call in calls}
        lost = [i for i, (call, _, _) in self._owners.items() if call in numbers]
        with suppress(Exception):  # it may be the engine that failed
            self.engine.abort(lost)
            runs = [run for call in calls for run in call.runs]
            self.engine.release(h for run in runs for h in (*run.held, *run.over))
        for i in lost:
            del self._owners[i]
        with self.turn:
            for number in numbers:
                self._calls.pop(number, None)

    def _abort_marked(self) -> None:
        marked = {
            (number, r)
            for number, call in self._calls.items()
            if call.aborted
            for r, job in enumerate(call.jobs)
            if (job.group, job.index) in call.aborted
        }
        if marked:
            self.engine.abort([i for i, (n, r, _) in self._owners.items() if (n, r) in marked])

    # Jobs

    def _runs(self, call: Call) -> list[Run]:
        runs: list[Run] = []
        for job in call.jobs:
            last = runs[-1] if runs else None
            again = last and last.job.prompt == job.prompt and last.plan == job.plan
            if last and again:
                ids = last.prompt_ids  # a group renders its prompt once
            else:
                ids = self.renderer.render(job.prompt, job.plan)
            if not again or job.resume is not None:
                check_plan(
                    job.plan, job.prompt, ids, self.renderer, self.engine.context, job.resume
                )
            if job.plan.stopping is None:
                runs.append(Run(job, ids, self.renderer, self._requests))
                continue
            ramps = self.engine.ramps
            runs.append(Watched(job, ids, self.renderer, self._requests, call.canonical, ramps))
        return runs

    @property
    def busy(self) -> bool:
        """Somebody waits for something."""
        return bool(self._led or self._line or self._calls)

    def stats(self) -> dict[str, float]:
        """Since the start: rollouts, tokens by kind, seconds at work, and the engine's counters."""
        return {**self._stats, "seconds": self._seconds, **self.engine.counters}

    def _count(self, rollout: Rollout, times: int) -> None:
        answers = [a.tokens for a in rollout.made]
        here = sum(map(sampled, answers))
        self._stats["rollouts"] += times * (not rollout.unfinished)
        self._stats["thought"] += times * len(rollout.thought)
        self._stats["answer"] += times * here
        self._stats["forced"] += times * (sum(map(len, answers)) - here)
        if rollout.watch is not None:
            self._stats["looks"] += times * rollout.watch.looks
            self._stats["tried"] += times * rollout.watch.sampled
            self._stats["exits"] += times * (rollout.watch.exit is not None)
