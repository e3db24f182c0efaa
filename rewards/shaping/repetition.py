"""repetition: a penalty that grows with the share of n-grams that were written before.

max_penalty * (1 - different n-grams / n-grams), 0 where a text is shorter than one n-gram. In
words (Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning", arXiv:2502.03373; open-r1)
or in token ids (TRL). Every answer gets it, right or wrong: with max_penalty at -1 a right answer
that only repeats itself earns less than a short wrong one; `gate: correct` mends that.
`repetition_dense` is the third form, per token.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rewards.shaping.base import Gated, added
from rewards.texts import Decode, Part, answers, ids, texts
from samplers.facts import MARKERS
from samplers.types import Group


class Config(Gated):
    form: Literal["tokens", "words"] = "tokens"
    """What n-grams are made of: token ids, or words in lower case between white space."""
    ngram: int = Field(3, ge=1)
    """Tokens or words of an n-gram (open-r1; Phi-4 has 5)."""
    max_penalty: float = Field(-1.0, lt=0)
    """Reward of endless repetition (open-r1)."""
    part: Part = "response"
    """What is read: the 'think' part, the 'answer', or both ('response', the published one)."""


def requires(config: Config) -> dict[str, str]:
    return {MARKERS: "part=think reads the thought"} if config.part == "think" else {}


def shape(
    groups: Sequence[Group], config: Config, state: Any, decode: Decode | None
) -> tuple[list[NDArray[np.float64]], Any]:
    """One [G, C, A] array per group, in [max_penalty, 0]; each answer's own sampled tokens."""
    read = _words(groups, config, decode) if config.form == "words" else _tokens(groups, config)
    out = []
    for group, rows in zip(groups, read, strict=True):
        penalties = [penalty(row, config.ngram, config.max_penalty) for row in rows]
        extra_GCA = np.array(penalties).reshape(group.known_GCA.shape)
        out.append(added(group, extra_GCA, config.gate))
    return out, state


def penalty(items: Sequence[Hashable], n: int, max_penalty: float) -> float:
    """`max_penalty` times the share of n-grams of `items` that occurred before."""
    total = len(items) - n + 1
    if total < 1:
        return 0.0
    different = len(set(zip(*(items[i:] for i in range(n)), strict=False)))
    return (1.0 - different / total) * max_penalty


def words(text: str) -> list[str]:
    return text.lower().split()


def _words(groups: Sequence[Group], config: Config, decode: Decode | None) -> list[list[Any]]:
    return [[words(text) for text in row] for row in texts(groups, config.part, decode)]


def _tokens(groups: Sequence[Group], config: Config) -> list[list[Any]]:
    return [[ids(*cell, config.part).tolist() for cell in answers(g)] for g in groups]
