"""repetition_dense: every token of an n-gram that was written before costs a little.

Per token, so that credit goes where the repetition is: `algorithm: dense` uses it, group methods
add it up. Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning" (arXiv:2502.03373). A
long loop may cost more than a right answer earns; `gate: correct` mends that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rewards.shaping.base import Gated, least, right
from rewards.texts import Part
from samplers.facts import MARKERS, TOKEN_REWARDS
from samplers.types import Group, Ids, Rollout

Floats = NDArray[np.float64]


class Config(Gated):
    ngram: int = Field(40, ge=1)
    """Tokens of an n-gram (the paper)."""
    penalty: float = Field(-0.05, lt=0)
    """Reward of each token of a repeated n-gram (the paper)."""
    only_start: bool = False
    """Only where a repetition begins: an n-gram that starts within the one repeated before it, or
    right at its end, goes free."""
    part: Part = "response"
    """What is read: the 'think' part, the 'answer', or both."""


def provides(config: Config) -> set[str]:
    return {TOKEN_REWARDS}


def requires(config: Config) -> dict[str, str]:
    return {MARKERS: "part=think reads the thought"} if config.part == "think" else {}


def shape_tokens(
    groups: Sequence[Group], config: Config, state: Any
) -> tuple[list[tuple[Floats, ...]], Any]:
    """One [T] array per rollout: thought as far as the final answer saw it, then that answer.

    Forced tokens are read and cost nothing.
    """
    out = []
    for group in groups:
        most_G = np.full(len(group), np.inf)
        if config.gate == "correct":
            most_G = np.where(right(group), -least(group), 0.0)[:, -1, 0]
        pairs = zip(group.rollouts, most_G, strict=True)
        out.append(tuple(_rollout(rollout, most, config) for rollout, most in pairs))
    return out, state


def _rollout(rollout: Rollout, most: float, config: Config) -> Floats:
    """[T], scaled down to a sum of -`most` if it is below."""
    after, said = rollout.final.after, rollout.final.tokens
    ids_T = np.concatenate([rollout.thought.ids_T[:after], said.ids_T])
    forced_T = np.concatenate([rollout.thought.forced_T[:after], said.forced_T])
    first = after if config.part == "answer" else 0
    last = after if config.part == "think" else len(ids_T)
    out_T = np.zeros(len(ids_T))
    out_T[first:last] = penalties(
        ids_T[first:last], config.ngram, config.penalty, config.only_start
    )
    out_T[forced_T] = 0.0
    return out_T * min(1.0, most / -out_T.sum()) if out_T.any() else out_T


def penalties(ids: Sequence[int] | Ids, n: int, penalty: float, only_start: bool) -> Floats:
    """[T]: `penalty` at each token of a repeated n-gram, 0 elsewhere.

    With `only_start` an n-gram counts only if it starts beyond the end (start + n) of the repeated
    one before it, whether that counted or not.
    """
    out_T = np.zeros(len(ids))
    raw = np.asarray(ids, np.int32).tobytes()  # slices of bytes hash faster than tuples
    seen: set[bytes] = set()
    end = 0
    for start in range(len(ids) - n + 1):
        gram = raw[4 * start : 4 * (start + n)]
        if gram not in seen:
            seen.add(gram)
            continue
        if not only_start or start > end:
            out_T[start : start + n] = penalty
        end = start + n
    return out_T
