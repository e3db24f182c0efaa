"""hierarchical: the rollouts of a prompt are split over budgets, each announced in its thought.

HBPO, Lyu et al. 2025 (arXiv:2507.15844; code: ZJU-REAL/HBPO): four subgroups of four, every
response begins with 'I will answer the question within {budget} tokens'. The text is forced, so it
counts as length where a reward says so and is never trained on (their code trains on it).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from samplers.budgets import base
from samplers.facts import MARKERS, SUBGROUPS, TARGET
from samplers.types import Plan, Prompt


class Config(base.Asking):
    budgets: tuple[int, ...] = Field((512, 1024, 2048, 2560), min_length=1)
    """Tokens that are announced, ascending: one subgroup each, of equal size [paper]."""
    prefill: str = "I will answer the question within {budget} tokens"
    """Forced start of every response [paper]; suffix, system and template may say {budget} too.
    Where the chat template does not open a thought, begin it with the start marker."""
    hard: bool = False
    """Also cut the thought at its budget."""

    @model_validator(mode="after")
    def _fits(self) -> Config:
        base.ascending(self.budgets)
        base.told(self, self.hard)
        base.below(self.budgets[-1], self.answer, self.max_tokens, self.hard, "budgets")
        return self


def plans(config: Config, prompt: Prompt, n: int, step: int, memory: Any, key: int) -> list[Plan]:
    """`n` plans, the budgets one after the other.

    Raises:
        ValueError: no response cap, or fewer rollouts than budgets.
    """
    counts = base.split(n, [1] * len(config.budgets), base.uniform(key))
    return [
        plan
        for budget, count in zip(config.budgets, counts, strict=True)
        for plan in [base.announce(config, budget, config.hard, subgroup=str(budget))] * count
    ]


def natural(config: Config) -> Plan:
    """No budget is announced."""
    return base.announce(config, None)


def asked(config: Config) -> dict[str, Plan]:
    """Every budget, by its number."""
    return {str(budget): base.announce(config, budget, config.hard) for budget in config.budgets}


def provides(config: Config) -> set[str]:
    return {SUBGROUPS, TARGET}


def requires(config: Config) -> dict[str, str]:
    return {MARKERS: "hard budgets cut thoughts"} if config.hard else {}
