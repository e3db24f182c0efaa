"""code: the answer is a Python program; it passes when it gives what its tests expect.

Programs run behind walls (`rewards.sandbox`, Linux); where none can be raised the verifier refuses
to start. The program gets the inputs; what is expected of it never leaves this process.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from rewards.grader import Examples
from rewards.sandbox import compare, host, problems
from rewards.sandbox.problems import READS as READS
from rewards.sandbox.problems import GoldError, Problem, Test
from rewards.verdict import Status, Verdict
from samplers.seam import Component

GRADER = "code/2"
MAX_SOURCE = 1 << 17
"""Characters of a program; longer ones are unparseable."""
WALL = 3
"""A test may take this many times its processor time: waiting is not free, a busy machine is."""
START_SECONDS = 20.0
FENCE = "```"
_TOLD = 160

PRELUDE = """\
from typing import *
from statistics import *
from operator import *
from math import *
from random import *
from string import *
from bisect import *
from collections import *
from copy import *
from functools import *
from heapq import *
from itertools import *
from builtins import abs, pow
import array, bisect, collections, copy, datetime, functools, heapq, io, itertools, json, math
import operator, os, random, re, string, sys, time
"""
"""What judges import before a program; later lines win: `Counter` is that of collections, `pow`
takes three numbers, `random` and `copy` are modules."""


class Config(Component):
    seconds: float = Field(4.0, gt=0)
    """Processor time of one test, in seconds; it may last three times as long by the clock."""
    total: float = Field(60.0, gt=0)
    """Seconds by the clock for all tests of an answer; beyond it the verdict is timeout."""
    memory_mb: int = Field(1024, ge=64)
    """Address space of the program, in MiB; judges give 256 to 1024."""
    output_mb: float = Field(1.0, gt=0)
    """What one test may print, in MiB."""
    max_tests: int = Field(64, ge=1)
    """Of a row with more tests, as many at equal distances are run."""
    partial: bool = False
    """The score is the share of tests passed; correct means all of them, as ever."""
    tolerance: float = Field(1e-6, ge=0)
    """Where a fraction is expected: this error passes, relative above 1 and absolute below."""
    prelude: str = PRELUDE
    """Run before the program, in its namespace."""
    packages: tuple[str, ...] = ("sortedcontainers", "numpy")
    """Installed packages that the program can import, where they are installed; "*": all there
    are. Large ones need more memory_mb and seconds."""
    unsafe_local_exec: bool = False
    """Run without walls, with limits only: programs can read your files. For machines that allow
    no user namespaces."""


def limits(config: Config) -> host.Limits:
    """What one test may use."""
    return host.Limits(
        seconds=config.seconds,
        memory_mb=config.memory_mb,
        output_mb=config.output_mb,
        prelude=config.prelude,
        packages=config.packages,
        walls=not config.unsafe_local_exec,
    )


def warm(config: Config) -> None:
    """Raise ValueError where programs cannot be walled off."""
    host.require(limits(config))
    host.close()  # what is forked from here starts one of its own


def deadline(config: Config) -> float:
    """Seconds of one answer, with what is killed and run again."""
    return config.total + (host.TRIES - 1) * WALL * config.seconds + START_SECONDS


def program(text: str) -> str | None:
    """The last fenced block of an answer, closed or running to its end; None: there is none.

    As in CommonMark: what is farther in than its fence ends no block (text of a program may hold
    fences), and a block inside a list is as far out as its fence.
    """
    opened: tuple[str, int, int] | None = None
    found, at = None, 0
    for line in text.splitlines(keepends=True):
        mark = line.lstrip(" ")
        run, indent = len(mark) - len(mark.lstrip("`")), len(line) - len(mark)
        if opened is None:
            if run >= len(FENCE) and "`" not in mark[run:]:
                opened = mark[:run], at + len(line), indent
        elif run >= len(opened[0]) and indent <= opened[2] + 3 and not mark[run:].strip():
            found, opened = _further_out(text[opened[1] : at], opened[2]), None
        at += len(line)
    return found if opened is None else _further_out(text[opened[1] :], opened[2])


def _further_out(source: str, indent: int) -> str:
    return re.sub(rf"^ {{1,{indent}}}", "", source, flags=re.MULTILINE) if indent else source


def relevant(text: str, config: Config) -> str:
    """The program alone; one letter for an answer without any."""
    source = program(text)
    if source is None:
        return "x" if text.strip() else ""
    longest = max(map(len, re.findall("`+", source)), default=0)
    fence = "`" * max(len(FENCE), longest + 1)
    end = "" if source.endswith("\n") else "\n"
    return f"{fence}python\n{source}{end}{fence}\n"


def fast(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict | None:
    """The verdict of an answer without a program."""
    source = program(text)
    if source is None:
        return _verdict("unparseable" if text.strip() else "no_answer", "no fenced block of code")
    if not source.strip():
        return _verdict("no_answer", "the block of code is empty")
    if len(source) > MAX_SOURCE:
        return _verdict("unparseable", f"a program of {len(source)} characters")
    return None


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    """Verdict of one answer.

    no_answer: nothing, or an empty block; unparseable: no block, or no Python; wrong: a test
    failed, by its output, an exception or a limit; gold_error: the tests cannot be read; timeout:
    all tests together took too long; error: the sandbox failed.
    """
    if early := fast(text, gold, meta, config):
        return early
    try:
        problem = problems.read(gold, meta)
    except GoldError as fault:
        return _verdict("gold_error", str(fault))
    if config.unsafe_local_exec is False and (why := host.fault(limits(config))):
        return _verdict("error", f"no sandbox: {why}")
    try:
        return _tested(program(text) or "", problem, config)
    except host.SandboxError as trouble:
        return _verdict("error", f"sandbox: {trouble}")


def _verdict(status: Status, detail: str = "", score: float = 0.0) -> Verdict:
    return Verdict(status == "ok", score, status, None, GRADER, detail)


def _tested(source: str, problem: Problem, config: Config) -> Verdict:
    """Run the tests, in order, until one fails (all of them for a share)."""
    tests, end = _chosen(problem.tests, config.max_tests), time.monotonic() + config.total
    if fault := _too_much(tests, config):
        return _verdict("gold_error", fault)
    readings = set(range(len(tests[0].expected)))
    passed, why = 0, ""
    with host.Guest(source, limits(config)) as guest:
        for number, test in enumerate(tests, 1):
            left = end - time.monotonic()
            wall = min(WALL * config.seconds, left)
            ran = _run(guest, problem, test, wall) if left > 0 else None
            end += ran.lost if ran else 0.0
            if ran is None or (ran.end == "wall" and wall == left and number > 1):
                if why:  # that one is its own doing
                    break
                return _verdict("timeout", f"test {number} of {len(tests)}: no time left")
            if (said := ran.said()).get("kind") == "syntax":
                return _verdict("unparseable", _line(said.get("error")))
            right, fault = _judged(problem, test, ran, said, config)
            if readings & right:
                readings, passed = readings & right, passed + 1
            else:
                why = why or f"test {number} of {len(tests)}: {fault}"
                if not config.partial:
                    break
    if passed == len(tests):
        return _verdict("ok", score=1.0)
    return _verdict("wrong", why, passed / len(tests) if config.partial else 0.0)


def _line(told: Any) -> str:
    """What a program says, fit for a table or a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(told)[:_TOLD])


def _too_much(tests: tuple[Test, ...], config: Config) -> str:
    """Whether no program could print what is expected: '' if one could."""
    longest = max((len(e) for t in tests for e in t.expected if isinstance(e, str)), default=0)
    if longest <= config.output_mb * (1 << 20):
        return ""
    return f"a test expects {longest} characters; output_mb={config.output_mb:g} is less: raise it"


def _chosen(tests: tuple[Test, ...], most: int) -> tuple[Test, ...]:
    count = min(len(tests), most)
    return tuple(tests[i * len(tests) // count] for i in range(count))


def _run(guest: host.Guest, problem: Problem, test: Test, wall: float) -> host.Ran:
    if problem.name:
        return guest.call(problem.name, test.args, test.named, wall)
    return guest.script(test.stdin.encode(errors="replace"), wall)


def _judged(
    problem: Problem, test: Test, ran: host.Ran, said: Mapping[str, Any], config: Config
) -> tuple[set[int], str]:
    """Which readings of the expected output it gave, and what is wrong if none."""
    if ran.end != "exit" or ran.code:
        how = {"cpu": "out of time", "wall": "out of time", "output": "too much output"}
        ended = how.get(ran.end, f"ended with status {ran.code}")
        return set(), _line(said.get("error") or ended)
    if problem.name and "value" not in said:
        return set(), _line(said.get("error", "no value came back"))
    given = said["value"] if problem.name else ran.out.decode(errors="replace")
    right = set()
    for at, expected in enumerate(test.expected):
        try:
            equal = compare.same if problem.name else compare.same_text
            if equal(expected, given, config.tolerance):
                right.add(at)
        except RecursionError:
            return set(), "a value too deep to compare"
    return right, f"gave {str(given)[:_TOLD]!r}"


def examples(gold: str, meta: Mapping[str, Any], config: Config) -> Examples:
    """The row's own solution, where it has one, and a program that does nothing."""
    idle = f"{FENCE}python\npass\n{FENCE}\n"
    return Examples(tuple(relevant(f"{FENCE}\n{s}", config) for s in _solutions(meta)), (idle,))


def _solutions(meta: Mapping[str, Any]) -> list[str]:
    """The first reference solution of a row: text, a list of them, or such a list as JSON."""
    import json

    for key in ("solutions", "solution", "canonical_solution", "reference_solution"):
        value = meta.get(key)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                continue
        if isinstance(value, list):
            value = next((v for v in value if isinstance(v, str)), None)
        if isinstance(value, str) and value.strip():
            return [program(value) or value]
    return []
