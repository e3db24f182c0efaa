"""One thinking budget for every rollout; a thought that reaches it is closed by force."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from samplers.budgets import base
from samplers.facts import MARKERS
from samplers.types import Plan, Prompt


class Config(base.Asking):
    think: int = Field(ge=0)
    """Thinking tokens before the end marker is forced."""

    @model_validator(mode="after")
    def _fits(self) -> Config:
        base.fit(self.think, self.answer, self.max_tokens)
        return self


def plans(config: Config, prompt: Prompt, n: int, step: int, memory: Any, key: int) -> list[Plan]:
    """`n` equal plans.

    Raises:
        ValueError: no response cap.
    """
    return [base.plan(config, think=config.think)] * n


def natural(config: Config) -> Plan:
    """No thinking budget."""
    return base.plan(config)


def requires(config: Config) -> dict[str, str]:
    return {MARKERS: base.CLOSES}
