r"""Exact numbers from their written forms: integers, decimals, fractions, mixed, scientific, %.

Most answers of AIME and GSM8K are one of these; none of them needs a computer algebra system.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Percent = Literal["value", "ignore"]
MAX_EXPONENT = 2048
_BASES = (
    "",
    "",
    *["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"],
)

_NUM = r"(?:(?:\d{1,3}(?:[, ]\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"([+-]?) ?({_NUM})")
_FRAC = re.compile(rf"([+-]?) ?(\d+)? ?\\frac ?\{{ ?([+-]?{_NUM}) ?\}} ?\{{ ?({_NUM}) ?\}}")
_SLASH = re.compile(rf"([+-]?) ?(?:(\d+) )?({_NUM}) ?/ ?({_NUM})")
_SCIENCE = re.compile(
    rf"([+-]?) ?({_NUM})(?:[eE]([+-]?\d{{1,4}})| ?(?:\\cdot|\*) ?10 ?\^ ?\{{?([+-]?\d{{1,4}})\}}?)"
)
_NUMERAL = re.compile(
    rf"([+-]?[0-9A-Fa-f]*[0-9][0-9A-Fa-f]*) ?_ ?(?:base ?)?([0-9]{{1,2}}|{'|'.join(_BASES[2:])})"
)
_REPEATING = re.compile(r"([+-]?) ?([0-9]*)\.([0-9]*) ?\\(?:overline|bar|dot) ?\{?([0-9]+)\}?")
_TEN = re.compile(r"([+-]?) ?10 ?\^ ?\{?([+-]?\d{1,4})\}?")


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value, and how many decimals it was written with (0: not as a decimal)."""

    value: Fraction
    decimals: int = 0


def number(text: str, percent: Percent = "value") -> Number | None:
    """The number that tidy text (`rewards.maths.notation.tidy`) writes; None if it is not one.

    `percent`: 'value' reads 50% as 1/2, 'ignore' drops the sign.
    """
    text = text.strip()
    scaled = text.endswith("%")
    if scaled:
        text = text[:-1].rstrip()
    read = _read(text)
    if read is None or not scaled or percent == "ignore":
        return read
    return Number(read.value / 100, read.decimals + 2 if read.decimals else 0)


def _read(text: str) -> Number | None:
    if m := _PLAIN.fullmatch(text):
        digits = m[2].replace(",", "").replace(" ", "")
        return Number(_signed(m[1], Fraction(digits)), len(digits.partition(".")[2]))
    if m := _FRAC.fullmatch(text) or _SLASH.fullmatch(text):
        sign, whole, above, below = m.groups()
        bottom = _fraction(below)
        if not bottom or (whole and not (above.isdigit() and below.isdigit())):
            return None
        return Number(_signed(sign, Fraction(whole or 0) + _fraction(above) / bottom))
    if m := _SCIENCE.fullmatch(text):
        return _power(m[1], _fraction(m[2]), int(m[3] or m[4]))
    if m := _TEN.fullmatch(text):
        return _power(m[1], Fraction(1), int(m[2]))
    if m := _REPEATING.fullmatch(text):
        sign, whole, first, again = m.groups()
        rest = Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(first))
        return Number(_signed(sign, Fraction(f"{whole or 0}.{first or 0}") + rest))
    return None


def numeral(text: str) -> tuple[str, int] | None:
    r"""(digits, base) of tidy `4343_6`, `(52)_{8}`, `\text{A5}_{11}`, `101_\text{two}`, or None."""
    m = _NUMERAL.fullmatch(re.sub(r"\\text(?![A-Za-z])|[{}()]", "", text).strip())
    if m is None:
        return None
    return m[1].upper(), int(m[2]) if m[2].isdigit() else _BASES.index(m[2])


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", ""))


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def _power(sign: str, mantissa: Fraction, exponent: int) -> Number | None:
    if abs(exponent) > MAX_EXPONENT:
        return None
    return Number(_signed(sign, mantissa * Fraction(10) ** exponent))


def same(gold: Number, answer: Number, rounded: int) -> bool:
    """Equal, or `answer` is a gold without a finite decimal form, rounded to the digits shown."""
    if gold.value == answer.value:
        return True
    return not _terminates(gold.value) and rounds_to(gold.value, answer, rounded)


def rounds_to(value: Fraction, answer: Number, rounded: int) -> bool:
    """`answer` is `value` rounded to its own decimals, `rounded` significant digits at least."""
    if not rounded or not answer.decimals or not answer.value:
        return False
    digits = len(str(abs(answer.value.numerator * 10**answer.decimals // answer.value.denominator)))
    return digits >= rounded and abs(value - answer.value) * 2 * 10**answer.decimals <= 1


def _terminates(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
