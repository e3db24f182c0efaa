"""A soft landing: the logit of the end marker is raised while the thought grows.

By strength * clip((t - start) / (end - start), 0, 1) after t thinking tokens: the model still
chooses where it ends, and the later the rather. (Liu and Wang, arXiv:2506.02536, raise it by a
constant.) Nothing is asked of the model, so it costs nothing where the engine has ramps (torch).
Elsewhere (vLLM) the thought is made in pieces of `every` tokens while the logit rises, each with a
constant: that of its middle; every piece reads again what the prefix cache lacks.
"""

from __future__ import annotations

from pydantic import Field

from samplers.seam import Component
from samplers.types import Plan, Ramp


class Config(Component):
    """How far, and where."""

    strength: float = 8.0
    """Added to the logit in the end; 0: nothing, below 0: the thought is drawn out."""
    start: int | None = Field(None, ge=0)
    """Thinking tokens up to which nothing is added; None: half of the budget."""
    end: int | None = Field(None, ge=1)
    """Thinking tokens from which all is; None: the budget."""
    every: int = Field(16, ge=1)
    """Tokens of a piece, for engines without ramps."""


def ramp(config: Config, budget: int | None, token: int = 0) -> Ramp:
    end = float(budget or 0) if config.end is None else config.end
    start = (budget or end) / 2 if config.start is None else config.start
    return Ramp(token, start, end, config.strength)


def bias(config: Config, spent: int, budget: int | None = None) -> float:
    """What is added after so many thinking tokens."""
    return ramp(config, budget).at(spent)


def check(config: Config, plan: Plan) -> None:
    if plan.think is None and config.end is None:
        raise ValueError(
            "stopping.end: a ramp without a thinking budget needs the number of tokens where it "
            "ends; set it, or a budget"
        )
    made = ramp(config, plan.think)
    if made.start >= made.end:
        raise ValueError(
            f"stopping.start: {made.start:g} is not below the ramp's end of {made.end:g} tokens"
        )
