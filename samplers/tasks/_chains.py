"""What the tasks about chains of digits modulo 7 share: tokens, random numbers, chains, splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import Literal, TypeVar

import numpy as np

from samplers.seeds import key, uniforms

Split = Literal["train", "test"]
Draw = Callable[[], float]
Fact = tuple[int, str, int]
"""`a op b`."""
Chain = tuple[int, tuple[tuple[str, int], ...]]
"""First digit, then (op, digit) each."""
P = TypeVar("P")

MODULUS = 7
LABELS = "ABCDEFGH"
THINK, END_THINK, EOS, PAD = "<think>", "</think>", "<eos>", "<pad>"
MODES = ("<b1>", "<b2>", "<b3>", "<b4>")
VOCABULARY = [PAD, EOS, THINK, END_THINK, *MODES, *"0123456789+-*=", *LABELS, *".!rwT;?:~"]
"""All tokens in the order of their ids: one per character, and the markers."""

_HELD_OUT = 8  # one prompt text in so many belongs to the test split
_STREAM = {"train": 1, "thought": 2, "test": 3, "instruction": 4}  # of random numbers, one each
_TRIES = 1000  # problems posed in search of one of the wanted split
_BLOCK, _STRIDE = 96, 1 << 20  # draws computed at once; draws reserved for one index


def apply(a: int, op: str, b: int) -> int:
    """The fact `a op b` modulo 7."""
    return {"+": a + b, "-": a - b, "*": a * b}[op] % MODULUS


def held_out(text: str) -> bool:
    """Whether a prompt text belongs to the test split: a property of the text alone."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()[0] % _HELD_OUT == 0


def draws(seed: int, stream: str, index: int) -> Draw:
    """An endless supply of uniforms in (0, 1) that belongs to `index` alone."""
    return stream_of(_key(seed, _STREAM[stream]), index * _STRIDE).__next__


_key = lru_cache(maxsize=64)(key)


def stream_of(stream_key: int, start: int = 0) -> Iterator[float]:
    """Uniforms of one key from `start` on."""
    for first in count(start, _BLOCK):
        positions_N = np.arange(first, first + _BLOCK, dtype=np.uint64)
        yield from uniforms(np.full(_BLOCK, stream_key, dtype=np.uint64), positions_N).tolist()


def between(draw: Draw, low: int, high: int) -> int:
    return low + int(draw() * (high - low + 1))


def of_split(
    pose: Callable[[Draw], P], text: Callable[[P], str], split: Split, seed: int, index: int
) -> P | None:
    """The first problem that `pose` makes of `index`'s draws and that belongs to `split`.

    None: there is none in many tries, so too few different problems to split.

    Raises:
        ValueError: unknown split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: got '{split}'; the task has 'train' and 'test'")
    draw = draws(seed, split, index)
    for _ in range(_TRIES):
        problem = pose(draw)
        if held_out(text(problem)) == (split == "test"):
            return problem
    return None


def pose_chain(draw: Draw, operators: Sequence[str], *, zero: bool) -> Chain:
    """A uniform chain among those that are (or are not) 0: only the last digit is constrained.

    `operators`: for each operation those it is drawn from; the last is of + and -, whose digit
    can make any value of any other.
    """
    first = value = int(draw() * MODULUS)
    rest = []
    for left, choice in zip(reversed(range(len(operators))), operators, strict=True):
        op, digit = choice[int(draw() * len(choice))], int(draw() * MODULUS)
        if left == 0:
            end = 0 if zero else 1 + int(draw() * (MODULUS - 1))
            digit = apply(end, "-", value) if op == "+" else apply(value, "-", end)
        value = apply(value, op, digit)
        rest.append((op, digit))
    return first, tuple(rest)


def question(chains: Sequence[Chain]) -> str:
    """`A6+4-6B3+4+3?`"""
    texts = (str(a) + "".join(f"{o}{b}" for o, b in rest) for a, rest in chains)
    return "".join(map("".join, zip(LABELS, texts, strict=False))) + "?"


def evaluate(chain: Chain, result: Callable[[Fact], int]) -> tuple[str, int]:
    """Text `6+4=3-6=4` and value of one evaluation; a wrong value is carried on."""
    value, rest = chain
    text = str(value)
    for op, b in rest:
        value = result((value, op, b))
        text += f"{op}{b}={value}"
    return text, value


def mistaken(fact: Fact, draw: Draw) -> int:
    """A wrong value of the fact."""
    return (apply(*fact) + 1 + int(draw() * (MODULUS - 1))) % MODULUS
