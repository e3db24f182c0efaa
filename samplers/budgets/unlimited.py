"""No budget: the model thinks until it closes its thought itself, or the response cap ends it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from samplers.seam import Component
from samplers.types import Plan, Prompt


class Config(Component):
    max_tokens: int = Field(1024, ge=1)
    """Cap of the whole response; a recipe's rollout.max_tokens unless set here."""
    answer: int | None = Field(None, ge=1)
    """Cap of the answer; None leaves it what the response cap leaves."""
    template: dict[str, Any] = Field(default_factory=dict)
    """Chat-template arguments (`enable_thinking`, `reasoning_effort`, ...)."""
    system: str | None = None
    """System message of every prompt."""
    suffix: str = ""
    """Text after the last user message."""
    prefill: str = ""
    """Forced start of every response."""


def plans(config: Config, prompt: Prompt, n: int, step: int, memory: Any, key: int) -> list[Plan]:
    """`n` equal plans."""
    return [Plan(**config.model_dump())] * n
