"""thinkdial: the length reward of Kimi with a weight of each mode, and no thinking in the answer.

R = [right] + alpha(mode) * lambda + leak, lambda within the (prompt, mode) group (see kimi) and
leak +1/2 where the answer has no transition word, else -1/2: without it reasoning moves from the
thought to the answer. ThinkDial (2508.18773), equations 3-5.

Wrong answers are paid for cleanness and punished for length, and a long right one that leaks
(1 - 1/2 - 1/2) gets less than a clean wrong one: `gate: correct` mends both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from rewards.shaping import base, kimi
from rewards.shaping.base import Bools, Floats
from samplers.facts import MODES
from samplers.types import Group


class Config(base.Compared, base.Gated):
    within: Literal["group", "subgroup"] = "subgroup"
    """Lengths are compared within the (prompt, mode) group, as in the paper."""
    alpha: Mapping[str, float] = Field({"high": 0.0, "medium": 0.5, "low": 1.0, "none": 0.0})
    """Weight of the length reward in each mode ('none', which has no thought, is ours)."""
    leak: float = Field(0.5, ge=0)
    """Reward of an answer without transition words, and loss of one with any or of no answer."""
    keywords: tuple[str, ...] = Field(
        ("wait", "let me think", "actually", "alternatively", "however"), min_length=1
    )
    """Transition words: whole words, in any case. The paper's list goes on without saying how."""


def requires(config: Config) -> Mapping[str, str]:
    return {MODES: "its weights are those of named modes", **base.requires(config)}


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group: R minus `correct`. Raises ValueError for an unnamed mode."""
    out = []
    for group in groups:
        alpha_G11 = base.by_mode(group, config.alpha, "thinkdial.alpha")
        length_GCA = alpha_G11 * base.compared(group, config, kimi.rewards)
        leak_GCA = np.where(leaks(group, config.keywords), -config.leak, config.leak)
        out.append(base.added(group, length_GCA + leak_GCA, config.gate))
    return out, state


def leaks(group: Group, keywords: Sequence[str]) -> Bools:
    """[G, C, A]: the answer holds one of the words, or there is no answer to be clean."""
    words = re.compile("|".join(map(_whole, keywords)), re.IGNORECASE)
    return np.array(
        [
            [[a.text is None or words.search(a.text) is not None for a in cut] for cut in r.answers]
            for r in group.rollouts
        ]
    )


def _whole(word: str) -> str:
    """A pattern of `word` that does not match inside a longer one; signs match anywhere."""
    before, after = (r"\b" if edge.isalnum() else "" for edge in (word[0], word[-1]))
    return before + re.escape(word) + after
