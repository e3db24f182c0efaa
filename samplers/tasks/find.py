"""Find: which candidate evaluates to 0 (mod 7)? A task a tiny model can think about.

A problem lists n chains of digits, `A6+4-6B3+4+3C0-0+0?`; exactly one is 0 modulo 7 and its label
is the answer. Evaluating a candidate costs 11 tokens, so accuracy grows with thinking: after c of
n candidates the answer is known with probability c/n and is otherwise a guess among n-c.

The demonstrations of the warm-up are sloppy on purpose: some facts are confused, candidates are
checked again, and the thought goes on after the hit. Reinforcement learning then has mistakes and
over-thinking to remove.

Everything is a function of (seed, split, index): nothing is stored, any index can be drawn alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from samplers.seam import Component
from samplers.seeds import key, uniforms
from samplers.types import Prompt

Split = Literal["train", "test"]
Draw = Callable[[], float]
Chain = tuple[int, tuple[tuple[str, int], ...]]
"""First digit, then (op, digit) each."""

MODULUS = 7
LABELS = "ABCDEFGH"
THINK, END_THINK, EOS, PAD = "<think>", "</think>", "<eos>", "<pad>"
MODES = ("<b1>", "<b2>", "<b3>", "<b4>")
VOCABULARY = [PAD, EOS, THINK, END_THINK, *MODES, *"0123456789+-*=", *LABELS, *".!rwT;?:~"]
"""All tokens in the order of their ids: one per character, and the markers."""

_HELD_OUT = 8  # one prompt text in so many belongs to the test split
_CONFUSION_SEED = 1238  # demonstrations are then right 3 times in 4: thinking twice can help
_STREAM = {"train": 1, "thought": 2, "test": 3}  # one stream of random numbers each
_TRIES = 1000  # problems posed in search of one of the wanted split
_BLOCK, _STRIDE = 96, 1 << 20  # draws computed at once; draws reserved for one index


class Config(Component):
    """Which problems are posed, and how sloppily the demonstrations think."""

    candidates: tuple[int, int] = (2, 6)
    """Fewest and most candidates of a problem (1 to 8), uniform between."""
    ops: tuple[int, int] = (2, 2)
    """Fewest and most operations of a candidate, uniform between, the same within a problem."""
    confusable: float = Field(0.35, ge=0, le=1)
    """Share of the 98 facts (a op b) that demonstrations confuse, each with one wrong value."""
    confused: float = Field(0.6, ge=0, le=1)
    """How often a confusable fact is wrong when a candidate is first evaluated."""
    confused_again: float = Field(0.2, ge=0, le=1)
    """The same when it is checked again: lower, so that checking helps."""
    slip: float = Field(0.02, ge=0, le=1)
    """How often any other fact is replaced by a random digit."""
    recheck: float = Field(0.45, ge=0, le=1)
    """How often a candidate is checked again (at most twice)."""
    go_on: float = Field(0.6, ge=0, le=1)
    """How often the thought goes on although a hit was found."""
    again_unsolved: float = Field(0.7, ge=0, le=1)
    """How often all is done a second time when the first pass found no hit."""
    again_solved: float = Field(0.35, ge=0, le=1)
    """How often all is done a second time when it did."""
    longest_pass: int = Field(115, ge=0)
    """A first pass with more tokens than this is never followed by a second."""

    @model_validator(mode="after")
    def _ranges(self) -> Config:
        for name, (low, high), least, most in (
            ("candidates", self.candidates, 1, len(LABELS)),
            ("ops", self.ops, 1, 16),
        ):
            if not least <= low <= high <= most:
                raise ValueError(
                    f"{name}: got [{low}, {high}]; write [fewest, most] within [{least}, {most}]"
                )
        return self


@dataclass(frozen=True, slots=True)
class Problem:
    """`chains[hit]` is 0 modulo 7, and no other is."""

    chains: tuple[Chain, ...]
    hit: int

    @property
    def text(self) -> str:
        chains = (str(a) + "".join(f"{o}{b}" for o, b in rest) for a, rest in self.chains)
        return "".join(map("".join, zip(LABELS, chains, strict=False))) + "?"


def apply(a: int, op: str, b: int) -> int:
    """The fact `a op b` modulo 7."""
    return (a + b if op == "+" else a - b) % MODULUS


def held_out(text: str) -> bool:
    """Whether a prompt text belongs to the test split: a property of the text alone."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()[0] % _HELD_OUT == 0


def prompt(config: Config, split: Split, index: int, seed: int = 0) -> Prompt:
    """Problem `index` of `split`, as the tokenizer's chat template takes it.

    Raises:
        ValueError: unknown split, or a config with too few different problems to split.
    """
    return _as_prompt(_problem(config, split, index, seed), split, index)


def demonstration(config: Config, index: int, seed: int = 0) -> tuple[Prompt, str]:
    """Training prompt `index` and a sloppy completion: thought, end marker, letter (no <eos>)."""
    problem = _problem(config, "train", index, seed)
    thought, letter = _think(config, problem, _draws(seed, "thought", index))
    return _as_prompt(problem, "train", index), f"{thought}{END_THINK}{letter}"


def _as_prompt(problem: Problem, split: Split, index: int) -> Prompt:
    return Prompt(
        index=index,
        id=f"find/{split}/{index}",
        messages=({"role": "user", "content": problem.text},),
        text="",
        answer=LABELS[problem.hit],
        verifier="exact",
        meta={
            "difficulty": len(problem.chains),
            "n": len(problem.chains),
            "ops": len(problem.chains[0][1]),
            "hit": problem.hit,
        },
    )


def _draws(seed: int, stream: str, index: int) -> Draw:
    """An endless supply of uniforms in (0, 1) that belongs to `index` alone."""
    return _uniforms(_key(seed, _STREAM[stream]), index * _STRIDE).__next__


_key = lru_cache(maxsize=64)(key)


def _uniforms(stream_key: int, start: int) -> Iterator[float]:
    for first in count(start, _BLOCK):
        positions_N = np.arange(first, first + _BLOCK, dtype=np.uint64)
        yield from uniforms(np.full(_BLOCK, stream_key, dtype=np.uint64), positions_N).tolist()


def _problem(config: Config, split: Split, index: int, seed: int) -> Problem:
    if split not in ("train", "test"):
        raise ValueError(f"split: got '{split}'; task find has 'train' and 'test'")
    draw = _draws(seed, split, index)
    for _ in range(_TRIES):
        problem = _pose(config, draw)
        if held_out(problem.text) == (split == "test"):
            return problem
    raise ValueError(
        f"candidates {list(config.candidates)} with ops {list(config.ops)} give too few different "
        f"problems to fill a {split} split; allow more of either"
    )


def _pose(config: Config, draw: Draw) -> Problem:
    n = _between(draw, *config.candidates)
    ops = _between(draw, *config.ops)
    hit = int(draw() * n)
    return Problem(tuple(_chain(draw, ops, zero=i == hit) for i in range(n)), hit)


def _chain(draw: Draw, ops: int, *, zero: bool) -> Chain:
    """A uniform chain among those that are (or are not) 0: only the last digit is constrained."""
    first = value = int(draw() * MODULUS)
    rest = []
    for left in reversed(range(ops)):
        op, digit = "+-"[draw() < 0.5], int(draw() * MODULUS)
        if left == 0:
            end = 0 if zero else 1 + int(draw() * (MODULUS - 1))
            digit = apply(end, "-", value) if op == "+" else apply(value, "-", end)
        value = apply(value, op, digit)
        rest.append((op, digit))
    return first, tuple(rest)


def _between(draw: Draw, low: int, high: int) -> int:
    return low + int(draw() * (high - low + 1))


@lru_cache(maxsize=8)
def _confusions(share: float) -> dict[tuple[int, str, int], int]:
    """The confusable facts and the wrong value of each; the same in every data set."""
    draw = _uniforms(key(_CONFUSION_SEED, 0), 0).__next__
    facts = [(a, op, b) for a in range(MODULUS) for op in "+-" for b in range(MODULUS)]
    order = sorted((draw(), fact) for fact in facts)
    chosen = (fact for _, fact in order[: round(share * len(facts))])
    return {f: (apply(*f) + 1 + int(draw() * (MODULUS - 1))) % MODULUS for f in chosen}


def _evaluate(config: Config, chain: Chain, confused: float, draw: Draw) -> tuple[str, int]:
    """Text and value of one sloppy evaluation; a wrong value is carried on."""
    wrong = _confusions(config.confusable)
    value, rest = chain
    text = str(value)
    for op, b in rest:
        fact = (value, op, b)
        if fact in wrong and draw() < confused:
            value = wrong[fact]
        elif draw() < config.slip:
            value = int(draw() * MODULUS)
        else:
            value = apply(*fact)
        text += f"{op}{b}={value}"
    return text, value


def _think(config: Config, problem: Problem, draw: Draw) -> tuple[str, str]:
    """A sloppy thought and the letter it ends with."""
    thought, found = _pass(config, problem, draw)
    again = config.again_unsolved if found is None else config.again_solved
    if len(thought) <= config.longest_pass and draw() < again:
        second, found_again = _pass(config, problem, draw)
        thought += "w" + second
        found = found_again if found_again is not None else found
    if found is None:
        found = int(draw() * len(problem.chains))
    return thought, LABELS[found]


def _pass(config: Config, problem: Problem, draw: Draw) -> tuple[str, int | None]:
    """Candidates in order, each perhaps checked again; and the last one thought to be 0."""
    thought, found = "", None
    for i, chain in enumerate(problem.chains):
        text, value = _evaluate(config, chain, config.confused, draw)
        thought += LABELS[i] + text + ".!"[value == 0]
        for _ in range(2):
            if draw() >= config.recheck:
                break
            text, value = _evaluate(config, chain, config.confused_again, draw)
            thought += "r" + text + ".!"[value == 0]
        if value == 0:
            found = i
            if draw() >= config.go_on:
                break
    return thought, found
