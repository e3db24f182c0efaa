"""Zeros: which candidates evaluate to 0 (mod 7)? A pool of levels, the last of them a hard tail.

A problem lists n chains of digits, `A6+4B3*4+2C0-0?`; each is 0 modulo 7 with probability one
half, and the answer lists the labels of all that are, `AC`, or `~` for none. Nothing is known
before the last chain is evaluated: a guess is right once in 2^n. A level says how many candidates
there are and which operators they use; its number is the difficulty.

The demonstrations of the warm-up confuse facts of some operators, each with one wrong value. By
default sums are always right, differences are wrong at times, and products, which only the tail
has, more often than not. The tail's candidates are traps: 0, or 0 for those who confuse the
product, so that each is right or wrong with its product and a problem of n is solved with
probability (1 - confused)^n, 1 in 40, whatever its answer is. A group of 8 rollouts is then mostly
all wrong, nothing that is learned at the other levels helps, and what is learned of a product helps
all problems that have it.

Everything is a function of (seed, split, index): nothing is stored, any index can be drawn alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from pydantic import Field, field_validator, model_validator

from samplers.seam import Component
from samplers.seeds import key
from samplers.tasks._chains import (
    END_THINK,
    LABELS,
    MODULUS,
    Chain,
    Draw,
    Fact,
    Split,
    apply,
    between,
    draws,
    evaluate,
    mistaken,
    of_split,
    pose_chain,
    question,
    stream_of,
)
from samplers.types import Prompt

NONE = "~"
"""The answer where no candidate is 0."""
_OPERATORS = "+-*"
_CONFUSION_SEED = 1238


class Level(Component):
    """Problems of one difficulty."""

    share: float = Field(gt=0)
    """How often a problem is of this level, in proportion to the other levels' shares."""
    candidates: tuple[int, int]
    """Fewest and most candidates of a problem (1 to 8), uniform between."""
    operators: tuple[str, ...]
    """For each operation of a candidate the operators it is drawn from, e.g. ['*', '+-']. The last
    may not be a product, which is 0 too rarely."""
    traps: bool = False
    """Candidates that are not 0 are 0 when their facts before the last are confused; without
    traps 5 in 6 of those mistakes do no harm."""

    @model_validator(mode="after")
    def _ranges(self) -> Level:
        low, high = self.candidates
        if not 1 <= low <= high <= len(LABELS):
            raise ValueError(
                f"candidates: got [{low}, {high}]; write [fewest, most] within [1, {len(LABELS)}]"
            )
        known = all(choice and not set(choice) - set(_OPERATORS) for choice in self.operators)
        if not known or not self.operators or "*" in self.operators[-1]:
            raise ValueError(
                f"operators: got {list(self.operators)}; write for each operation some of "
                f"{_OPERATORS}, and for the last some of +-"
            )
        return self


class Config(Component):
    """Which problems are posed, and how often the demonstrations are wrong."""

    levels: tuple[Level, ...] = (
        Level(share=0.6, candidates=(2, 3), operators=("+",)),
        Level(share=0.2, candidates=(2, 3), operators=("-", "+")),
        Level(share=0.2, candidates=(5, 5), operators=("*", "+"), traps=True),
    )
    """By default three in five are sums, which the demonstrations always get right."""
    confused: dict[str, float] = Field({"-": 0.35, "*": 0.52})
    """How often a fact of the operator is wrong in a demonstration; not named: never."""

    @field_validator("levels")
    @classmethod
    def _some(cls, levels: tuple[Level, ...]) -> tuple[Level, ...]:
        if not levels:
            raise ValueError("got none; write at least one level")
        return levels

    @field_validator("confused")
    @classmethod
    def _shares(cls, confused: dict[str, float]) -> dict[str, float]:
        for op, share in confused.items():
            if op not in tuple(_OPERATORS) or not 0 <= share <= 1:
                raise ValueError(f"got {op}: {share}; write +, - or * and a share within [0, 1]")
        return confused

    @model_validator(mode="after")
    def _traps(self) -> Config:
        for number, level in enumerate(self.levels, 1):
            sure = any(all(self.confused.get(op) for op in c) for c in level.operators[:-1])
            if level.traps and not sure:
                raise ValueError(
                    f"levels: level {number} has traps and operators {list(level.operators)}; one "
                    f"before the last must always be confused, of {sorted(self.confused)}"
                )
        return self


@dataclass(frozen=True, slots=True)
class Problem:
    """`zeros[i]` says whether `chains[i]` is 0 modulo 7. `level` counts from 1."""

    level: int
    chains: tuple[Chain, ...]
    zeros: tuple[bool, ...]

    @property
    def text(self) -> str:
        return question(self.chains)


def prompt(config: Config, split: Split, index: int, seed: int = 0) -> Prompt:
    """Problem `index` of `split`, as the tokenizer's chat template takes it.

    Raises:
        ValueError: unknown split, or a level with too few different problems to split.
    """
    return _as_prompt(_problem(config, split, index, seed), split, index)


def demonstration(config: Config, index: int, seed: int = 0) -> tuple[Prompt, str]:
    """Training prompt `index` and a completion: thought, end marker, labels (no <eos>).

    Every candidate is evaluated once, in order; the answer is what the evaluations say.
    """
    problem = _problem(config, "train", index, seed)
    draw = draws(seed, "thought", index)

    def result(fact: Fact) -> int:
        wrong = draw() < config.confused.get(fact[1], 0.0)
        return _confusions()[fact] if wrong else apply(*fact)

    thought, said = "", []
    for label, chain in zip(LABELS, problem.chains, strict=False):
        text, value = evaluate(chain, result)
        thought += label + text + ".!"[value == 0]
        said.append(value == 0)
    return _as_prompt(problem, "train", index), f"{thought}{END_THINK}{_answer(said)}"


def _as_prompt(problem: Problem, split: Split, index: int) -> Prompt:
    return Prompt(
        index=index,
        id=f"zeros/{split}/{index}",
        messages=({"role": "user", "content": problem.text},),
        text="",
        answer=_answer(problem.zeros),
        verifier="exact",
        meta={
            "difficulty": problem.level,
            "n": len(problem.chains),
            "zeros": sum(problem.zeros),
        },
    )


def _answer(zeros: tuple[bool, ...] | list[bool]) -> str:
    return "".join(label for label, zero in zip(LABELS, zeros, strict=False) if zero) or NONE


def _problem(config: Config, split: Split, index: int, seed: int) -> Problem:
    problem = of_split(lambda draw: _pose(config, draw), lambda p: p.text, split, seed, index)
    if problem is None:
        raise ValueError(
            f"levels give too few different problems to fill a {split} split; allow more "
            "candidates or operators"
        )
    return problem


def _pose(config: Config, draw: Draw) -> Problem:
    left = draw() * sum(level.share for level in config.levels)
    number = 0
    while number < len(config.levels) - 1 and left >= config.levels[number].share:
        left -= config.levels[number].share
        number += 1
    level = config.levels[number]
    zeros = tuple(draw() < 0.5 for _ in range(between(draw, *level.candidates)))
    chains = tuple(_candidate(config, level, draw, zero) for zero in zeros)
    return Problem(number + 1, chains, zeros)


def _candidate(config: Config, level: Level, draw: Draw, zero: bool) -> Chain:
    """A chain that is 0 or not. Of a trap the last digit makes the confused value 0."""
    while True:
        first, rest = pose_chain(draw, level.operators, zero=zero)
        if zero or not level.traps:
            return first, rest
        *before, (op, _) = rest
        told, value = (evaluate((first, tuple(before)), f)[1] for f in (_taken(config), _right))
        digit = apply(0, "-", told) if op == "+" else told
        if apply(value, op, digit):  # else two confusions made up for each other
            return first, (*before, (op, digit))


def _right(fact: Fact) -> int:
    return apply(*fact)


def _taken(config: Config) -> Callable[[Fact], int]:
    """Results for those who confuse all that is ever confused."""
    return lambda fact: _confusions()[fact] if config.confused.get(fact[1]) else apply(*fact)


@lru_cache(maxsize=1)
def _confusions() -> dict[Fact, int]:
    """The wrong value of every fact; the same in every data set."""
    draw = stream_of(key(_CONFUSION_SEED, 1)).__next__
    digits = range(MODULUS)
    return {
        fact: mistaken(fact, draw)
        for fact in ((a, op, b) for op in _OPERATORS for a in digits for b in digits)
    }
