r"""Equality of two mathematical expressions by computer algebra, behind guards.

math-verify parses; constants are compared by value to 40 digits, each on its own scale (an absolute
tolerance calls 1/2^99 and 1/2^98 equal); everything else is math-verify's to compare. Nothing
here is bounded in time: callers run in a process that can be killed, and math-verify's own
timeouts, which use signals and fail off the main thread, stay off.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rewards.maths.notation import squeeze
from rewards.maths.numbers import Number, rounds_to

MAX_CHARS = 512
MAX_DEPTH = 12
MAX_POWER = 99_999
MAX_EXPANSION = 20
DIGITS = 40

_APPROXIMATE = (r"\approx", r"\sim", r"\simeq", r"\doteq", r"\cong", "\u2248")
_ELLIPSIS = (r"\dots", r"\ldots", r"\cdots", "...", "\u2026")
_UNEVALUATED = (r"\sum", r"\int", r"\prod", r"\lim", r"\binom", r"\choose", r"\frac{d}", "!")
_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|"
    "pi|rho|sigma|tau|upsilon|phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega"
)
_SYMBOL = re.compile(rf"\\(?:{_GREEK})(?![A-Za-z])|(?<![A-Za-z\\])[A-Za-z]+")


def refusal(answer: str, gold: str) -> str:
    """Why a tidy answer is not looked at ('' if it is): it hides its value or may cost too much."""
    for kind, signs in (
        ("approximate", _APPROXIMATE),
        ("with an ellipsis", _ELLIPSIS),
        ("not evaluated", _UNEVALUATED),
    ):
        for sign in signs:
            if sign in answer and sign not in gold:
                return f"{kind}: {sign}"
    return _cost(answer)


def _cost(text: str) -> str:
    if len(text) > MAX_CHARS:
        return f"{len(text)} characters, at most {MAX_CHARS}"
    depth = deepest = 0
    for char in text:
        depth += (char in "{([") - (char in "})]")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return f"nested {deepest} deep, at most {MAX_DEPTH}"
    flat = squeeze(text)
    for match in re.finditer(r"\^(\{?)", flat):
        exponent = _group(flat, match.end()) if match[1] else flat[match.end() : match.end() + 1]
        if "^" in exponent or "!" in exponent:
            return "an exponent in an exponent"
        if match[1] == "" and flat[match.end() + 1 : match.end() + 2] == "^":
            return "an exponent of an exponent"
        size = max((int(run) for run in re.findall(r"\d{1,9}", exponent)), default=0)
        before = flat[match.start() - 1 : match.start()]
        if size > (MAX_EXPANSION if before in (")", "}", "]") else MAX_POWER):
            return f"an exponent of {size}"
    if any(int(run) > 10_000 for run in re.findall(r"(\d{1,9})\)?!", flat)) or "!!" in flat:
        return "a large factorial"
    return ""


def _group(text: str, start: int) -> str:
    depth = 1
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start:i]
    return text[start:]


def symbols(text: str) -> set[str]:
    """Variables and named constants of a tidy expression (words of letters count by letter)."""
    text = re.sub(r"\\text\{[^{}]*\}", "", text)
    found: set[str] = set()
    for word in _SYMBOL.findall(text):
        found |= {word} if word.startswith("\\") else set(word)
    return found


def equal(gold: str, answer: str, rounded: int = 0, written: Number | None = None) -> bool | None:
    """Whether two tidy expressions are equal; None if one of them cannot be read.

    `written` is the answer's number if it is one: it may be the gold rounded to `rounded` digits.
    An answer with a symbol that the gold lacks is not equal to it, whatever it reduces to (`x/x`).
    """
    if symbols(answer) - symbols(gold):
        return False
    left, right = _parse(gold), _parse(answer)
    if left is None or right is None:
        return None
    a, b = _constant(left), _constant(right)
    if a is not None and b is not None:
        if abs(a - b) <= abs(a) * _tolerance():
            return True
        return written is not None and a.is_real and rounds_to(Fraction(str(a)), written, rounded)
    if (a is None) != (b is None):
        return False
    return _compare(left, right)


def proportional(gold: tuple[str, str], answer: tuple[str, str]) -> bool | None:
    """Whether two equations (left side, right side) say the same: equal up to a constant factor."""
    if symbols("=".join(answer)) != symbols("=".join(gold)):
        return False
    sides = [_parse(side) for side in (*gold, *answer)]
    if any(side is None for side in sides):
        return None
    import sympy

    try:
        first, second = (sides[i].doit() - sides[i + 1].doit() for i in (0, 2))
        ratio = sympy.cancel(first / second)
    except Exception:  # whatever sympy cannot handle, we cannot judge
        return None
    return bool(ratio.is_number and ratio.is_finite and ratio != 0)


def _tolerance() -> Any:
    import sympy

    return sympy.Float(10, DIGITS) ** (10 - DIGITS)


@lru_cache(maxsize=4096)
def _parse(text: str) -> Any:
    """The sympy object of a tidy expression, or None."""
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)
    for spelling in (text, squeeze(text)):  # math-verify takes some words for units: `a + b`
        found = parse(
            f"${spelling}$",
            extraction_config=[LatexExtractionConfig()],
            fallback_mode="no_fallback",
            parsing_timeout=None,
        )
        if found and not isinstance(found[0], str):
            return found[0]
    return None


def _constant(parsed: Any) -> Any:
    """The value to 40 digits of an expression that has one and no symbols, else None."""
    import sympy

    if not isinstance(parsed, sympy.Expr):
        return None
    # math-verify reads a lone i as a symbol
    named = {s: sympy.I for s in parsed.free_symbols if s.name == "i"}
    try:
        value = parsed.subs(named).doit()
        if not value.is_number:
            return None
        number = sympy.N(value, DIGITS)
    except Exception:  # no value
        return None
    return number if number.is_number and number.is_finite else None


def _compare(left: Any, right: Any) -> bool:
    from math_verify import verify

    return bool(verify(left, right, timeout_seconds=None))
