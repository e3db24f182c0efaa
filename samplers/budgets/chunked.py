"""chunked: another policy's rollouts, made in pieces of at most C tokens, one piece a step.

MiniCPM4 (arXiv:2506.07900), section on chunk-wise rollout: what a step leaves unfinished goes on in
the next with newer weights, so that no step waits for its longest rollout. Behaviour logprobs are
those of each piece's weights. Best of their 4k, 8k and 16k: 8k.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from types import ModuleType
from typing import Any

from pydantic import Field, model_validator

from samplers.budgets import base
from samplers.facts import CHUNKS, CUTS
from samplers.seam import Component
from samplers.types import Group, Plan, Prompt


class Config(Component):
    of: Any = "unlimited"
    """The policy whose rollouts these are: a name, or a mapping with `name` and settings."""
    chunk: int = Field(ge=1)
    """Tokens that a rollout makes in a step at most."""
    max_tokens: int | None = Field(None, ge=1)
    """Cap of the whole response; a recipe's rollout.max_tokens unless set here."""

    @model_validator(mode="after")
    def _whole(self) -> Config:
        if CUTS in base.said("provides", *self.inner):
            raise ValueError(f"of: {_CUT}")
        if CHUNKS in base.said("provides", *self.inner):
            raise ValueError("of: is chunked already; set its chunk here and leave the other out")
        if self.max_tokens is not None and self.chunk >= self.max_tokens:
            warnings.warn(
                f"budget.chunk={self.chunk} has no effect: no response is longer than "
                f"max_tokens={self.max_tokens}",
                stacklevel=2,
            )
        return self

    @cached_property
    def inner(self) -> tuple[ModuleType, Any]:
        """Module and config of the policy inside."""
        return base.inner(self.of, self.max_tokens)


_CUT = (
    "answers at several cuts of one thought need it whole, and chunked makes it in pieces; leave "
    "chunked out, or use a policy of one answer (elastic, fixed, unlimited)"
)


def plans(config: Config, prompt: Prompt, n: int, step: int, memory: Any, key: int) -> list[Plan]:
    """The inner policy's plans, with a chunk.

    Raises:
        ValueError: these have several cuts or answers, or what the inner policy raises.
    """
    module, inner = config.inner
    made = module.plans(inner, prompt, n, step, memory, key)
    if any(plan.cuts or plan.answers_per_cut > 1 for plan in made):
        raise ValueError(f"budget.of: {_CUT}")
    return [replace(plan, chunk=config.chunk) for plan in made]


def observe(config: Config, groups: Sequence[Group], memory: dict[str, Any]) -> None:
    module, inner = config.inner
    if hasattr(module, "observe"):
        module.observe(inner, groups, memory)


def natural(config: Config) -> Plan:
    return base.natural(*config.inner)


def changes(config: Config) -> list[int]:
    return base.changes(*config.inner)


def last_step(config: Config) -> int:
    """The first step from which nothing is scheduled to change."""
    return base.last_step(*config.inner)


def provides(config: Config) -> set[str]:
    return {CHUNKS, *base.said("provides", *config.inner)}


def requires(config: Config) -> dict[str, str]:
    return dict(base.said("requires", *config.inner))


def refuses(config: Config) -> dict[str, str]:
    return dict(base.said("refuses", *config.inner))
