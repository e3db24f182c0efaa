"""Backlog: the items that callers wait for, each distinct one once, and the verdicts known so far.

Any thread may ask; one dispatcher takes. Of several callers each gets its turn, so a short call
is not stuck behind a long one. What waits is bounded, in items and in bytes: who asks beyond that
waits, and memory does not grow with what is asked.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from rewards.verdict import Verdict

MAX_BYTES = 1 << 26
"""Requests that wait or are being graded, in bytes; a larger single one goes alone."""


class Batch:
    """One call: its verdicts in the order of its items, and the future that tells them."""

    def __init__(self, size: int, silent: Verdict) -> None:
        self.verdicts = [silent] * size
        """`silent` where nothing is asked."""
        self.missing = 1
        """Items without a verdict, and one for the call while it is still asking."""
        self.shared = 0
        """Items that had been asked for already and had no verdict yet."""
        self.jobs: deque[Job] = deque()
        """What it has asked for and nobody has taken."""
        self.future: Future[list[Verdict]] = Future()

    def tell(self) -> None:
        if self.future.set_running_or_notify_cancel():  # it can be cancelled no longer
            self.future.set_result(self.verdicts)

    def fail(self, problem: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(problem)


@dataclass(slots=True, eq=False)
class Job:
    """One distinct item."""

    key: bytes
    request: bytes
    asked: float
    """Since when it waits for a worker, in seconds of the monotonic clock."""
    waiters: list[tuple[Batch, int]] = field(default_factory=list)
    """Whose item of which position it is; none: nobody wants it any more."""
    taken: bool = False
    tries: int = 0
    """How often it was under way when its process ended."""


class Backlog:
    """See the module. `limit`: items at once; `room`: verdicts kept, least recently used go."""

    def __init__(self, limit: int, room: int) -> None:
        self.wake: Callable[[], None] = lambda: None
        """Called when there is something new for the dispatcher."""
        self._limit, self._room = limit, room
        self._changed = threading.Condition()
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._asked: dict[bytes, Job] = {}
        self._turns: deque[Batch] = deque()
        self._bytes = self._blocked = self._waiting = 0
        self._closed: Exception | None = None

    @property
    def waiting(self) -> int:
        """Items that nobody has taken."""
        return self._waiting

    def ask(self, batch: Batch, at: int, key: bytes, request: bytes) -> Verdict | None:
        """The verdict if it is known, else None: the batch will get it at position `at`.

        Waits while the backlog is full. Raises what it was closed with.
        """
        with self._changed:
            for _ in self._until_room(batch, key, len(request)):
                self._blocked += 1
                try:
                    self._changed.wait()
                finally:
                    self._blocked -= 1
            if batch.future.cancelled():
                return None
            if (verdict := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                return verdict
            job = self._asked.get(key)
            if job is None:
                job = self._asked[key] = Job(key, request, time.monotonic())
                self._bytes += len(request)
                self._waiting += 1
            else:
                batch.shared += 1
            job.waiters.append((batch, at))
            batch.missing += 1
            if not job.taken:
                self._line_up(batch, job)
        self.wake()
        return None

    def _line_up(self, batch: Batch, job: Job) -> None:
        batch.jobs.append(job)
        if len(batch.jobs) == 1:
            self._turns.append(batch)

    def _until_room(self, batch: Batch, key: bytes, size: int) -> Iterator[None]:
        while not batch.future.cancelled():
            if self._closed is not None:
                raise type(self._closed)(*self._closed.args)  # a traceback of its own
            here = key in self._known or key in self._asked
            if here or not self._asked or self._free(self._limit, MAX_BYTES - size):
                return
            yield

    def _free(self, items: int, size: int) -> bool:
        return len(self._asked) < items and self._bytes <= size

    def asked(self, batch: Batch) -> None:
        """The batch asks for nothing more."""
        with self._changed:
            batch.missing -= 1
            complete = batch.missing == 0
        if complete:
            batch.tell()

    def take(self) -> Job | None:
        """The next item, of another caller than the one before if several wait."""
        with self._changed:
            while self._turns:
                batch = self._turns.popleft()
                job = batch.jobs.popleft()
                if batch.jobs:
                    self._turns.append(batch)
                if job.waiters and not job.taken:  # equal items stand in several callers' lines
                    job.taken = True
                    self._waiting -= 1
                    return job
        return None

    def put_back(self, job: Job) -> None:
        """It was lost: another try, after what its callers have asked for and nobody has tried.

        So an item that ends its process each time holds up none that does not.
        """
        with self._changed:
            if not job.waiters:
                return self._forget(job)
            job.taken, job.asked = False, time.monotonic()
            self._waiting += 1
            for batch in dict.fromkeys(batch for batch, _ in job.waiters):
                self._line_up(batch, job)
        return None

    def finish(self, job: Job, verdict: Verdict) -> None:
        """Everyone who asked for it gets the verdict."""
        with self._changed:
            self._forget(job)
            if verdict.known:  # of the others another try may succeed
                self._known[job.key] = verdict
                if len(self._known) > self._room:
                    self._known.popitem(last=False)
            complete = []
            for batch, at in job.waiters:
                batch.verdicts[at] = verdict
                batch.missing -= 1
                if batch.missing == 0:
                    complete.append(batch)
        for batch in complete:
            batch.tell()

    def abandon(self, job: Job) -> bool:
        """Whether nobody waits for this job, which is then no longer asked for."""
        with self._changed:
            if job.waiters:
                return False
            self._forget(job)
            return True

    def _forget(self, job: Job) -> None:
        self._asked.pop(job.key, None)
        self._bytes -= len(job.request)
        # woken in flocks: not one thread per verdict
        if self._blocked and self._free(3 * self._limit // 4 + 1, 3 * MAX_BYTES // 4):
            self._changed.notify_all()

    def drop(self, batch: Batch) -> None:
        """Its caller has gone: nothing is asked on its account."""
        with self._changed:
            for job in list(self._asked.values()):
                job.waiters = [waiter for waiter in job.waiters if waiter[0] is not batch]
                if not job.waiters and not job.taken:
                    self._waiting -= 1
                    self._forget(job)
            self._changed.notify_all()  # it may wait for room
        self.wake()

    def close(self, problem: Exception) -> None:
        """Whoever waits or asks gets this exception."""
        with self._changed:
            self._closed = problem
            batches = {batch for job in self._asked.values() for batch, _ in job.waiters}
            self._asked.clear()
            self._turns.clear()
            self._bytes = self._waiting = 0
            self._changed.notify_all()
        for batch in batches:
            batch.fail(problem)
