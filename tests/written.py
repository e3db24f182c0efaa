"""Written answers taken apart with plain patterns, for the tests' own forms and perturbations.

Nothing here reads the code under test.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

Change = Callable[[str], str | None]

_GROUP = re.compile(r"(?<=\d)(?:,\\!\s*|\{,\}|,(?=\d{3}(?!\d)))(?=\d{3})")
_PART = r" ?(\{[^{}]*\}|\d|\\[a-z]+)"
_FRACTION = re.compile(rf"\\[dt]?frac{_PART}{_PART}")
NAMED = re.compile(r"[A-Za-z] ?= ?(?=[^=]+$)")
_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)"
DEGREES = re.compile(r" ?\^ ?\{?\\circ\}?")
UNIT = re.compile(
    r"(?:\s|\\ )*\\(?:text|mbox|textnormal)\{\s*([A-Za-z][A-Za-z. ]+)\}(\^\{?\d\}?)?\.?$"
)
WORD = re.compile(r"\\(?:text|mbox)\{\s*([A-Za-z ]{2,})\}")
CHOICE = re.compile(r"(?:\\text\{\(?([A-Z])\)?\}|([A-E]))")
BASE = re.compile(r"(-?\d+)_\{?(\d+)\}?")
MATRIX = re.compile(r"\s*\\begin\{pmatrix\}(.*)\\end\{pmatrix\}\.?\s*", re.S)
VERBAL = re.compile(r"\\(?:text|mbox|textnormal|mathbf)|triangle|\\!\\?:|\\ ")


def core(gold: str) -> str:
    """Without the dollars that some sets put around their golds."""
    text = gold.strip()
    inner = text[1:-1]
    return inner if text[:1] == text[-1:] == "$" != inner[-1:] and "$" not in inner else text


def plain(gold: str) -> str:
    """Without groups of thousands, spaces around and a full stop."""
    return _GROUP.sub("", gold).strip().removesuffix(".").strip()


def long_fractions(text: str) -> str:
    r"""`\frac12`, `\frac{15}4`, `\dfrac 3 8` -> `\frac{.}{.}`."""
    return _FRACTION.sub(
        lambda m: rf"\frac{{{m[1].strip('{}').strip()}}}{{{m[2].strip('{}').strip()}}}", text
    )


def rational(gold: str) -> Fraction | None:
    """The value of an integer, a decimal or one simple fraction."""
    text = plain(gold)
    if re.fullmatch(_NUMBER, text):
        return Fraction(text)
    m = re.fullmatch(r"(-?)(?:\\frac\{(-?\d+)\}\{(\d+)\}|(\d+)/(\d+))", long_fractions(text))
    if m is None or not int(m[3] or m[5]):
        return None
    value = Fraction(int(m[2] or m[4]), int(m[3] or m[5]))
    return -value if m[1] else value


def integer(gold: str) -> int | None:
    """The value of an integer."""
    value = rational(gold)
    return value.numerator if value is not None and value.denominator == 1 else None


def decimal(value: Fraction) -> str | None:
    """Its decimal where that ends within nine places."""
    if (value * 10**9).denominator != 1:
        return None
    return f"{float(value):.9f}".rstrip("0").rstrip(".")


def listed(gold: str) -> list[str]:
    """Parts of a bare list (`1, 2`), of a tuple or of an interval; [] of anything else."""
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])|\\[!,;]", "", _GROUP.sub("", gold)).strip()
    if "," not in text or re.search(r"=|\\cup|\\[{}]|text|matrix|;|\\in |angle", text):
        return []
    if text[0] in "([" and text[-1] in ")]":
        text = text[1:-1]
    items, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        items += [""] if char == "," and not depth else []
        items[-1] += "" if char == "," and not depth else char
    return [] if any(i.count("(") != i.count(")") for i in items) else [i.strip() for i in items]


def bare_list(gold: str) -> list[str]:
    """Parts of a list without brackets: their order is free."""
    return [] if re.match(r"\s*(?:\\left ?)?[(\[]", gold) else listed(gold)


def single(gold: str) -> bool:
    """One value: no equation, inequality, word, list, union, interval or numeral in a base."""
    return not re.search(r"[=<>,:;\[_]|\\(?:le|ge|in|pm|cup|approx)|text|mbox|matrix|mathbf", gold)


def changed(gold: str, pattern: str, to: str) -> str | None:
    other = re.sub(pattern, to, gold)
    return other if other != gold else None
