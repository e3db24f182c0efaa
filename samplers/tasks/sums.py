"""Sums: what does a chain of digits come to? reasoning-gym's `chain_sum`, for the tiny reasoner.

A problem of that library is asked in the tiny tokenizer's characters, `7+5-3+8?`, and the answer is
its total, `17`. Problems whose running totals leave a range are left out, 0 to 19 by default: no
total is negative, and a guess is right once in 20.

The demonstrations of the warm-up write running totals, `7+5=12-3=9+8=17!`. They are sloppy on
purpose: some facts are confused on a first pass, a step is checked again after `r`, all is begun
anew after `w` before the total is known, and most of all after it is: the waste of this task comes
after the answer. A later pass is confused less often, and the last total is the answer.

Everything is a function of (seed, split, index) and of the library's version. `verifier: exact`
grades the answers, and so does the library's own scorer, `verifier: reasoning_gym`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import Field, model_validator

from samplers.seam import Component
from samplers.seeds import key
from samplers.tasks import reasoning_gym
from samplers.tasks._chains import END_THINK, Draw, Split, between, draws, of_split, stream_of
from samplers.types import Prompt

_SIZE = 1 << 40  # problems of the library that are drawn from
_CONFUSION_SEED = 1238
_OFF_BY = (-2, -1, 1, 2)
_TRIES = 1000
"""Problems of one length tried in search of one whose totals stay in the range."""
_TOTAL = re.compile(r"=(-?\d+)!")
_RUNNING = re.compile(r"=(-?\d+)")
Fact = tuple[int, str, int]
"""`a op b`."""


class Config(Component):
    """Which problems are posed, and how sloppily the demonstrations think."""

    terms: tuple[int, int] = (4, 7)
    """Fewest and most numbers of a problem, uniform between."""
    digits: int = Field(1, ge=1, le=4)
    """Digits of each number."""
    totals: tuple[int, int] = (0, 19)
    """Lowest and highest running total of a problem; other problems are left out. Mistakes of a
    demonstration may leave this range."""
    confusable: float = Field(0.16, ge=0, le=1)
    """Share of the 200 facts (last digit of a, op, last digit of b) that demonstrations confuse,
    each with a result that is off by one or two, always the same."""
    confused: float = Field(0.7, ge=0, le=1)
    """How often a confusable fact is wrong on the first pass."""
    confused_again: float = Field(0.3, ge=0, le=1)
    """The same on a later pass, or when a step is checked: lower, so that checking helps."""
    slip: float = Field(0.01, ge=0, le=1)
    """How often the result of any other fact is off by one or two."""
    recheck: float = Field(0.1, ge=0, le=1)
    """How often a step is checked again at once."""
    restart: float = Field(0.15, ge=0, le=1)
    """How often the first pass is broken off at a step drawn at random, and begun anew."""
    verify: float = Field(0.75, ge=0, le=1)
    """How often a pass that has come to a total is followed by another."""
    passes: int = Field(5, ge=1)
    """Most passes that come to a total."""
    longest: int = Field(150, ge=0)
    """No pass is begun after so many tokens."""
    hasty: float = Field(0.06, ge=0, le=1)
    """How often a thought ends at a token drawn at random and the answer is what is known there:
    the last total, or the running one. To answer when cut is then nothing new."""

    @model_validator(mode="after")
    def _ranges(self) -> Config:
        (fewest, most), (low, high) = self.terms, self.totals
        if not 2 <= fewest <= most <= 16:
            raise ValueError(f"terms: got [{fewest}, {most}]; write [fewest, most] within [2, 16]")
        if low > 0 or high < 10**self.digits - 1:
            raise ValueError(
                f"totals: got [{low}, {high}]; write [lowest, highest], at most 0 and at least "
                f"{10**self.digits - 1} where numbers have {self.digits} digits"
            )
        return self


@dataclass(frozen=True, slots=True)
class Problem:
    """A first number, then (op, number) each; `entry` as the library has it."""

    first: int
    rest: tuple[tuple[str, int], ...]
    entry: dict[str, Any]
    source: reasoning_gym.Config

    @property
    def text(self) -> str:
        return str(self.first) + "".join(f"{op}{b}" for op, b in self.rest) + "?"


def prompt(config: Config, split: Split, index: int, seed: int = 0) -> Prompt:
    """Problem `index` of `split`, as the tokenizer's chat template takes it.

    Raises:
        ValueError: unknown split, settings that give too few different problems to split, or the
            library is not there.
    """
    return _as_prompt(_problem(config, split, index, seed), split, index)


def demonstration(config: Config, index: int, seed: int = 0) -> tuple[Prompt, str]:
    """Training prompt `index` and a sloppy completion: thought, end marker, total (no <eos>).

    A hasty thought that has come to no result answers with the problem's first number.
    """
    problem = _problem(config, "train", index, seed)
    draw = draws(seed, "thought", index)
    thought = _think(config, problem, draw)
    if draw() < config.hasty:
        thought = _broken_off(thought, draw)
    answer = _known(thought) or problem.first
    return _as_prompt(problem, "train", index), f"{thought}{END_THINK}{answer}"


def _as_prompt(problem: Problem, split: Split, index: int) -> Prompt:
    terms = 1 + len(problem.rest)
    return Prompt(
        index=index,
        id=f"sums/{split}/{index}",
        messages=({"role": "user", "content": problem.text},),
        text="",
        answer=str(problem.entry["answer"]),
        verifier="exact",
        meta={
            "difficulty": terms,
            "n": terms,
            **reasoning_gym.scored(problem.source, problem.entry),
        },
    )


def _problem(config: Config, split: Split, index: int, seed: int) -> Problem:
    problem = of_split(lambda draw: _pose(config, draw), lambda p: p.text, split, seed, index)
    if problem is None:
        raise ValueError(
            f"terms {list(config.terms)} with digits {config.digits} give too few different "
            f"problems to fill a {split} split; allow more of either"
        )
    return problem


def _pose(config: Config, draw: Draw) -> Problem:
    """The library's first problem of a length drawn here whose totals stay in the range."""
    terms = between(draw, *config.terms)
    source = _source(terms, config.digits)
    low, high = config.totals
    for _ in range(_TRIES):
        entry = reasoning_gym.pose(source, draw)
        first, *rest = str(entry["metadata"]["expression"]).split()
        pairs = tuple(zip(rest[::2], map(int, rest[1::2]), strict=True))
        total = int(first)
        for op, b in pairs:
            total = _apply((total, op, b))
            if not low <= total <= high:
                break
        else:
            return Problem(int(first), pairs, entry, source)
    raise ValueError(
        f"totals: {list(config.totals)} leave out nearly every problem of {terms} terms; widen them"
    )


@lru_cache(maxsize=32)
def _source(terms: int, digits: int) -> reasoning_gym.Config:
    """The library's problems of so many terms.

    Raises:
        ValueError: the library is not there.
    """
    settings = {"min_terms": terms, "max_terms": terms, "min_digits": digits, "max_digits": digits}
    return reasoning_gym.Config(dataset="chain_sum", settings={**settings, "size": _SIZE})


def _apply(fact: Fact) -> int:
    a, op, b = fact
    return a + b if op == "+" else a - b


def _kind(fact: Fact) -> Fact:
    """What is confused: the last digits, whatever comes before them."""
    a, op, b = fact
    return a % 10, op, b % 10


@lru_cache(maxsize=8)
def _confusions(share: float) -> dict[Fact, int]:
    """The kinds of facts that are confused and by how much; the same in every data set."""
    draw = stream_of(key(_CONFUSION_SEED, 2)).__next__
    kinds = [(a, op, b) for a in range(10) for op in "+-" for b in range(10)]
    order = sorted((draw(), kind) for kind in kinds)
    return {kind: _off(draw) for _, kind in order[: round(share * len(kinds))]}


def _off(draw: Draw) -> int:
    return _OFF_BY[int(draw() * len(_OFF_BY))]


def _result(config: Config, fact: Fact, confused: float, draw: Draw) -> int:
    """A sloppy result. Being off never makes a total negative that is not."""
    right, usual = _apply(fact), _confusions(config.confusable).get(_kind(fact))
    if usual is not None and draw() < confused:
        off = usual
    elif draw() < config.slip:
        off = _off(draw)
    else:
        return right
    return right - off if right >= 0 > right + off else right + off


def _think(config: Config, problem: Problem, draw: Draw) -> str:
    """A sloppy thought."""
    thought = ""
    if draw() < config.restart:
        steps = between(draw, 1, len(problem.rest))
        thought = _pass(config, problem, config.confused, draw, steps) + "w"
    thought += _pass(config, problem, config.confused, draw) + "!"
    for _ in range(config.passes - 1):
        if len(thought) > config.longest or draw() >= config.verify:
            break
        thought += "w" + _pass(config, problem, config.confused_again, draw) + "!"
    return thought


def _pass(
    config: Config, problem: Problem, confused: float, draw: Draw, steps: int | None = None
) -> str:
    """Running totals of the first `steps` steps (all), each perhaps checked."""
    total = problem.first
    text = str(total)
    for op, b in problem.rest[:steps]:
        fact = (total, op, b)
        total = _result(config, fact, confused, draw)
        text += f"{op}{b}={total}"
        if draw() < config.recheck:
            total = _result(config, fact, config.confused_again, draw)
            text += f"r{fact[0]}{op}{b}={total}"
    return text


def _broken_off(thought: str, draw: Draw) -> str:
    """The thought up to a token drawn at random, never within a number."""
    end = between(draw, 0, len(thought))
    while thought[end : end + 1].isdigit():
        end += 1
    return thought[:end]


def _known(thought: str) -> str | None:
    """The last total of a thought, else the last running one, else None."""
    totals = _TOTAL.findall(thought) or _RUNNING.findall(thought)
    return totals[-1] if totals else None
