"""How long an answer was, as length rewards count it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from samplers.types import Group, Rollout, Tokens

Kind = Literal["think", "response"]


def lengths(
    group: Group, kind: Kind = "response", count_forced: bool = False
) -> NDArray[np.float64]:
    """[G, C, A] tokens that led to each answer: the sampled ones, with `count_forced` all.

    'think': the thought as far as the answer saw it, its natural end marker not counted.
    'response': that thought, the marker included, and the answer itself. A prefill is part of the
    thought; what closed a cut thought, and what was inserted after it, are part of the answer.
    """
    return np.array(
        [_rollout(rollout, kind, count_forced) for rollout in group.rollouts], dtype=np.float64
    )


def _rollout(rollout: Rollout, kind: Kind, count_forced: bool) -> list[list[int]]:
    """[cut][answer]."""

    def before(tokens: Tokens) -> NDArray[np.int_]:
        """[T + 1]: how many of the first 0, 1, ... T tokens count."""
        if count_forced:
            return np.arange(len(tokens) + 1)
        return np.concatenate([[0], np.cumsum(~tokens.forced_T)])

    thought = before(rollout.thought)
    if kind == "think":
        thought = thought[: rollout.think_tokens + 1]
        return [[int(thought[: a.after + 1][-1]) for a in cut] for cut in rollout.answers]
    return [[int(thought[a.after] + before(a.tokens)[-1]) for a in cut] for cut in rollout.answers]
