"""What stopping rules have in common: a look at a thought under way, and what may be done then.

A rule is a file with a `Config` (`every`: thinking tokens from look to look) and functions of which
it has those that it needs

    probe(config) -> Probe               what is put to the model at each look; it is not kept
    stops(config, looks) -> bool         pure: end the thought now?
    resumes(config, thought) -> str      text to go on with where the model wants to end; '' lets it
    bias(config, spent, budget) -> float logit added to the end marker after so many tokens

Offline the looks are the cuts of a saved trace: `exit_of` says at which of them a rule would have
stopped, by the same `stops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Probe:
    """A question put behind the thought so far."""

    text: str
    """Follows the thought; where it holds the end marker, the model answers."""
    tokens: int
    """Most tokens of what it says."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a rule sees."""

    spent: int
    """Thinking tokens so far."""
    answer: str | None
    """Canonical trial answer; None: none was given."""
    confidence: float
    """Geometric mean of the probabilities of the trial answer's tokens; NaN: not asked."""


def exit_of(rule: ModuleType, config: Any, looks: Sequence[Look]) -> int | None:
    """Index of the look at which the rule ends the thought; None: never."""
    for i in range(len(looks)):
        if rule.stops(config, looks[: i + 1]):
            return i
    return None
