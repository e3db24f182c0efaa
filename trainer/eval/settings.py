"""What an evaluation asks of a model, and the plans that follow: one for each way of asking.

Two experiments that are never mixed in one table. In `truncate` nothing is announced: one trace is
cut at every budget. In `prompt` (and `effort`) the budget is in the prompt: every budget has fresh
generations, with the same random numbers; there, a number is also enforced, by a cut of its trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from samplers import seam
from samplers.budget import Asks
from samplers.budgets import base
from samplers.budgets.base import Asking
from samplers.seam import Component
from samplers.types import Plan
from trainer.eval.budgets import EvalConfig, nested
from trainer.eval.table import UNCUT, Mode


class EvalSettings(Component):
    """One evaluation. What moves its samples is its identity (`identity`)."""

    mode: Literal["truncate", "prompt", "effort", "both"] = "truncate"
    """both: truncate and prompt."""
    budgets: tuple[int, ...] = ()
    """Thinking tokens, ascending; without a limit is always measured too."""
    samples: int | None = Field(None, ge=1)
    """Of each problem and way of asking; None: what the suite usually takes."""
    precision: float | None = Field(None, gt=0, lt=0.5)
    """Sample on until the standard error of every accuracy, on these very problems, is at most
    this (0.01: one point)."""
    max_samples: int = Field(256, ge=1)
    """With `precision`: no more than so many of a problem."""
    max_tokens: int = Field(192, ge=1)
    """Cap of a whole response."""
    answer_tokens: int | None = Field(None, ge=1)
    """Cap of an answer; None: what the response cap leaves."""
    temperature: float = Field(1.0, ge=0)
    """0 is greedy: nothing of the next two then has an effect."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Only the likeliest tokens that have so much of the probability together; 1: all."""
    top_k: int = Field(0, ge=0)
    """Only so many of the likeliest tokens; 0: all."""
    seed: int = 0
    stopping: str | dict[str, Any] | None = None
    """A live rule (`samplers/stopping`) that ends thoughts."""
    thoughts: bool = False
    """Keep the text of every thought; else those of `shown` problems."""
    shown: int = Field(6, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> EvalSettings:
        if self.precision is not None and self.max_samples < 2:
            raise ValueError(f"max_samples: {self.max_samples}; a standard error needs 2 or more")
        if self.stopping is not None and (self.budgets or self.mode != "truncate"):
            raise ValueError(
                f"stopping: {self.stopping} ends thoughts by itself; leave finite budgets out and "
                "the mode truncate"
            )
        return self

    def config(self, seed: int, samples: int) -> EvalConfig:
        """What training's evaluation calls the same."""
        return EvalConfig(
            samples=samples, temperature=self.temperature, seed=seed, budgets=self.budgets
        )


SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True, slots=True)
class Way:
    """One way of asking: a table each."""

    name: str
    """'' nothing is announced, '512' a number, 'low' an effort."""
    mode: Mode
    target: int | None
    grid: tuple[int, ...]
    """Finite budgets at which its thoughts are cut and answered."""
    plan: Plan

    @property
    def described(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "mode": self.mode,
            "target": self.target,
            "budgets": list(self.grid),
        }


@contextmanager
def told_as_options() -> Iterator[None]:
    """Mistakes told in the words of a recipe, told in those of the command."""
    try:
        yield
    except ValidationError as error:
        field, _, why = seam.mistakes(error, ()).partition(": ")
        raise ValueError(f"--{field.replace('_', '-')}: {why}") from None
    except ValueError as error:
        said = str(error).replace("evaluation.budgets", "--budgets")
        raise ValueError(said.replace("rollout.max_tokens", "--max-tokens")) from None


def ways(settings: EvalSettings, asks: Asks, thinking: bool = True) -> list[Way]:
    """Every way of asking, the one that announces nothing first.

    Raises:
        ValueError: a budget that does not fit, or of which this model cannot be told.
    """
    mode = settings.mode
    with told_as_options():
        grid = settings.config(0, 1).grid(settings.max_tokens, thinking)
    told = _asking(asks.default, settings)
    plain: Mode = "truncate" if mode in ("truncate", "both") else mode  # type: ignore[assignment]
    cuts = grid if plain == "truncate" else ()
    found = [Way("", plain, None, cuts, _plan(base.plan(told), cuts, settings))]
    if mode in ("prompt", "both"):
        found += _numbers(settings, asks, grid)
    if mode == "effort":
        found += _efforts(settings, asks)
    return found


def _numbers(settings: EvalSettings, asks: Asks, grid: Sequence[int]) -> list[Way]:
    if not grid:
        raise ValueError(f"--budgets: mode {settings.mode} announces numbers; give some, as 32,64")
    if asks.budget is None:
        raise ValueError(
            f"--budget-mode {settings.mode}: this model cannot be told of a budget (its chat "
            "template has no thinking_budget); say how with --ask '{suffix: \" Think for "
            "{budget} tokens.\"}', or use truncate"
        )
    try:
        base.told(asks.budget)
    except ValueError as error:
        raise ValueError(f"--ask: {str(error).partition('; ')[0]}; say it in its suffix") from None
    asking = _asking(asks.budget, settings)
    return [
        Way(str(b), "prompt", b, (b,), _plan(base.announce(asking, b), (b,), settings))
        for b in grid
    ]


def _efforts(settings: EvalSettings, asks: Asks) -> list[Way]:
    if settings.budgets:
        raise ValueError(
            f"--budgets: {list(settings.budgets)} have no effect in mode effort; leave them out"
        )
    if not asks.efforts:
        raise ValueError(
            "--budget-mode effort: this model knows no efforts (its chat template has no "
            "reasoning_effort); say how with --efforts '{low: {suffix: ...}}'"
        )
    return [
        Way(name, "effort", None, (), _plan(base.plan(_asking(asking, settings)), (), settings))
        for name, asking in asks.efforts.items()
    ]


def _asking(asking: Asking, settings: EvalSettings) -> Asking:
    return asking.model_copy(
        update={"max_tokens": settings.max_tokens, "answer": settings.answer_tokens}
    )


def _plan(plan: Plan, grid: Sequence[int], settings: EvalSettings) -> Plan:
    return replace(nested(plan, grid, settings.answer_tokens), stopping=settings.stopping)


def identity(settings: EvalSettings) -> dict[str, Any]:
    """What samples of one folder must have in common, as it stands in eval.json."""
    kept = settings.model_dump(
        mode="json",
        include={"mode", "max_tokens", "answer_tokens", "seed", "stopping", *SAMPLING},
    )
    return {**kept, "budgets": [*settings.budgets, UNCUT]}


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """'seed is 0 there, 1 here' of the first field that is not the same, or None."""
    for name in dict.fromkeys([*here, *there]):
        old, new = there.get(name), here.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            return f"{name}.{difference(old, new)}"
        return f"{name} is {old!r} there, {new!r} here"
    return None
