"""tiered: a tight cap where the prompt is easy by now, a wide one elsewhere.

DA-DLER, Liu et al. 2025 (arXiv:2510.15110), which goes on from DLER's single hard cap: 2000 tokens
where the pass rate is above one half, else 4000. Pass rates are those of the run itself, so the
tiers do something from the second epoch on; a prompt never seen has the wide cap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from samplers.budgets import base
from samplers.facts import MARKERS
from samplers.types import Group, Plan, Prompt


class Config(base.Asking):
    easy: int = Field(2000, ge=1)
    """Cap of prompts that pass [paper]."""
    hard: int = Field(4000, ge=1)
    """Cap of the others, and of those never seen [paper]."""
    above: float = Field(0.5, ge=0, lt=1)
    """A prompt is easy where its pass rate is above this [paper]."""
    cap: Literal["response", "think"] = "response"
    """`response`: generation ends there, answered or not [paper]; `think`: the thought is closed by
    force and answered."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Share of the old pass rate in the new one; 0: the last one alone."""
    remember: int = Field(100_000, ge=1)
    """Prompts whose pass rates are kept; the longest unseen are forgotten."""

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.easy >= self.hard:
            raise ValueError(
                f"easy={self.easy} must be below hard={self.hard}: the easy prompts are to be short"
            )
        base.below(self.hard, self.answer, self.max_tokens, self.cap == "think", "hard")
        return self


def plans(config: Config, prompt: Prompt, n: int, step: int, memory: Any, key: int) -> list[Plan]:
    """`n` plans with the cap of the prompt's tier.

    Raises:
        ValueError: no response cap.
    """
    easy = memory.get(prompt.id, 0.0) > config.above
    cap = config.easy if easy else config.hard
    field = "max_tokens" if config.cap == "response" else "think"
    return [base.plan(config, **{field: cap})] * n


def observe(config: Config, groups: Sequence[Group], memory: dict[str, float]) -> None:
    """Remember each prompt's pass rate: right among the known final answers."""
    for group in groups:
        known_G = group.known_GCA[:, -1, 0]
        if not known_G.any():
            continue
        rate = float(group.correct_GCA[:, -1, 0][known_G].mean())
        old = memory.pop(group.prompt.id, rate)  # back in as the newest
        memory[group.prompt.id] = config.momentum * old + (1 - config.momentum) * rate
    for prompt in list(memory)[: max(0, len(memory) - config.remember)]:
        del memory[prompt]


def natural(config: Config) -> Plan:
    """Up to the cap of all responses."""
    return base.plan(config)


def requires(config: Config) -> dict[str, str]:
    return {MARKERS: "thoughts are closed at the cap"} if config.cap == "think" else {}
