"""Verdicts per second, what a hanging item costs the others, and whether memory grows.

    python -m tests.bench.verdicts [--golds FILE] [--verifier math] [--items 100000]

FILE holds rows with an `answer`, as JSON lines (MATH-500, say); without it a few answers of every
kind stand in. Answers are the golds in a box, the neighbour's gold (wrong), and the gold written
as a sum that is not, or not at once, evaluated (`+0`): these need computer algebra. Run nothing
else beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from rewards.grader import Grader, Item, load
from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from samplers.seam import Component

GOLDS = (
    *(str(n) for n in range(2, 40, 3)),
    *("\\frac{3}{4}", "-\\frac{7}{12}", "2.5", "50\\%", "\\text{Evelyn}", "(C)", "(1,2)", "[0,1)"),
    *("2\\sqrt{3}", "\\pi", "3\\sqrt{13}", "x^2+2x+1", "\\frac{\\sqrt{2}}{2}", "11\\sqrt2", "6-5i"),
)
HANG = "this answer hangs"
TAKES = "this answer takes a while"
TAKEN = 0.1
"""Seconds."""
CALLERS = 8


class Config(Component):
    """A verifier that hangs at one answer, and is another one for the rest."""

    verifier: str | dict[str, Any] = "math"


def warm(config: Config) -> None:
    _grader(config)


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    if HANG in text:
        time.sleep(3600)
    if TAKES in text:
        time.sleep(TAKEN)
    return _grader(config)(text, gold, meta)


def fast(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict | None:
    return None if HANG in text or TAKES in text else _grader(config).at_once(text, gold, meta)


_loaded: dict[str, Grader] = {}


def _grader(config: Config) -> Grader:
    name = json.dumps(config.verifier)
    if name not in _loaded:
        _loaded[name] = load(config.verifier)
        _loaded[name].warm()
    return _loaded[name]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.verdicts", description=__doc__)
    parser.add_argument("--golds", type=Path, help="rows with an `answer`, as JSON lines")
    parser.add_argument("--verifier", default="math")
    parser.add_argument("--items", type=int, default=100_000, help="of the memory measurement")
    parser.add_argument("--deadline", type=float, default=2.0, help="seconds, where items hang")
    args = parser.parse_args()
    golds = list(GOLDS)
    if args.golds:
        golds = [str(json.loads(line)["answer"]) for line in args.golds.read_text().splitlines()]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    grader = load(args.verifier)
    grader.warm()
    made = [*boxed(golds), *neighbours(golds), *sums(golds)]
    known = [grader.at_once(*item) is not None for item in made]  # type: ignore[arg-type]
    quick = [item for item, at_once in zip(made, known, strict=True) if at_once]
    algebra = [item for item, at_once in zip(made, known, strict=True) if not at_once]
    print(f"{len(made)} items of {len(golds)} golds: {len(quick)} on the fast path")
    single("fast path, one core", grader, quick, at_once=True)
    single("algebra, one core, first time", grader, algebra)
    single("algebra, one core, again", grader, algebra)
    for workers in (1, 2, 4):
        pooled(args.verifier, workers, algebra)
    starts(args.verifier)
    kills(args.verifier)
    hanging(args.verifier, made, args.deadline)
    memory(args.verifier, golds, args.items)


def boxed(golds: Sequence[str]) -> list[Item]:
    return [(f"The answer is $\\boxed{{{gold}}}$.", gold, {}) for gold in golds]


def neighbours(golds: Sequence[str]) -> list[Item]:
    return [(f"So \\boxed{{{golds[i - 1]}}}", gold, {}) for i, gold in enumerate(golds)]


def sums(golds: Sequence[str]) -> list[Item]:
    return [(f"We get \\boxed{{{gold}+0}}.", gold, {}) for gold in golds]


def single(title: str, grader: Grader, items: Sequence[Item], at_once: bool = False) -> None:
    """Verdicts per second of this process, no pool."""
    if not items:
        return print(f"{title}: no items")
    call = grader.at_once if at_once else grader
    rounds = max(1, 3000 // len(items)) if at_once else 1
    began = time.perf_counter()
    for _ in range(rounds):
        for text, gold, meta in items:
            call(str(text), gold, meta)
    seconds = (time.perf_counter() - began) / rounds
    print(f"{title}: {len(items) / seconds:,.0f} verdicts/s ({len(items)} items)")
    return None


def pooled(verifier: str, workers: int, items: Sequence[Item]) -> None:
    with VerifierPool(verifier, workers=workers, cache=0) as pool:
        rates = []
        for _ in range(5):  # every worker has met every gold sooner or later
            began = time.perf_counter()
            pool.grade(items)
            rates.append(len(items) / (time.perf_counter() - began))
    first, last = rates[0] / workers, rates[-1] / workers
    print(f"algebra, pool of {workers}: {first:,.0f} verdicts/s a worker, fifth time {last:,.0f}")


def starts(verifier: str) -> None:
    """Seconds until the pool is ready, and until a killed worker is replaced."""
    began = time.perf_counter()
    with VerifierPool(verifier, workers=1) as pool:
        ready = time.perf_counter() - began
        gaps = []
        for n in range(20):
            pool.grade([(rf"\boxed{{\sqrt{{{n}}}}}", "1", {})])
            old = pool.pids()[1:]
            psutil.Process(old[0]).kill()
            began = time.perf_counter()
            while pool.pids()[1:] in ([], old):
                time.sleep(1e-4)
            gaps.append(time.perf_counter() - began)
    print(f"ready after {ready:.2f} s; a killed worker is replaced in {np.median(gaps):.4f} s")


def kills(verifier: str) -> None:
    """Milliseconds that an item takes longer because a process is killed in the middle of it.

    Beside what had been done of it, which is done again: that is taken off.
    """
    spec = {"name": "tests.bench.verdicts", "verifier": verifier}
    with VerifierPool(spec, workers=2, cache=0) as pool:

        def ask(which: int | None, n: int) -> float:
            began = time.perf_counter()
            under_way = pool.submit([(f"{TAKES} {n} \\boxed{{5}}", "5", {})])
            lost = 0.0
            if which is not None:
                time.sleep(TAKEN / 2)
                psutil.Process(pool.pids()[which]).kill()
                lost = time.perf_counter() - began
            assert under_way.result()[0].correct
            return time.perf_counter() - began - lost

        plain = np.median([ask(None, n) for n in range(20)])
        for title, which, count in (("a worker", 1, 40), ("the template", 0, 10)):
            # the worker may have been the idle one: then nothing was lost, and less than nothing
            costs = [ask(which, n) - plain for n in range(count)]
            costs = [cost * 1000 for cost in costs if cost > -TAKEN / 4]
            low, mid, high = np.quantile(costs, [0.0, 0.5, 1.0])
            print(f"{title} killed at an item: {mid:.1f} ms more ({low:.1f} to {high:.1f})")


def hanging(verifier: str, items: Sequence[Item], deadline: float) -> None:
    """One of a hundred hangs; `CALLERS` threads ask for one after the other."""
    spec = {"name": "tests.bench.verdicts", "verifier": verifier}
    mixed = [(f"{text}\n", gold, {}) for text, gold, _ in items]
    for n in range(0, len(mixed), 100):
        mixed[n] = (f"{HANG} {n}", "1", {})
    random.Random(0).shuffle(mixed)
    with VerifierPool(spec, workers=2, deadline=deadline, cache=0) as pool:

        def ask(item: Item) -> tuple[bool, float]:
            began = time.perf_counter()
            known = pool.grade([item])[0].known
            return known, time.perf_counter() - began

        began = time.perf_counter()
        with ThreadPoolExecutor(CALLERS) as callers:
            told = list(callers.map(ask, mixed))
        seconds, stats = time.perf_counter() - began, pool.stats()
    sick = sum(HANG in str(text) for text, _, _ in mixed)
    print(
        f"{sick} of {len(mixed)} hang, deadline {deadline:g} s, 2 workers, {CALLERS} callers: "
        f"{seconds:.1f} s, {stats['killed']:.0f} killed, {sum(not k for k, _ in told)} unknown"
    )
    for title, spent in (
        ("all", [s for _, s in told]),
        ("those that are well", [s for known, s in told if known]),
    ):
        p50, p99, most = np.quantile(spent, [0.5, 0.99, 1.0])
        print(f"  seconds of {title}: p50 {p50:.4f}, p99 {p99:.4f}, max {most:.4f}")


def memory(verifier: str, golds: Sequence[str], count: int) -> None:
    """MiB of this process and of the pool's, after each tenth of `count` items."""
    with VerifierPool(verifier, workers=2, cache=10_000) as pool:
        for tenth in range(10):
            for chunk in _chunks(golds, tenth * count // 10, (tenth + 1) * count // 10):
                pool.grade(chunk)
            held = [psutil.Process(pid).memory_full_info().uss >> 20 for pid in pool.pids()]
            own = psutil.Process().memory_full_info().uss >> 20
            print(f"  {(tenth + 1) * count // 10:>7} items: {own} MiB here, {held} in the pool")


def _chunks(golds: Sequence[str], begin: int, end: int) -> Iterator[list[Item]]:
    for start in range(begin, end, 1000):
        yield [
            (f"\\boxed{{{golds[n % len(golds)]}+{n}-{n}}}", golds[n % len(golds)], {})
            for n in range(start, min(start + 1000, end))
        ]


if __name__ == "__main__":
    main()
