"""elastic: think at most t tokens, be closed by force if needed, answer in at most s more.

Elastic Reasoning, Xu et al. 2025 (arXiv:2505.05315): one budget c = t + s, and the same splice in
training as in serving. The forced marker is never trained on (their code does).
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

from pydantic import model_validator

from samplers import seeds
from samplers.budgets import base
from samplers.budgets.base import Amount
from samplers.facts import MARKERS
from samplers.types import Plan, Prompt


class Config(base.Asking):
    think: Amount = 1024
    """Thinking tokens before the end marker is forced: a number [paper: 1024], a range [low, high]
    to draw from, or 'meta:COLUMN' of each prompt."""
    answer: Amount | None = 1024  # type: ignore[assignment]  # wider than where it comes from
    """Cap of the answer, likewise [paper: 1024]; None leaves it what the response cap leaves."""
    per: Literal["prompt", "rollout"] = "prompt"
    """Ranges are drawn once for all rollouts of a prompt, which are then compared under equal
    budgets, or for each."""
    separate: bool = True
    """False: one budget for both, think + end marker + answer, the control. Nothing is forced;
    generation ends there, answered or not."""

    @model_validator(mode="after")
    def _fits(self) -> Config:
        answer = None if self.answer is None else base.largest(self.answer)
        base.fit(base.largest(self.think), answer, self.max_tokens)
        if self.answer is None and not self.separate:
            raise ValueError("separate=false adds think and answer up; answer is null: set it")
        drawn = isinstance(self.think, tuple) or isinstance(self.answer, tuple)
        if self.per == "rollout" and not drawn:
            warnings.warn(
                f"budget.per=rollout has no effect: think={self.think} and answer={self.answer} "
                "are no ranges",
                stacklevel=2,
            )
        return self


def plans(config: Config, prompt: Prompt, n: int, step: int, memory: Any, key: int) -> list[Plan]:
    """`n` plans with the prompt's budgets.

    Raises:
        ValueError: no response cap, or budgets in the prompt's row that are none or do not fit.
    """
    if config.per == "prompt":
        return [_plan(config, prompt, key)] * n
    return [_plan(config, prompt, seeds.key(key, i)) for i in range(n)]


def _plan(config: Config, prompt: Prompt, key: int) -> Plan:
    think = base.tokens(config.think, prompt, base.uniform(key, 0))
    answer = None
    if config.answer is not None:
        answer = base.tokens(config.answer, prompt, base.uniform(key, 1))
    base.fit(think, answer, config.max_tokens, where=f"budget of prompt '{prompt.id}': ")
    if not config.separate and answer is not None:
        return base.plan(config, max_tokens=think + 1 + answer, answer=None)
    return base.plan(config, think=think, answer=answer)


def natural(config: Config) -> Plan:
    """No thinking budget."""
    if config.answer is None or isinstance(config.answer, str):
        return base.plan(config, answer=None)
    return base.plan(config, answer=base.largest(config.answer))


def requires(config: Config) -> dict[str, str]:
    return {MARKERS: base.CLOSES} if config.separate else {}
