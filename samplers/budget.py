"""A budget as people and servers state it, how a model is told of it, and the plan it becomes.

Four controls that do not depend on each other, under the names that serving engines use: an effort
and an announced number of thinking tokens (the model may follow them), a hard number of thinking
tokens (the engine closes the thought), and a number of samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral

from pydantic import Field

from samplers.budgets import base
from samplers.budgets.base import Asking
from samplers.render import UNLIMITED, Renderer
from samplers.seam import Component
from samplers.types import Plan

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""Values of `reasoning_effort`, as vLLM knows them."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a caller allows.

    Raises:
        ValueError: a number below what it can be, or an unknown effort.
    """

    thinking_tokens: int | None = None
    """Thinking tokens before the end marker; 0: no thought. None or -1: no limit."""
    answer_tokens: int | None = None
    """Most tokens of an answer; None: what the response cap leaves."""
    effort: str | None = None
    """One of `EFFORTS`, asked for in the prompt."""
    samples: int = 1
    """Thoughts sampled of each prompt."""
    hard: bool = True
    """The engine closes the thought at `thinking_tokens`; else they are announced and no more."""

    def __post_init__(self) -> None:
        for name in ("thinking_tokens", "answer_tokens", "samples"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Integral):
                raise ValueError(f"{name}: {value!r}; write a whole number")
        if self.thinking_tokens is not None and self.thinking_tokens < UNLIMITED:
            raise ValueError(
                f"thinking_tokens: {self.thinking_tokens}; 0 or more, or -1 (or None) for no limit"
            )
        for name, value in (("answer_tokens", self.answer_tokens), ("samples", self.samples)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value}; 1 or more")
        if self.effort is not None and self.effort not in EFFORTS:
            raise ValueError(f"effort: '{self.effort}' is none of {', '.join(EFFORTS)}")

    @property
    def limit(self) -> int | None:
        """Thinking tokens, None where there is no limit."""
        return None if self.thinking_tokens == UNLIMITED else self.thinking_tokens


class Asks(Component):
    """How a model is told of a budget. What is not said here, the model cannot be told."""

    default: Asking = Asking()
    """Where neither a number nor an effort is told."""
    budget: Asking | None = None
    """Announces a number of thinking tokens: a text or template argument says '{budget}'."""
    efforts: Mapping[str, Asking] = Field(default_factory=dict)
    """How each effort is asked for."""


def asks_of(renderer: Renderer) -> Asks:
    """How the chat template itself lets a model be told: by its own variables, and by no value
    that it refuses."""
    known, takes = renderer.variables, renderer.takes
    efforts: dict[str, Asking] = {}
    if "reasoning_effort" in known:
        names = [name for name in EFFORTS if takes(reasoning_effort=name)]
        efforts = {name: Asking(template={"reasoning_effort": name}) for name in names}
    if "enable_thinking" in known and takes(enable_thinking=False):
        efforts["none"] = Asking(template={"enable_thinking": False})
    numbers = "thinking_budget" in known and takes(thinking_budget=512)
    said = Asking(template={"thinking_budget": base.BUDGET})
    return Asks(budget=said if numbers else None, efforts=efforts)


def plan_of(budget: Budget, asks: Asks, max_tokens: int) -> Plan:
    """The plan of each sample.

    A number is announced where the model can be told of one and no effort is asked for, and
    enforced where it is hard.

    Raises:
        ValueError: an effort, or a budget that is not hard, of which this model cannot be told.
    """
    limit, effort = budget.limit, budget.effort
    asking = asks.default
    if effort is not None:
        if effort not in asks.efforts:
            known = ", ".join(asks.efforts) or "none: its chat template has no such argument"
            raise ValueError(f"effort: this model cannot be asked for '{effort}'; it knows {known}")
        if limit is not None and not budget.hard:
            raise ValueError(
                f"thinking_tokens: {limit} is not announced beside effort '{effort}', and "
                "hard=False enforces none; set hard=True, or ask for one of both"
            )
        asking = asks.efforts[effort]
    elif limit is not None and asks.budget is not None:
        asking = asks.budget
    elif limit is not None and not budget.hard:
        raise ValueError(
            f"thinking_tokens: {limit} would have no effect: this model cannot be told of a budget "
            "(its chat template has no thinking_budget) and hard=False enforces none; set hard=True"
        )
    settings = {"max_tokens": max_tokens, "answer": budget.answer_tokens}
    asked = asking.model_copy(update={k: v for k, v in settings.items() if v is not None})
    return replace(base.announce(asked, limit, budget.hard), target=limit)
