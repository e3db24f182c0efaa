"""One thinking budget for every rollout; a thought that reaches it is closed by force."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from samplers.seam import Component
from samplers.types import Plan, Prompt


class Config(Component):
    think: int = Field(ge=0)
    """Thinking tokens before the end marker is forced."""
    answer: int | None = Field(None, ge=1)
    """Cap of the answer; None leaves it what the response cap leaves."""
    max_tokens: int | None = Field(None, ge=1)
    """Cap of the whole response; a recipe's rollout.max_tokens unless set here."""
    close: str = ""
    """Text that closes a cut thought (with the end marker in it); empty: the marker alone."""
    after_close: str = ""
    """Text forced after every end marker, before the answer."""
    template: dict[str, Any] = Field(default_factory=dict)
    """Chat-template arguments (`enable_thinking`, `reasoning_effort`, ...)."""
    system: str | None = None
    """System message of every prompt."""
    suffix: str = ""
    """Text after the last user message."""
    prefill: str = ""
    """Forced start of every response."""

    @model_validator(mode="after")
    def _fits(self) -> Config:
        need = self.think + 1 + (self.answer or 1)
        if self.max_tokens is not None and need > self.max_tokens:
            raise ValueError(
                f"think={self.think}, the end marker and answer={self.answer or 1} need {need} "
                f"tokens, more than max_tokens={self.max_tokens}; lower think or raise the cap "
                "(rollout.max_tokens)"
            )
        return self


def plans(config: Config, prompt: Prompt, n: int, step: int, memory: Any, key: int) -> list[Plan]:
    """`n` equal plans.

    Raises:
        ValueError: no response cap.
    """
    if config.max_tokens is None:
        raise ValueError("budget.max_tokens: not set; give the cap of a whole response in tokens")
    return [Plan(**config.model_dump())] * n
