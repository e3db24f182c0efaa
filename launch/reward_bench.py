"""`laconic reward bench`: how fast a verifier is here, and what answers that hang cost."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from launch import reward_tables as tables
from launch.reward import graded, items, plain, read, verifier, workers
from rewards.grader import Grader, Item, Spec, load
from rewards.hanging import HANG
from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from rewards.verify import context

MIB = 2**20
GOLDS = (
    "5", "-17", "204", "1,200", "0", "3.5", "0.125", "-0.75", "12.0", "1/3", "-7/2", "22/7",
    r"50\%", r"\frac{3}{4}", r"-\frac{11}{6}", r"2\frac{1}{2}", r"\$32.50", r"45^\circ", "10^{-6}",
    "(3, 4)", r"(-1, \frac{1}{2})", r"\{1, 2, 3\}", "[0, 1)", r"(2, \infty)", "1, -2",
    r"(-\infty, -1) \cup (1, \infty)", "x = 7", r"\text{Tuesday}", "C", r"\sqrt{2}", r"3\sqrt{5}",
    r"\frac{\sqrt{3}}{2}", r"2 + \sqrt{7}", "1 - i", r"2\pi", r"\frac{\pi}{6}", r"8\pi - 16",
    "e^2", r"\log_2 3", r"\ln 5", "2^{10}", "x^2 - 4x + 7", "(x + 2)(x - 3)", "3x^3 + 2x",
    "y = 2x + 3", r"\frac{x + 1}{x - 1}", "n(n + 1)", "a^2 + ab + b^2", r"\frac{1}{n + 1}",
    r"\sin 2\theta", r"\begin{pmatrix} 1 & 2 \\ 0 & -1 \end{pmatrix}", r"\sqrt[3]{4}",
    r"\begin{pmatrix} 3 \\ -2 \end{pmatrix}", r"\frac{2 - \sqrt{3}}{5}", "6 - 5i", r"\pm 3",
)  # fmt: skip
"""Answers as contests and textbooks write them: half of them plain numbers and their like."""


def bench(args: argparse.Namespace) -> int:
    """Speed of a verifier here: at once, in processes, and beside answers that hang."""
    spec = verifier(args)
    grader = load(spec)
    laps = _Laps(args, grader)
    slow, result = _at_once(grader, laps)
    result = {"grader": grader.name, "different": len(laps(0)), "at_once": result}
    result["pool"] = _pooled(spec, args, laps, slow)
    if args.hang_share:
        result["hanging"] = _hanging(spec, args, laps)
    print(json.dumps(plain(result), indent=1) if args.json else tables.speed(result))
    return 0


class _Laps:
    """Items without end, in laps: no two of a lap, nor of neighbouring ones, are the same.

    A file's responses are a lap. Golds alone make even laps of their own answers and odd laps of
    those of another row.

    Raises:
        ValueError: this verifier calls no gold a right answer to itself.
    """

    def __init__(self, args: argparse.Namespace, grader: Grader) -> None:
        dump = read(args, needed=False) if args.file else None
        given = items(dump) if dump and dump.responses else []
        self.given = list({repr(grader.essence(item)): item for item in given}.values())
        self.calls = 1 if given else 2  # calls at once: one lap each
        self.rights: list[Item] = []
        if given:
            return
        golds = [(p.answer, context(p)) for p in dump.prompts] if dump else [(g, {}) for g in GOLDS]
        for gold, meta in golds:
            asked = [(text, gold, meta) for text in grader.examples(gold, meta).right[:1]]
            self.rights += [item for item in asked if not _no_gold(grader, item)]
        if len(self.rights) < 2:
            whose = f"of {args.file}" if args.file else "that are built in"
            raise ValueError(
                f"bench: verifier '{grader.name}' knows no right answers to the golds {whose}; "
                "give a FILE with responses"
            )

    def __call__(self, k: int) -> list[Item]:
        n = len(self.rights)
        shift = 1 + k // 2 % max(n - 1, 1) if k % 2 else 0
        return self.given or [
            (self.rights[(i + shift) % n][0], gold, meta)
            for i, (_, gold, meta) in enumerate(self.rights)
        ]

    def first(self, count: int, only: Callable[[Item], bool] = lambda _: True) -> list[Item]:
        """The first `count` items; of those that `only` admits, if any."""
        out: list[Item] = []
        for k in itertools.count():
            lap = [item for item in self(k) if only(item)]
            out += lap
            if len(out) >= count or (k > 1 and not out):
                return out[:count]
        return out


def _no_gold(grader: Grader, item: Item) -> bool:
    """The gold is none for this verifier, which says so at once."""
    known = grader.at_once(str(item[0]), item[1], item[2])
    return known is not None and known.status == "gold_error"


def _at_once(grader: Grader, laps: _Laps) -> tuple[Callable[[Item], bool], dict[str, Any]]:
    """Which items need a process, and what the others cost in the calling one."""
    hits, seconds = 0, 0.0
    asked = [*laps(0), *laps(1)]
    for item in asked:
        if item[0] is None:
            continue
        start = time.perf_counter()
        verdict = grader.at_once(item[0], item[1], item[2])
        if verdict is not None:
            seconds += time.perf_counter() - start
            hits += 1

    def slow(item: Item) -> bool:
        return item[0] is not None and grader.at_once(item[0], item[1], item[2]) is None

    rate = hits / seconds if hits else None
    return slow, {"share": hits / len(asked), "per_second": rate}


def _pooled(
    spec: Spec, args: argparse.Namespace, laps: _Laps, slow: Callable[[Item], bool]
) -> dict[str, Any]:
    """Items that need a process (where none does: all), and what memory grows by meanwhile."""
    asked = laps.first(args.items, slow) or laps.first(args.items)
    size = workers(spec, args.workers)
    lap = max(1, min(len(asked), len(laps.first(len(laps(0)), slow)) or len(laps(0))))
    with VerifierPool(spec, size, args.deadline, cache=0) as pool:
        list(graded(pool, asked[: 2 * lap], laps.calls, lap))  # every worker has begun
        before = _memory()
        start = time.perf_counter()
        statuses = Counter(v.status for v in graded(pool, asked, laps.calls, lap))
        seconds = time.perf_counter() - start
        grown = _memory() - before
        stats = pool.stats()
    figures = {k: v for k, v in stats.items() if not k.startswith("verdicts/")}
    return {
        "verdicts": len(asked),
        "seconds": seconds,
        "workers": size or 0,
        "per_second": len(asked) / seconds,
        "per_second_and_worker": len(asked) / seconds / (size or 1),
        "memory_mib": before / MIB,
        "grown_mib": grown / MIB,
        "statuses": dict(statuses),
        **figures,
    }


def _hanging(spec: Spec, args: argparse.Namespace, laps: _Laps) -> dict[str, Any]:
    """A share of the answers hangs: seconds from asking to verdict of each of the others."""
    asked = laps.first(args.items)
    every = max(1, round(1 / args.hang_share))
    sick = set(range(every // 2, len(asked), every))
    sick_spec: Spec = {"name": "rewards.hanging", "verifier": spec}
    size = workers(sick_spec, args.workers)
    room = threading.Semaphore(8 * (size or 1))  # a hanging one holds its own place only
    spent: list[float] = []
    statuses: Counter[str] = Counter()

    def ask(i: int) -> None:
        text, gold, meta = asked[i]
        start = time.perf_counter()

        def told(future: Future[list[Verdict]]) -> None:
            try:
                statuses.update(v.status for v in future.result())
                if i not in sick:
                    spent.append(time.perf_counter() - start)
            finally:
                room.release()

        item = (f"{HANG} {i}" if i in sick else text, gold, meta)
        pool.submit([item]).add_done_callback(told)

    with VerifierPool(sick_spec, size, args.deadline, cache=0) as pool:
        start = time.perf_counter()
        for i in range(len(asked)):
            room.acquire()
            ask(i)
        for _ in range(8 * (size or 1)):
            room.acquire()
        seconds = time.perf_counter() - start
    p50, p99, most = (float(np.quantile(spent, q)) for q in (0.5, 0.99, 1.0))
    return {
        "verdicts": len(asked),
        "hanging": len(sick),
        "seconds": seconds,
        "statuses": dict(statuses),
        "others_p50": p50,
        "others_p99": p99,
        "others_max": most,
    }


def _memory() -> int:
    """Bytes resident in this process and all that it started."""
    import psutil

    me = psutil.Process()
    total = 0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total
