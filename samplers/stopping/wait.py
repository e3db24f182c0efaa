"""Budget forcing to a minimum (s1, arXiv:2501.19393): a thought that ends too early goes on.

The end marker that the model wrote is replaced by a text. The maximum of s1 is `Plan.think`.
"""

from __future__ import annotations

from pydantic import Field

from samplers.seam import Component
from samplers.types import Plan


class Config(Component):
    """How long a thought must be, and how it is kept going."""

    minimum: int = Field(ge=1)
    """Thinking tokens, forced ones included."""
    times: int = Field(2, ge=1)
    """How often a thought is kept going, at most."""
    text: str = Field("Wait", min_length=1)
    """What stands in the end marker's place."""


def resumes(config: Config, spent: int, times: int) -> str:
    return config.text if spent < config.minimum and times < config.times else ""


def check(config: Config, plan: Plan) -> None:
    most = plan.max_tokens if plan.think is None else plan.think
    if config.minimum > most:
        raise ValueError(
            f"stopping.minimum: {config.minimum} is above the thinking budget of {most} tokens; "
            "lower it, or raise the budget"
        )
