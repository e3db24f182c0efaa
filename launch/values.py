"""Values of the command line: text in, a value or argparse's error with what to write instead."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.hardware import Node


def seeds(text: str) -> tuple[int, ...]:
    """'0-4', '3', '0,2,5-7'."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            found += range(int(first), int(last or first) + 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}': write 0-4, 3 or 0,2,5") from None
    if not found or len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"'{text}': no seed, or one twice; write 0-4 or 0,2,5")
    return tuple(found)


def budget(text: str) -> int | None:
    """A number of tokens; 'none' and 'inf' mean unlimited."""
    if text in ("none", "inf"):
        return None
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}': a budget is a number of tokens, none or inf")
    return int(text)


def budgets(text: str) -> tuple[int | None, ...]:
    return tuple(budget(part) for part in text.split(","))


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': write a whole number from 1 up")
    return int(text)


def steps(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(
            f"'{text}': write how many steps, from 2 up (the first warms up), after the recipe"
        )
    return int(text)


def temperature(text: str) -> float:
    return _number(text, lambda value: 0 <= value < float("inf"), "a number from 0 (greedy) up")


def top_p(text: str) -> float:
    return _number(text, lambda value: 0 < value <= 1, "a share above 0, at most 1 (all tokens)")


def top_k(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}': write a whole number; 0: all tokens")
    return int(text)


def share(text: str) -> float:
    return _number(text, lambda value: 0 <= value <= 0.5, "a share from 0 to 0.5, as 0.01")


def precision(text: str) -> float:
    return _number(text, lambda v: 0 < v < 0.5, "a standard error above 0, below 0.5, as 0.01")


def seconds(text: str) -> float:
    return _number(text, lambda value: 0 < value < float("inf"), "seconds, more than 0")


def area(text: str) -> float:
    return _number(text, lambda value: 0 < value < 1, "an area above 0 and below 1, as 0.7")


def _number(text: str, fits: Callable[[float], bool], wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")  # which fits nowhere
    if not fits(value):
        raise argparse.ArgumentTypeError(f"'{text}': write {wanted}")
    return value


def memory(text: str) -> float:
    from launch.hardware import size

    try:
        return size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def node(text: str) -> list[Node]:
    from launch.hardware import node as read

    try:
        return read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def metrics(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for part in text.split(",") if part))


def counts(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))


def tasks(text: str) -> tuple[str, ...]:
    """Split at the commas that stand in no braces."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "{[") - (sign in "}]")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return tuple(part.strip() for part in parts if part.strip())
