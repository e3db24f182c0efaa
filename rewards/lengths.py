"""How long an answer was, as length rewards count it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from samplers.types import Answer, Group, Rollout, Tokens

Kind = Literal["think", "response"]


def lengths(group: Group, kind: Kind = "response") -> NDArray[np.float64]:
    """[G, C, A] sampled tokens that led to each answer; forced tokens never count.

    'think': the thought as far as the answer saw it, its natural end marker not counted.
    'response': that thought, the marker included, and the answer itself.
    """
    count = _think if kind == "think" else _response
    return np.array(
        [[[count(r, a) for a in cut] for cut in r.answers] for r in group.rollouts],
        dtype=np.float64,
    )


def _think(rollout: Rollout, answer: Answer) -> int:
    return _sampled(rollout.thought, min(answer.after, rollout.think_tokens))


def _response(rollout: Rollout, answer: Answer) -> int:
    return _sampled(rollout.thought, answer.after) + _sampled(answer.tokens, len(answer.tokens))


def _sampled(tokens: Tokens, end: int) -> int:
    return int((~tokens.forced_T[:end]).sum())
