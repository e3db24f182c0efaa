"""VerifierPool: grades answers in processes that can be killed, so that none can hang a run.

What takes microseconds and cannot hang is graded at once in the calling thread. Everything else
goes to worker processes that are forked from one warm process; any number of threads and event
loops may ask at the same time. Trouble is an unknown verdict (`timeout`, `error`), never a
silent 0. A process that is killed changes no verdict: another one grades its item.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType

import numpy as np

from rewards.grader import Item, Spec, failed, load
from rewards.service.backlog import Backlog, Batch
from rewards.service.crew import Crew
from rewards.service.worker import frame
from rewards.verdict import Verdict

DEADLINE = 10.0


class VerifierPool:
    """`grade` takes items and returns verdicts in their order. Thread-safe; close it when done.

    Args:
        verifier: name, {name, settings...} or my_pkg.my_file:fn.
        workers: processes; 0 grades in the calling thread, for verifiers that cannot hang
            (there is no deadline then); None: 0 for those, else 2. Up to three times as many
            while some of them are at items that take long.
        deadline: seconds of one item before its worker is killed; its verdict is `timeout`.
            None: the verifier's own, else 10. Another worker gets the item of one that ends by
            itself or is killed by others, with a deadline of its own, three workers in all: no
            item is with them for longer than three deadlines.
        memory_mb: address space of a worker beyond what its imports took, in MiB (Linux).
        cache: verdicts kept by (grader, what of the item they depend on), least recently used
            first to go; 0: none.
        pending: distinct items that may wait or be under way; who asks beyond that waits.

    Raises:
        ValueError: no such verifier, it does not start, or it may hang and `workers` is 0.
    """

    def __init__(
        self,
        verifier: Spec,
        workers: int | None = None,
        deadline: float | None = None,
        memory_mb: int = 2048,
        cache: int = 65536,
        pending: int = 4096,
    ) -> None:
        self.grader = load(verifier)
        if deadline is None:
            deadline = self.grader.deadline or DEADLINE
        if workers is None:
            workers = 0 if self.grader.quick else 2
        if workers == 0 and not self.grader.quick:
            raise ValueError(
                f"workers=0: verifier '{self.grader.name}' may hang and must run in processes "
                "that can be killed; set 1 or more"
            )
        for field, value, least in (
            ("workers", workers, 0),
            ("deadline", deadline, 1e-3),
            ("memory_mb", memory_mb, 1),
            ("cache", cache, 0),
            ("pending", pending, 1),
        ):
            if value < least:
                raise ValueError(f"{field}={value}: must be at least {least}")
        if workers and not sys.platform.startswith("linux"):
            warnings.warn(f"memory_mb={memory_mb} has no effect off Linux", stacklevel=2)
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._owner, self._open = os.getpid(), True
        self._backlog = Backlog(pending, cache)
        self._crew: Crew | None = None
        # where processes are asked for, the calling one judges only what takes microseconds
        self._at_once = not workers or not self.grader.quick
        if workers:
            setup = frame({"spec": verifier, "memory_mb": memory_mb})
            name = self.grader.name
            self._crew = Crew(setup, workers, deadline, name, self._backlog)
            self._end = weakref.finalize(self, _end, self._crew, self._owner)

    def grade(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts in the order of `items`; a text of None is `no_answer`, unasked.

        Raises:
            ValueError: the pool is closed, or was made in another process.
        """
        future = self.submit(items)
        try:
            return future.result()
        except BaseException:  # the caller is interrupted: what it asked for is given up
            future.cancel()
            raise

    def submit(self, items: Sequence[Item]) -> Future[list[Verdict]]:
        """The verdicts of `items` when they are known; cancelling gives up what is not graded.

        Waits while more than `pending` items are under way. Raises as `grade` does.
        """
        batch = self._batch(len(items))
        self._ask(batch, items)
        return batch.future

    async def agrade(self, items: Sequence[Item]) -> list[Verdict]:
        """`grade` for event loops: the loop goes on. Raises as `grade` does."""
        batch = self._batch(len(items))
        try:
            await asyncio.to_thread(self._ask, batch, items)  # which may wait for room
        except BaseException:
            batch.future.cancel()
            raise
        return await asyncio.wrap_future(batch.future)

    def _batch(self, size: int) -> Batch:
        if os.getpid() != self._owner:
            raise ValueError("verifier pool: it was made in another process; make one in this")
        if not self._open:
            raise ValueError("verifier pool: it is closed; make another")
        if self._crew and threading.current_thread() is self._crew.thread:
            raise ValueError("verifier pool: asked in a future's callback; ask in a thread")
        batch = Batch(size, Verdict(False, 0.0, "no_answer", None, self.grader.name))
        known = weakref.ref(batch)  # no cycle: a pool that nobody refers to ends at once
        batch.future.add_done_callback(lambda future: self._settled(future, known()))
        return batch

    def _settled(self, future: Future[list[Verdict]], batch: Batch | None) -> None:
        if not future.cancelled() and future.exception() is None:
            with self._counting:
                self._counts.update(f"verdicts/{v.status}" for v in future.result())
        elif batch is not None:
            self._backlog.drop(batch)

    def _ask(self, batch: Batch, items: Sequence[Item]) -> None:
        """Grade what can be graded here, and ask for the rest."""
        counts: Counter[str] = Counter()
        try:
            for at, item in enumerate(items):
                if item[0] is None:
                    continue
                if batch.future.cancelled():
                    break
                verdict, how = self._here(item), "at_once"
                if verdict is None:
                    verdict, how = self._there(batch, at, item), "cached"
                if verdict is not None:
                    batch.verdicts[at] = verdict
                    counts[how] += 1
        except BaseException:
            batch.future.cancel()
            raise
        finally:
            counts["cached"] += batch.shared
            with self._counting:
                self._counts.update(counts)
        self._backlog.asked(batch)

    def _here(self, item: Item) -> Verdict | None:
        text, gold, meta = item
        if not self._at_once or text is None:
            return None
        try:
            return self.grader.at_once(text, gold, meta)
        except MemoryError as problem:
            raise RuntimeError("out of memory while grading in the calling process") from problem

    def _there(self, batch: Batch, at: int, item: Item) -> Verdict | None:
        """The verdict if it is known, or the item cannot be sent; else the batch will get it."""
        with contextlib.suppress(Exception):  # of a user's `relevant`: then all of it counts
            item = self.grader.essence(item)
        try:
            request = frame(item)
        except Exception as problem:  # a meta that cannot travel
            return failed(self.grader.name, f"cannot be sent: {problem}")
        key = hashlib.blake2b(self.grader.name.encode() + b"\0", digest_size=16)
        key.update(request)
        return self._backlog.ask(batch, at, key.digest(), request)

    def stats(self) -> dict[str, float]:
        """Since the start, by name.

        verdicts/STATUS, cached (an equal one had been asked for), at_once: items. killed: workers
        at the deadline. crashed: workers that ended at an item, by it or from outside. retried:
        times that an item was given to another one after that. slow: items beyond the grace,
        whose worker was replaced meanwhile. latency_: seconds with the worker that graded it,
        wait_: seconds before a worker had it, of the latest 8192.
        """
        with self._counting:
            out = {name: float(count) for name, count in sorted(self._counts.items())}
        crew = self._crew
        if crew is not None:
            counted = ("killed", "crashed", "retried", "slow")
            out |= {name: float(getattr(crew, name)) for name in counted}
            for name, seconds in (("latency", crew.service), ("wait", crew.wait)):
                if latest := seconds.copy():
                    p50, p99, most = np.quantile(latest, [0.5, 0.99, 1.0]).tolist()
                    out |= {f"{name}_p50": p50, f"{name}_p99": p99, f"{name}_max": most}
        return out

    def pids(self) -> list[int]:
        """Process ids of the warm process and of its workers at this moment."""
        return self._crew.pids() if self._crew is not None else []

    def close(self) -> None:
        """End every process; who still waits gets a ValueError. Closing twice is fine."""
        self._open = False
        if self._crew is not None:
            self._end()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _end(crew: Crew, owner: int) -> None:
    if os.getpid() == owner:  # and not a forked child of the owner
        crew.close()
