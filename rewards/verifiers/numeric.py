r"""numeric: exact equality of numbers (integers, decimals, fractions), boxed or alone on a line.

For data whose golds are all numbers (GSM8K, AIME): no computer algebra, so it cannot hang.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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
    right = same(wanted, answer, config.rounded)
    return Verdict(right, float(right), "ok" if right else "wrong", str(answer.value), GRADER)


def _number(text: str, config: Config) -> Number | None:
    if len(text) > MAX_CHARS:
        return None
    value = _NAME.sub("", units.split(notation.tidy(text))[0])
    return number(value, config.percent)


def examples(gold: str, meta: Mapping[str, Any], config: Config) -> Examples:
    """A right and a wrong answer text."""
    wrong = rf"\boxed{{1{gold.strip().lstrip('+-')}}}"
    return Examples((rf"\boxed{{{gold}}}",), (wrong,))
