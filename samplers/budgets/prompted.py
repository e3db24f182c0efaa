"""prompted: a number of tokens in the prompt, to be met or not to be exceeded.

L1 (LCPO), Aggarwal & Welleck 2025 (arXiv:2503.04697; code: cmu-l3/l1): 'Think for N tokens.' or
'Think for maximum N tokens.', N drawn from 100 to 4000. Nothing is enforced unless `hard`; rewards
that read the target (l1) make the model keep it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from samplers import seeds
from samplers.budgets import base
from samplers.budgets.base import Amount
from samplers.facts import MARKERS, TARGET
from samplers.types import Plan, Prompt

ASKED = 5
"""Numbers of a range that evaluation asks for."""


class Config(base.Asking):
    budget: Amount = (100, 4000)
    """Tokens that are announced: a number, a range [low, high] to draw from [paper], or
    'meta:COLUMN' of each prompt."""
    suffix: str = " Think for {budget} tokens."
    """Text after the last user message [paper; to stay below the number its text is ' Think for
    maximum {budget} tokens.']; system, prefill and template may say {budget} too."""
    per: Literal["prompt", "rollout"] = "prompt"
    """Drawn once for all rollouts of a prompt [paper], or for each."""
    hard: bool = False
    """Also cut the thought at its budget."""

    @model_validator(mode="after")
    def _fits(self) -> Config:
        base.told(self)
        base.below(base.largest(self.budget), self.answer, self.max_tokens, self.hard, "budget")
        return self


def plans(config: Config, prompt: Prompt, n: int, step: int, memory: Any, key: int) -> list[Plan]:
    """`n` plans that announce the prompt's budget, or each its own.

    Raises:
        ValueError: no response cap, or a budget in the prompt's row that is none or does not fit.
    """
    if config.per == "prompt":
        return [_plan(config, prompt, key)] * n
    return [_plan(config, prompt, seeds.key(key, i)) for i in range(n)]


def _plan(config: Config, prompt: Prompt, key: int) -> Plan:
    budget = base.tokens(config.budget, prompt, base.uniform(key))
    where = f"budget of prompt '{prompt.id}': "
    base.below(budget, config.answer, config.max_tokens, config.hard, "budget", where)
    return base.announce(config, budget, config.hard)


def natural(config: Config) -> Plan:
    """A prompt that is always asked with the same number is so here too; else none is announced."""
    return base.announce(config, config.budget if isinstance(config.budget, int) else None)


def asked(config: Config) -> dict[str, Plan]:
    """Numbers evenly over the range, both ends among them; none where each prompt has its own."""
    if isinstance(config.budget, str):
        return {}
    low, high = (config.budget,) * 2 if isinstance(config.budget, int) else config.budget
    budgets = [low + round(i * (high - low) / (ASKED - 1)) for i in range(ASKED)]
    return {str(budget): base.announce(config, budget, config.hard) for budget in budgets}


def provides(config: Config) -> set[str]:
    return {TARGET}


def requires(config: Config) -> dict[str, str]:
    return {MARKERS: "hard budgets cut thoughts"} if config.hard else {}
