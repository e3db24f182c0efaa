"""Whether what a program gave is what was expected: on parsed data, outside its reach."""

from __future__ import annotations

import math
import re
from typing import Any

MAX_NUMBER = 40
"""Longer tokens are compared as text only."""
WHOLE = re.compile("-?[0-9]+")


def same(expected: Any, given: Any, tolerance: float) -> bool:
    """Equality of values as `child.plain` gives them.

    A bool is no number and a number no bool; 1 is 1.0; lists and tuples are the same, in order;
    sets in any order. `tolerance`, relative above 1 and absolute below, holds where a fraction is
    expected (a float that is written as one), never for whole numbers.
    """
    if isinstance(expected, bool) or isinstance(given, bool):
        return isinstance(expected, bool) and isinstance(given, bool) and expected == given
    if isinstance(expected, int | float):
        return isinstance(given, int | float) and _near(expected, given, tolerance)
    if isinstance(expected, list):
        return (
            isinstance(given, list)
            and len(expected) == len(given)
            and all(same(e, g, tolerance) for e, g in zip(expected, given, strict=True))
        )
    if isinstance(expected, dict):
        return _same_tagged(expected, given, tolerance)
    return type(expected) is type(given) and bool(expected == given)


def _same_tagged(expected: dict[str, Any], given: Any, tolerance: float) -> bool:
    """Sets and mappings: the same members, whatever their order."""
    if not isinstance(given, dict) or set(given) != set(expected):
        return False
    (tag, members), left = next(iter(expected.items())), next(iter(given.values()))
    if not isinstance(left, list) or len(left) != len(members):
        return False
    if tag == "dict" and not all(isinstance(pair, list) and len(pair) == 2 for pair in left):
        return False
    left = sorted(left, key=repr)  # equal ones then stand at about the same place
    for member in sorted(members, key=repr):
        at = next((i for i, other in enumerate(left) if same(member, other, tolerance)), None)
        if at is None:
            return False
        del left[at]
    return True


def _near(expected: float, given: float, tolerance: float) -> bool:
    if expected == given:
        return True
    if not isinstance(expected, float):
        return False
    if not math.isfinite(expected):
        return math.isnan(expected) and isinstance(given, float) and math.isnan(given)
    try:
        distance = abs(float(given) - expected)
    except OverflowError:
        return False
    return distance <= tolerance * max(1.0, abs(expected))


def same_text(expected: str, given: str, tolerance: float) -> bool:
    """Equality of printed text: line by line, word by word.

    Spaces at the ends of lines and between words, and empty lines at both ends, do not count;
    `tolerance` holds where the expected word is a fraction (has a point or an exponent). Where
    it is a whole number, zeros behind a point are the same one: 3.0 for 3.
    """
    wanted, got = expected.strip().splitlines(), given.strip().splitlines()
    if len(wanted) != len(got):
        return False
    return all(_same_line(w, g, tolerance) for w, g in zip(wanted, got, strict=True))


def _same_line(expected: str, given: str, tolerance: float) -> bool:
    wanted, got = expected.split(), given.split()
    return len(wanted) == len(got) and all(
        w == g or _near_words(w, g, tolerance) for w, g in zip(wanted, got, strict=True)
    )


def _near_words(expected: str, given: str, tolerance: float) -> bool:
    if WHOLE.fullmatch(expected):
        whole, _, zeros = given.partition(".")
        return whole == expected and bool(zeros) and not zeros.strip("0")
    if not tolerance or not any(mark in expected for mark in ".eE"):
        return False
    if max(len(expected), len(given)) > MAX_NUMBER or "_" in expected + given:
        return False
    try:
        wanted, got = float(expected), float(given)
    except ValueError:
        return False
    return math.isfinite(wanted) and math.isfinite(got) and _near(wanted, got, tolerance)
