"""Early exit by confidence: the thought ends when a trial answer is given with certainty.

DEER (arXiv:2504.15895): the geometric mean of the probabilities of the trial answer's tokens,
above a threshold. There a look is taken where the model writes 'Wait'; here every so many tokens,
which needs no such word.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from samplers.stopping.base import Look, Probe, Watching, ask


class Config(Watching):
    """When a trial answer is certain."""

    threshold: float = Field(0.95, gt=0, lt=1)
    """The confidence must be above it."""


def probe(config: Config) -> Probe:
    return ask(config)


def stops(config: Config, looks: Sequence[Look]) -> bool:
    last = looks[-1]
    return last.answer is not None and last.confidence > config.threshold
