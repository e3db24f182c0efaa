"""Early exit by consistency: the thought ends when trial answers agree.

Every so many tokens the thought is closed on trial and answered; the same canonical answer several
looks running ends it. Answer convergence (arXiv:2506.02536), and TrimR (arXiv:2505.17155) with
equality of answers in place of a judge.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from samplers.stopping.base import Look, Probe, Watching, ask


class Config(Watching):
    """When trial answers agree."""

    runs: int = Field(3, ge=2)
    """Looks running that must give the same answer."""


def probe(config: Config) -> Probe:
    return ask(config)


def stops(config: Config, looks: Sequence[Look]) -> bool:
    last = [look.answer for look in looks[-config.runs :]]
    return len(last) == config.runs and last[0] is not None and len(set(last)) == 1
