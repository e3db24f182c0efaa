"""VerifierPool: grades answers in processes that can be killed, so that none can hang a run.

Trouble is an unknown verdict (`timeout`, `error`), never a silent 0.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import warnings
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from rewards.crew import Crew
from rewards.grader import Item, Spec, failed, load
from rewards.verdict import UNKNOWN, Verdict
from rewards.worker import frame

DEADLINE = 10.0


class VerifierPool:
    """`grade` takes items and returns verdicts in their order. Thread-safe; close it when done.

    Args:
        verifier: name, {name, settings...} or my_pkg.my_file:fn.
        workers: processes; 0 grades in the calling process, for verifiers that cannot hang
            (there is no deadline then); None: 0 for those, else 2.
        deadline: seconds of one item before its worker is killed; its verdict is `timeout`.
            None: the verifier's own, else 10.
        memory_mb: address space of a worker beyond what its imports took, in MiB (Linux).
        cache: verdicts kept by (answer, gold, meta), least recently used first to go; 0: none.

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
        ):
            if value < least:
                raise ValueError(f"{field}={value}: must be at least {least}")
        if workers and not sys.platform.startswith("linux"):
            warnings.warn(f"memory_mb={memory_mb} has no effect off Linux", stacklevel=2)
        self._cache: OrderedDict[bytes, Verdict] = OrderedDict()
        self._room = cache
        self._counts: Counter[str] = Counter()
        self._seconds: deque[float] = deque(maxlen=8192)
        self._lock = threading.Lock()
        self._open = True
        setup = frame({"spec": verifier, "deadline": deadline, "memory_mb": memory_mb})
        self._crew = Crew(setup, workers, deadline, self.grader.name) if workers else None

    def grade(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts in the order of `items`; a text of None is `no_answer`, unasked.

        Raises:
            ValueError: the pool is closed.
        """
        with self._lock:
            if not self._open:
                raise ValueError("verifier pool: it is closed; make another")
            verdicts = self._inline(items) if self._crew is None else self._apart(self._crew, items)
            self._counts.update(f"verdicts/{v.status}" for v in verdicts)
        return verdicts

    def _inline(self, items: Sequence[Item]) -> list[Verdict]:
        try:
            return [
                self._silent() if text is None else self.grader(text, gold, meta)
                for text, gold, meta in items
            ]
        except MemoryError as problem:
            raise RuntimeError("out of memory while grading in the calling process") from problem

    def _apart(self, crew: Crew, items: Sequence[Item]) -> list[Verdict]:
        """Each distinct item once, those seen before from the cache."""
        verdicts: list[Verdict] = [self._silent()] * len(items)
        asked: dict[bytes, list[int]] = {}
        requests: list[bytes] = []
        for i, item in enumerate(items):
            if item[0] is None:
                continue
            try:
                request = frame(item)
            except Exception as problem:  # a meta that cannot travel
                verdicts[i] = failed(self.grader.name, f"cannot be sent: {problem}")
                continue
            key = hashlib.blake2b(request, digest_size=16).digest()
            if key in self._cache:
                self._cache.move_to_end(key)
                self._counts["cached"] += 1
                verdicts[i] = self._cache[key]
            elif key in asked:
                asked[key].append(i)
            else:
                asked[key] = [i]
                requests.append(request)
        for (key, where), (verdict, seconds) in zip(asked.items(), crew.run(requests), strict=True):
            self._seconds.append(seconds)
            self._keep(key, verdict)
            for i in where:
                verdicts[i] = verdict
        return verdicts

    def _keep(self, key: bytes, verdict: Verdict) -> None:
        if verdict.status in UNKNOWN:
            return  # another try may succeed
        self._cache[key] = verdict
        if len(self._cache) > self._room:
            self._cache.popitem(last=False)

    def _silent(self) -> Verdict:
        return Verdict(False, 0.0, "no_answer", None, self.grader.name)

    def stats(self) -> dict[str, float]:
        """Since the start: verdicts by status, answers from the cache, workers lost, latency.

        Latencies are seconds of the latest 8192 items that a process graded.
        """
        out = {name: float(count) for name, count in sorted(self._counts.items())}
        if self._crew is not None:
            out |= {"killed": float(self._crew.killed), "crashed": float(self._crew.crashed)}
        if self._seconds:
            p50, p99, most = np.quantile(list(self._seconds), [0.5, 0.99, 1.0])
            out |= {"latency_p50": p50, "latency_p99": p99, "latency_max": most}
        return {name: float(value) for name, value in out.items()}

    def close(self) -> None:
        """End every process. Closing twice is fine."""
        with self._lock:
            self._open = False
            if self._crew is not None:
                self._crew.close()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
