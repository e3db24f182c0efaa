"""Crew: the thread that hands items to worker processes, and ends those that take too long.

A worker holds one item at a time: the sockets are bounded, and a sick item costs nobody but
itself and its worker. A worker that is at an item for longer than `GRACE` of the deadline is
counted apart and its place is filled, so that a few items that hang do not stop the others.

Whatever ends a process (the kernel for want of memory, an operator, a crash), the item is given to
another worker: its verdict does not depend on it. An item that ends its process itself does so
`MAX_TRIES` times and is an error. A deadline that has passed and a memory limit that was reached
are verdicts, not tried again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import selectors
import socket
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Any

from rewards.grader import failed
from rewards.service.backlog import Backlog
from rewards.service.processes import START_SECONDS, Template, Worker, ending
from rewards.service.worker import OUT_OF_MEMORY, verdict_of
from rewards.verdict import Verdict

MAX_STARTS = 5
"""Starts that may fail in a row before the waiting items are given up as errors."""
PAUSE_SECONDS = 0.2
"""Before the second of them, twice as long before each next one: want of processes may pass."""
MAX_TRIES = 3
"""Times that an item may be under way when its worker, or the template, ends: then it is an error.
As often the first start may be cut short."""
GRACE = 0.05
"""Share of the deadline after which another worker takes the place of one that is not back."""
EXTRA = 2
"""So many times as many such workers may there be."""
SERVED = 5000
"""Items after which a worker is replaced: what a verifier leaks is bounded."""
_LATE = f"not ready after {START_SECONDS:.0f} s"


class Crew:
    """`size` workers for the verifier that `setup` names (see `rewards.service.worker.frame`).

    Raises:
        ValueError: the verifier does not start.
    """

    def __init__(
        self, setup: bytes, size: int, deadline: float, name: str, backlog: Backlog
    ) -> None:
        self.setup, self.size, self.deadline, self.name = setup, size, deadline, name
        self.killed = 0
        """Workers killed at the deadline."""
        self.crashed = 0
        """Workers that ended at an item, by it or from outside."""
        self.retried = 0
        """Times that an item was given up by the process that ended and is tried once more."""
        self.slow = 0
        """Items that took longer than the grace."""
        self.service: deque[float] = deque(maxlen=8192)
        """Seconds that the latest items were with a worker."""
        self.wait: deque[float] = deque(maxlen=8192)
        """Seconds that the latest items waited for one."""
        self._backlog, self._numbers = backlog, itertools.count(1)
        self._failures, self._trouble, self._not_before = 0, "", 0.0
        self._hopeless = False
        """A start has failed in so many words."""
        self._template: Template | None = None
        self._workers: list[Worker] = []
        self._dying: dict[int, tuple[Worker, float]] = {}
        """By number: ended too early, and when; the template has yet to say how."""
        self._closing = self._rung = False
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._begun: Future[None] = Future()
        backlog.wake = self._ring
        self.thread = threading.Thread(target=self._main, name="verifier pool", daemon=True)
        self.thread.start()
        try:
            problem = self._begun.exception()
        except BaseException:
            self.close()
            raise
        if problem is not None:
            self.close()
            raise problem  # here: a mistake that is told, of our own frame

    def close(self) -> None:
        """End every process. Takes no lock: the garbage collector may call it anywhere."""
        self._closing = True
        self._rung = False
        self._ring()
        if threading.current_thread() is not self.thread:
            self.thread.join()

    def pids(self) -> list[int]:
        """Process ids of the template and of the workers at this moment."""
        template = self._template
        own = [template.process.pid] if template else []
        return own + [worker.pid for worker in list(self._workers) if worker.pid]

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            with contextlib.suppress(OSError):  # full: it is being told; closed: too late
                self._ringer.send(b"!")

    def _main(self) -> None:
        problem: Exception = ValueError("verifier pool: it is closed; make another")
        try:
            while not self._closing:
                self._turn()
        except BaseException as bug:
            problem = RuntimeError(f"verifier pool: its dispatcher failed: {bug!r}")
            raise
        finally:
            self._backlog.close(problem)
            if self._template is not None:
                self._template.end(self._pids_of_workers())
            for worker in self._workers:
                worker.socket.close()
            self._selector.close()
            self._ringer.close()
            self._bell.close()
            if not self._begun.done():
                self._begun.set_exception(problem)

    def _turn(self) -> None:
        self._staff()
        self._hand_out()
        for key, _ in self._selector.select(self._pause()):
            if key.fileobj is self._bell:
                with contextlib.suppress(BlockingIOError):
                    self._bell.recv(1 << 12)
                self._rung = False  # not before: a ring between the two would be the last
            elif isinstance(key.data, Template):
                self._news(key.data)
            elif key.data in self._workers:
                key.data.push()
                self._listen(key.data)
        self._overdue(time.monotonic())

    # staff

    def _staff(self) -> None:
        """Keep `size` workers at hand beside those that are slow."""
        if self._begun.done():
            served = any(worker.pid for worker in self._workers)
            hopeless = self._failures >= MAX_STARTS and not served
        else:
            hopeless = self._hopeless or self._failures >= MAX_TRIES
        if hopeless:
            self._give_up()
        elif not self._failures or (self._needed and time.monotonic() >= self._not_before):
            try:
                self._recruit()
            except OSError as problem:  # no process or file left
                self._failed(str(problem), told=True)

    @property
    def _needed(self) -> bool:
        return self._backlog.waiting > 0 or not self._begun.done()

    def _recruit(self) -> None:
        if self._template is None:
            if self._needed:  # not in vain again and again
                self._template = Template(self.setup)
                self._selector.register(self._template.socket, selectors.EVENT_READ, self._template)
        elif self._template.ready:
            at_hand = sum(not worker.slow for worker in self._workers)
            most = (1 + EXTRA) * self.size
            for _ in range(min(self.size - at_hand, most - len(self._workers))):
                worker = Worker(next(self._numbers), self.setup, self._template)
                self._workers.append(worker)
                self._watch(worker)

    def _give_up(self) -> None:
        if not self._begun.done():
            problem = f"verifier '{self.name}' does not start: {self._trouble}"
            self._begun.set_exception(ValueError(problem))
            self._closing = True
        lost = failed(self.name, f"no worker starts: {self._trouble}")
        while job := self._backlog.take():
            self._backlog.finish(job, lost)
        self._failures = 0

    def _failed(self, trouble: str, told: bool = False) -> None:
        """Starts that fail together are one failure. `told`: another would fail as well."""
        now, self._trouble = time.monotonic(), trouble
        self._hopeless |= told
        if not self._failures or now >= self._not_before:
            self._not_before = now + PAUSE_SECONDS * 2 ** min(self._failures, MAX_STARTS)
            self._failures += 1

    def _watch(self, worker: Worker) -> None:
        """Listen to the worker, and for room in its socket while something is to be written."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.outbox else 0)
        known = self._selector.get_map().get(worker.socket)
        if known is None:
            self._selector.register(worker.socket, events, worker)
        elif known.events != events:
            self._selector.modify(worker.socket, events, worker)

    def _dismiss(self, worker: Worker) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.socket)
        worker.socket.close()
        if self._template is not None:
            self._template.kill(worker.number)

    def _pids_of_workers(self) -> list[int]:
        dying = [worker for worker, _ in self._dying.values()]
        return [worker.pid for worker in (*self._workers, *dying) if worker.pid]

    # items

    def _hand_out(self) -> None:
        idle = [worker for worker in self._workers if worker.idle]
        while idle and self._backlog.waiting:
            worker = idle.pop(0)
            if worker.gone:
                self._unasked(worker)
                continue
            job = self._backlog.take()
            if job is None:
                return
            self.wait.append(time.monotonic() - job.asked)
            worker.give(job)
            self._watch(worker)

    def _done(self, worker: Worker, verdict: Verdict, moment: float) -> None:
        job, worker.job = worker.job, None
        assert job is not None
        self.service.append(moment - worker.since)
        self._backlog.finish(job, verdict)

    def _listen(self, worker: Worker) -> None:
        """Take what the worker says."""
        reply = worker.pull()
        self._watch(worker)
        if reply == b"":
            return
        if worker.pid is None:
            self._started(worker, reply)
        elif worker.job is None:
            self._unasked(worker)
        elif reply is not None and (verdict := verdict_of(reply)):
            self._done(worker, verdict, time.monotonic())
            worker.slow = False
            at_hand = sum(not other.slow for other in self._workers)
            if worker.served >= SERVED or at_hand > self.size:
                self._dismiss(worker)
        else:
            self._mourn(worker)

    def _started(self, worker: Worker, reply: bytes | None) -> None:
        message: Any = {}
        with contextlib.suppress(ValueError):
            message = json.loads(reply or b"{}")
        if "pid" in message:
            worker.pid, self._failures = message["pid"], 0
            if self._template is not None:
                self._template.proved = True
            if not self._begun.done() and all(other.pid for other in self._workers):
                self._begun.set_result(None)
            return
        if "failed" in message:
            self._dismiss(worker)
            self._failed(message["failed"], told=True)
        else:
            self._mourn(worker)

    # trouble

    def _unasked(self, worker: Worker) -> None:
        """It has ended, or spoken, without an item: replaced, if it was ever of use."""
        self._dismiss(worker)
        if not worker.served:
            self._failed("a worker ended before it was given anything")

    def _mourn(self, worker: Worker) -> None:
        self._dismiss(worker)
        self._dying[worker.number] = worker, time.monotonic()

    def _news(self, template: Template) -> None:
        """What the template says: it is ready or cannot be, or a worker has ended."""
        events = template.events()
        if events is None:
            return self._lost()
        for event in events:
            if "failed" in event:
                return self._lost(event["failed"])
            if "ready" in event:
                template.ready = True
            else:
                self._buried(event["dead"], event.get("status"), event.get("why", ""))
        return None

    def _buried(self, number: int, status: int | None, why: str) -> None:
        for worker in [worker for worker in self._workers if worker.number == number]:
            for _ in range(2):  # its last words, and the end of them
                if worker in self._workers:
                    self._listen(worker)
            if worker in self._workers:
                self._mourn(worker)
        if number not in self._dying:
            return None
        worker, moment = self._dying.pop(number)
        how = why if status is None else ending(status)
        if worker.job is None:
            return self._failed(how)
        self.crashed += 1
        if status == OUT_OF_MEMORY:
            return self._done(worker, failed(self.name, f"the worker ended: {how}"), moment)
        return self._undone(worker, how)

    def _undone(self, worker: Worker, how: str) -> None:
        """Its item is tried again, or has been tried often enough."""
        job, worker.job = worker.job, None
        assert job is not None
        job.tries += 1
        if job.tries < MAX_TRIES:
            self.retried += 1
            self._backlog.put_back(job)
        else:
            why = f"{MAX_TRIES} times its process ended under it, at last: {how}"
            self._backlog.finish(job, failed(self.name, why))

    def _overdue(self, now: float) -> None:
        """End what takes too long, and what nobody waits for any more."""
        template = self._template
        if template and not template.ready and now >= template.due:
            return self._lost(_LATE)
        if any(now >= moment + START_SECONDS for _, moment in self._dying.values()):
            return self._lost("it does not say how a worker ended")
        for worker in [worker for worker in self._workers if not worker.idle]:
            if worker.job is None:
                if now >= self._due(worker):
                    return self._lost(_LATE)
            elif self._backlog.abandon(worker.job):
                self._dismiss(worker)
            elif now >= worker.since + self.deadline:
                self._timeout(worker)
            elif not worker.slow and now >= self._due(worker):
                worker.slow, self.slow = True, self.slow + 1
        return None

    def _timeout(self, worker: Worker) -> None:
        self._listen(worker)  # it may be this process that had no time
        if worker.job is None or worker not in self._workers:
            return
        self.killed += 1
        self._dismiss(worker)
        late = failed(self.name, f"no verdict after {self.deadline:g} s", "timeout")
        self._done(worker, late, time.monotonic())

    def _lost(self, trouble: str = "") -> None:
        """The template has ended, or is of no use, and with it go its workers."""
        template, self._template = self._template, None
        assert template is not None
        self._selector.unregister(template.socket)
        ended = template.end(self._pids_of_workers())
        how = trouble or ended
        dying, self._dying = self._dying, {}
        lost = [*self._workers, *(worker for worker, _ in dying.values())]
        for worker in list(self._workers):
            self._dismiss(worker)
        for worker in lost:
            if worker.job is not None:
                self._undone(worker, how)
        if not template.proved:
            self._failed(how, told=bool(trouble))

    def _due(self, worker: Worker) -> float:
        """When something must be done about a worker that is not idle."""
        if worker.job is None:
            return worker.since + START_SECONDS
        return worker.since + self.deadline * (1 if worker.slow else GRACE)

    def _pause(self) -> float | None:
        """Seconds until something must be done; None: until something happens."""
        dues = [self._due(worker) for worker in self._workers if not worker.idle]
        dues += [moment + START_SECONDS for _, moment in self._dying.values()]
        if self._template is not None and not self._template.ready:
            dues.append(self._template.due)
        now = time.monotonic()
        if self._failures and self._needed and self._not_before > now:
            dues.append(self._not_before)
        return max(0.0, min(dues) - now) if dues else None
