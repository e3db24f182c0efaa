"""The table of measured throughputs (throughputs.yaml), a user's own rows before it, and the row
that is nearest to what is asked for. It is asked for seconds by launch/costs.py."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from samplers import seam
from samplers.seam import Component

SHIPPED = Path(__file__).with_name("throughputs.yaml")
REACH = 10.0
"""A row tells nothing of models that are more than so many times larger or smaller."""
STEADY = 0.5
"""Of a steady rate a step reaches this share at worst. The one published step that it was held
against (NeMo RL 0.5: GRPO, 8B, 2 x 8 H100, 2,048 rollouts of 1,019 tokens, 93 s) is told as 48 to
113 s with it."""
CPU = "cpu"
"""The hardware of one process on one core."""

What = Literal["generate", "train", "score", "sync"]
Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Span:
    """What is known of a number: it lies between `low` and `high`."""

    low: float
    high: float

    def __str__(self) -> str:
        """'1.2-3.4', or one number where both are the same to what is shown."""
        low, high = (f"{n:,.0f}" if n >= 10 else f"{n:.2g}" for n in (self.low, self.high))
        return low if low == high else f"{low}-{high}"

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.high + other.high)

    def __mul__(self, other: Span | float) -> Span:
        """Of numbers that are not negative."""
        by = other if isinstance(other, Span) else Span(other, other)
        return Span(self.low * by.low, self.high * by.high)

    def over(self, other: Span) -> Span:
        """Least over most, and most over least."""
        return Span(self.low / other.high, self.high / other.low)

    def or_more(self, other: Span) -> Span:
        """Of two that go on at once, the one that ends last."""
        return Span(max(self.low, other.low), max(self.high, other.high))


class Row(Component):
    """One measurement."""

    what: What
    hardware: str = Field(min_length=1)
    """A GPU's kind, as a word of its name, or `cpu`."""
    engine: str = Field(min_length=1)
    """What generates (`torch`, `vllm`), or trains; of `sync`, what loads the weights."""
    parameters: float = Field(gt=0, allow_inf_nan=False)
    dtype: Literal["float32", "bfloat16"]
    tokens_per_s: Pair | None = None
    """Of one GPU, or of one process on a core; a pair is from low to high."""
    bytes_per_s: Pair | None = None
    """Of `sync`, from the learners to all engines."""
    rows: int | None = Field(default=None, ge=1)
    """Of `generate`: rows that one engine made at once. None: nobody says."""
    gradient_checkpointing: bool = False
    lora: bool = False
    steady: bool = False
    """Measured while more waited than was done at once. A step has a beginning and a tail."""
    source: str = Field(min_length=1)
    """Where the number is from: an address, or a file with the command."""

    @field_validator("tokens_per_s", "bytes_per_s", mode="before")
    @classmethod
    def _pair(cls, given: Any) -> Pair:
        try:
            low, high = map(float, given if isinstance(given, list | tuple) else (given, given))
            if 0 < low <= high < math.inf:
                return low, high
        except (TypeError, ValueError):
            pass
        raise ValueError(f"{given!r} is no rate; write a number above 0, or [low, high]")

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        wanted, other = ("tokens_per_s", "bytes_per_s")[:: -1 if self.what == "sync" else 1]
        if getattr(self, wanted) is None:
            raise ValueError(f"{wanted} is missing: it is what a row of {self.what} says")
        if getattr(self, other) is not None:
            raise ValueError(f"{other} is nothing that a row of {self.what} says; drop it")
        return self

    @property
    def rate(self) -> Span:
        """Tokens or bytes in a second."""
        given = self.bytes_per_s if self.what == "sync" else self.tokens_per_s
        assert given is not None
        return Span(*given)

    @property
    def work(self) -> int:
        """Of `train`: FLOPs a token and parameter."""
        return work(self.gradient_checkpointing, self.lora)


def work(gradient_checkpointing: bool, lora: bool) -> int:
    """FLOPs of a training step, a token and parameter: forward 2, gradients of what a layer was
    given 2, those of its weights 2 unless they are frozen, and the forward again 2."""
    return 4 + 2 * (not lora) + 2 * gradient_checkpointing


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a row is looked for. `engine` "": of any, as the row says."""

    what: What
    hardware: str
    engine: str
    parameters: float
    dtype: str
    gradient_checkpointing: bool = False
    lora: bool = False

    def __str__(self) -> str:
        by = f" by {self.engine}" if self.engine else ""
        size = f"{count(self.parameters)} parameters, {self.dtype}"
        return f"{self.what}{by} on {self.hardware or 'unnamed GPUs'} ({size})"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows in layers: one is asked only where those before it have no row."""

    layers: tuple[tuple[Row, ...], ...]

    def nearest(self, wanted: Wanted) -> Row | None:
        """The row of the model nearest in size; None where none is near enough."""
        for rows in self.layers:
            if fit := [row for row in rows if _fits(row, wanted)]:
                return min(fit, key=lambda row: _distance(row, wanted))
        return None


def _fits(row: Row, wanted: Wanted) -> bool:
    return (
        row.what == wanted.what
        and row.dtype == wanted.dtype
        and wanted.engine in ("", row.engine)
        and _is(row.hardware, wanted.hardware)
        and 1 / REACH <= wanted.parameters / row.parameters <= REACH
    )


def _is(kind: str, name: str) -> bool:
    """H20 is a word of 'NVIDIA H20-3e', and not of 'NVIDIA H200'."""
    return bool(re.search(rf"(?<![a-z0-9]){re.escape(kind.lower())}(?![a-z0-9])", name.lower()))


def _distance(row: Row, wanted: Wanted) -> tuple[float, bool, bool, bool]:
    """In size; of equal ones first those that were trained alike."""
    return (
        round(abs(math.log(wanted.parameters / row.parameters)), 1),
        row.lora != wanted.lora,
        row.gradient_checkpointing != wanted.gradient_checkpointing,
        row.what == "train" and row.engine != "deepspeed",
    )


def scaled(row: Row, parameters: float) -> Span:
    """The row's rate for a model of another size.

    Work grows with the parameters, what goes on besides does not: the rate falls between the
    inverse of their ratio and the inverse of its root. Bytes in a second stay the same.
    """
    rate = row.rate * Span(STEADY, 1.0) if row.steady else row.rate
    if row.what == "sync":
        return rate
    ratio = row.parameters / parameters
    by = sorted((ratio, math.sqrt(ratio)))
    return rate * Span(by[0], by[1])


def read(file: Path | None = None) -> Table:
    """The shipped rows, and those of a user's `file` before them.

    Raises:
        ValueError: no such file, or a row that says something else than rows do.
    """
    return Table(tuple(_layer(path) for path in (file, SHIPPED) if path))


def _layer(path: Path) -> tuple[Row, ...]:
    where = f"--throughputs {path}"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except FileNotFoundError:
        raise ValueError(f"{where}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{where}: cannot be read as YAML: {why}") from None
    if not isinstance(raw, list):
        raise ValueError(f"{where}: it is a list of rows ('- what: generate', ...); got {raw!r}")
    return tuple(_row(one, f"{where}: row {number}") for number, one in enumerate(raw, 1))


def _row(raw: object, where: str) -> Row:
    if not isinstance(raw, dict):
        raise ValueError(f"{where} is a mapping of {', '.join(Row.model_fields)}; got {raw!r}")
    try:
        return Row(**{str(name): value for name, value in raw.items()})
    except ValidationError as error:
        raise ValueError(f"{where}: {seam.mistakes(error, Row.model_fields)}") from None


def told(rows: Sequence[Row]) -> str:
    """Rows as they stand in a file, one a line."""
    lines = []
    for row in rows:
        said = row.model_dump(mode="json", exclude_defaults=True)
        for name in ("tokens_per_s", "bytes_per_s"):
            if name in said and said[name][0] == said[name][1]:
                said[name] = said[name][0]
        text = yaml.safe_dump(said, default_flow_style=True, sort_keys=False, width=10**6)
        lines.append(f"- {text.strip()}")
    return "\n".join(lines)


def count(number: float) -> str:
    """1777088000 as 1.78B."""
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:g}"
