r"""numeric: equality of numbers (integers, decimals, fractions), boxed or alone on a line.

Exact, or within a tolerance that the recipe names.

For data whose golds are all numbers (GSM8K, AIME): no computer algebra, so it cannot hang.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pydantic import Field

from rewards.grader import Examples
from rewards.maths import extract, notation, units
from rewards.maths.numbers import Number, Percent, number, same
from rewards.verdict import Verdict
from samplers.seam import Component

GRADER = "numeric/2"
QUICK = True
READS = ()
MAX_CHARS = 512
_NAME = re.compile(r"^[A-Za-z] ?= ?")


class Config(Component):
    percent: Percent = "value"
    """50% is 1/2 ('value'), or the sign is dropped ('ignore')."""
    rounded: int = 0
    """Accept 0.333 for 1/3: rounded to at least this many significant digits. 0: never."""
    tolerance: float = Field(0.0, ge=0, lt=1)
    """Accept answers that differ from the gold by at most this share of it. 0: none."""
    absolute: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Accept answers that differ from the gold by at most this much. 0: none."""
    bare: int = 64
    r"""An answer without \boxed{} may be a single line of at most this many characters."""


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    """Verdict of one answer. A gold that is no number is a gold_error."""
    wanted = _number(gold, config)
    if wanted is None:
        return Verdict(False, 0.0, "gold_error", None, GRADER, f"not a number: {gold[:80]!r}")
    found = extract.found(text, config.bare)
    written = found[-1].text if found else ""
    if not written:
        return Verdict(False, 0.0, "no_answer", None, GRADER)
    answer = _number(written, config)
    if answer is None:
        return Verdict(False, 0.0, "unparseable", None, GRADER, f"not a number: {written[:80]!r}")
    right = same(wanted, answer, config.rounded) or _near(wanted.value, answer.value, config)
    return Verdict(right, float(right), "ok" if right else "wrong", str(answer.value), GRADER)


def _near(gold: Fraction, answer: Fraction, config: Config) -> bool:
    """Within one of the tolerances, which are the decimals that they are written as."""
    if not (config.tolerance or config.absolute):
        return False
    relative, absolute = (Fraction(repr(width)) for width in (config.tolerance, config.absolute))
    return abs(answer - gold) <= max(relative * abs(gold), absolute)


def _number(text: str, config: Config) -> Number | None:
    if len(text) > MAX_CHARS:
        return None
    value = _NAME.sub("", units.split(notation.tidy(text))[0])
    return number(value, config.percent)


def examples(gold: str, meta: Mapping[str, Any], config: Config) -> Examples:
    """A right and a wrong answer text, which is beyond the tolerances."""
    value = _number(gold, config)
    if value is not None and (config.tolerance or config.absolute):
        away = 2 * (abs(value.value) + Fraction(repr(config.absolute))) + 1
        far = value.value + away
        wrong = rf"\boxed{{{far.numerator}/{far.denominator}}}"
        return Examples((rf"\boxed{{{gold}}}",), (wrong,))
    wrong = rf"\boxed{{1{gold.strip().lstrip('+-')}}}"
    return Examples((rf"\boxed{{{gold}}}",), (wrong,))
