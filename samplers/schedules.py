"""Schedules: how a number changes with the step of a stage.

Train Long, Think Short (arXiv:2508.08940) tightens the thinking budget in a few drops; curves are
truncated to whole tokens, as the paper's 256, 179, 125, 87 are. A schedule has an end: `last_step`
is the first step from which its value is the final one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from samplers import seam
from samplers.seam import Component

_ROUNDING = 1e-9  # 87 * (1 - 1e-16) is 87, not 86


def exponential(step: int, start: float, factor: float, interval: int) -> float:
    """max(1, start * factor ** floor(step / interval))."""
    return max(1.0, start * factor ** (step // interval))


def drops(step: int, start: float, end: float, n: int, steps: int, kind: str) -> float:
    """Value after `n` equal drops ('linear') or equal factors ('stepwise_exponential').

    Drop k of n comes at k * steps / (n + 1), so every value holds equally long.
    """
    share = min(step * (n + 1) // steps, n) / n
    if kind == "linear":
        return start + (end - start) * share
    return float(start * (end / start) ** share)


class Exponential(Component):
    """A constant factor every so many steps, until `end`."""

    kind: Literal["exponential"]
    start: int = Field(256, ge=1)
    """First value [paper]."""
    factor: float = Field(0.7, gt=0)
    """Of every interval to the one before [paper]."""
    interval: int = Field(150, ge=1)
    """Steps that a value holds [paper]."""
    end: int = Field(ge=1)
    """Value that is not passed; the paper's 600 steps end at 87."""
    steps: int | None = Field(None, ge=1)
    """Steps in which the end must be reached; None: it may take as long as it takes."""

    @model_validator(mode="after")
    def _ends(self) -> Exponential:
        falls = self.end < self.start
        if self.end == self.start or self.factor == 1 or falls != (self.factor < 1):
            raise ValueError(
                f"factor={self.factor} never leads from start={self.start} to end={self.end}; "
                "below 1 it leads down, above 1 up"
            )
        if self.steps is not None and self.last_step >= self.steps:
            raise ValueError(
                f"end={self.end} is reached at step {self.last_step}, not within "
                f"steps={self.steps}; change the factor, shorten the interval or allow more steps"
            )
        return self

    def value(self, step: int) -> int:
        value = int(exponential(step, self.start, self.factor, self.interval) + _ROUNDING)
        return max(value, self.end) if self.factor < 1 else min(value, self.end)

    @property
    def last_step(self) -> int:
        reached = self.end + 1 if self.factor < 1 else self.end  # before truncation
        changes = math.log(reached / self.start) / math.log(self.factor)
        k = max(0, math.floor(changes) - 1)
        while self.value(k * self.interval) != self.end:
            k += 1
        return k * self.interval


class Drops(Component):
    """From `start` to `end` in equal drops, or by equal factors, over `steps` steps."""

    kind: Literal["linear", "stepwise_exponential"]
    start: int = Field(256, ge=1)
    """First value [paper]."""
    end: int = Field(87, ge=1)
    """Last value [paper]."""
    steps: int = Field(600, ge=2)
    """Steps in all [paper]; every value holds for steps / (drops + 1) of them."""
    drops: int | None = Field(3, ge=1)
    """How many [paper: 3, also 1 and 7]; None: one at every step."""

    @model_validator(mode="after")
    def _ends(self) -> Drops:
        if self.start == self.end:
            raise ValueError(f"start={self.start} is end={self.end}: nothing changes")
        if self.count >= self.steps:
            raise ValueError(
                f"drops={self.drops} never end within steps={self.steps}: each takes a step; lower "
                "drops or raise steps"
            )
        return self

    @property
    def count(self) -> int:
        return self.steps - 1 if self.drops is None else self.drops

    def value(self, step: int) -> int:
        exact = drops(step, self.start, self.end, self.count, self.steps, self.kind)
        return int(exact + _ROUNDING)

    @property
    def last_step(self) -> int:
        return _settled(self.value, -(-self.count * self.steps // (self.count + 1)))


class Steps(Component):
    """Values at given steps, each held until the next: `[[0, 256], [150, 128]]` for short."""

    kind: Literal["step"]
    values: tuple[tuple[int, Any], ...] = Field(min_length=1)
    """[step, value], steps ascending from 0; a value may be anything that the field takes."""

    @model_validator(mode="after")
    def _ascends(self) -> Steps:
        steps = [step for step, _ in self.values]
        if steps[0] != 0 or any(a >= b for a, b in pairwise(steps)):
            raise ValueError(f"steps {steps} must ascend from 0: the value of step 0 comes first")
        return self

    def value(self, step: int) -> Any:
        return [value for first, value in self.values if first <= step][-1]

    @property
    def last_step(self) -> int:
        return self.values[-1][0]


class Custom(Component):
    """Your own function, asked at every step of `steps` and held at its last value after them."""

    kind: Literal["custom"]
    function: str
    """Import path, `my_pkg.my_file:fn`: fn(step) -> value."""
    steps: int = Field(ge=1)
    """Steps after which nothing changes any more."""

    def value(self, step: int) -> Any:
        step = min(step, self.steps - 1)
        try:
            return seam.function(self.function)(step)
        except ValueError:
            raise
        except Exception as error:  # whatever a user's function does
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(f"function={self.function} failed at step {step} ({what})") from None

    @property
    def last_step(self) -> int:
        return _settled(self.value, self.steps - 1)


def _settled(value: Callable[[int], Any], last: int) -> int:
    """The first step whose value is that of `last`, and of all between."""
    end = value(last)
    while last and value(last - 1) == end:
        last -= 1
    return last


def _short(value: Any) -> Any:
    return {"kind": "step", "values": value} if isinstance(value, list | tuple) else value


Schedule = Annotated[
    Annotated[Exponential | Drops | Steps | Custom, Field(discriminator="kind")],
    BeforeValidator(_short),
]
"""{kind: exponential | linear | stepwise_exponential | step | custom, ...}; or [[step, value]]."""
