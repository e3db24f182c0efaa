"""Stop by self-evaluation: the model is asked whether it would do better if it started over.

Manvi et al. (arXiv:2410.02725): a question behind what stands there, and the probability of its
answer 'No'. Here it is that of 'No' against that of 'Yes', so that models that would say neither
are not taken for uncertain. A high one ends the thought. The paper trains models to know it; others
guess.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from samplers.seam import Component
from samplers.stopping.base import Look, Probe

OFFLINE = False
"""Saved traces hold trial answers, and no answers to this question."""


class Config(Component):
    """What is asked, and how sure the model must be."""

    every: int = Field(64, ge=1)
    """Thinking tokens from look to look."""
    text: str = '\n\nWould you do better if you started over? ("Yes." or "No.")\n'
    """The question, behind the thought, which stays open."""
    no: str = "No"
    """The answer that ends the thought."""
    yes: str = "Yes"
    """The other one."""
    threshold: float = Field(0.9, gt=0, lt=1)
    """P(no) / (P(no) + P(yes)) must be above it."""


def probe(config: Config) -> Probe:
    return Probe(config.text, 0, close=False, temperature=1.0, given=(config.no, config.yes))


def stops(config: Config, looks: Sequence[Look]) -> bool:
    return looks[-1].share > config.threshold
