r"""Equality of two mathematical expressions by computer algebra.

math-verify parses. Constants are compared by value, each on its own scale (an absolute tolerance
calls 1/2^99 and 1/2^98 equal); expressions with variables by their values at many points (equal
analytic expressions agree everywhere, different ones nowhere in general), which needs no
simplification; what has no values (sets, undefined functions) is math-verify's to compare.

Nothing here is bounded in time: callers run in a process that can be killed, and math-verify's own
timeouts, which use signals and fail off the main thread, stay off.
"""

from __future__ import annotations

import hashlib
import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rewards.maths.notation import squeeze
from rewards.maths.numbers import Number, number, rounds_to

DIGITS = 120
"""Decimal digits of every value: numbers as small as 1/2^300 beside 1 still count."""
TOLERANCE = 20
"""Digits of a value that may be off: values that agree in the others are equal."""
MAX_DIGITS = 6000
"""Digits before the point that are looked at, where an answer has so many."""
POINTS = 8
"""Values of the variables that are tried: half of them positive, half negative."""

_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|"
    "pi|rho|sigma|tau|upsilon|phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|"
    "Omega"
)
_SYMBOL = re.compile(rf"\\(?:{_GREEK})(?![A-Za-z])|(?<![A-Za-z\\])[A-Za-z]+")
_LABEL = re.compile(r"\\text ?\{[^{}]*\}|\\(?:begin|end|mathbb|mathcal) ?\{[^{}]*\}")

_DECIMAL = re.compile(r"([0-9]*)\.([0-9]+)")

TURNED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", "=": "=", r"\ne": r"\ne"}
Relation = tuple[str, str, str]
"""(left side, sign, right side); the signs are those of TURNED."""


def symbols(text: str) -> set[str]:
    """Variables and named constants of a tidy expression (words of letters count by letter)."""
    text = _LABEL.sub("", text)
    found: set[str] = set()
    for word in _SYMBOL.findall(text):
        found |= {word} if word.startswith("\\") else set(word)
    return found


def equal(gold: str, answer: str, rounded: int = 0, written: Number | None = None) -> bool | None:
    """Whether two tidy expressions are equal; None if one of them cannot be read.

    `written` is the answer's number if it is one: it may be the gold rounded to `rounded` digits.
    An answer with a symbol that the gold lacks is not equal to it, whatever it reduces to (`x/x`).
    """
    extra = symbols(answer) - symbols(gold)
    if extra and (extra - {"e", r"\pi"} or number(gold)):
        return False  # cosh x may be written with e
    left, right = _parse(gold), _parse(answer)
    if left is None or right is None:
        return None
    digits = max(_digits(left), _digits(right))
    a, b = _constant(left, digits), _constant(right, digits)
    if a is not None and b is not None:
        if _near(a, b, digits):
            return True
        return written is not None and a.is_real and rounds_to(_fraction(a), written, rounded)
    if (a is None) != (b is None):
        return False
    return _compare(left, right)


def rounds(gold: Number, answer: str, digits: int) -> bool | None:
    """Whether a decimal gold is the rounded value of an answer (`\\sqrt{17}`); None: unreadable."""
    parsed = _parse(answer)
    value = None if parsed is None else _constant(parsed, DIGITS)
    if value is None:
        return None
    return bool(value.is_real) and rounds_to(_fraction(value), gold, digits)


def related(gold: Relation, answer: Relation) -> bool | None:
    """Whether two relations say the same: sides differ by a constant factor, signs accordingly.

    None if one of them cannot be read.
    """
    if symbols(answer[0] + " " + answer[2]) != symbols(gold[0] + " " + gold[2]):
        return False
    sides = [_parse(side) for side in (gold[0], gold[2], answer[0], answer[2])]
    if any(side is None for side in sides):
        return None
    ratio = _ratio(sides)
    if ratio is None:  # no values: side by side
        same = _compare(sides[0], sides[2]) and _compare(sides[1], sides[3])
        return True if same and gold[1] == answer[1] else None
    wanted = gold[1] if ratio > 0 else TURNED[gold[1]]
    return bool(ratio) and wanted == answer[1]


def _ratio(sides: list[Any]) -> Any:
    """The constant real factor between two differences; 0 if there is none, None if unknown."""
    try:
        first, second = sides[0] - sides[1], sides[2] - sides[3]
        values = [(a, b) for a, b in _values(first, second) if a != 0 or b != 0]
    except Exception:  # sides that have no difference
        return None
    if len(values) < POINTS // 4:
        return None
    if any(a == 0 or b == 0 for a, b in values):
        return 0
    ratios = [b / a for a, b in values]
    mean = ratios[0]
    same = all(abs(other - mean) <= abs(mean) * _tolerance() for other in ratios)
    return mean if same and mean.is_real else 0


@lru_cache(maxsize=1)
def _tolerance() -> Any:
    import sympy

    return sympy.Float(10, DIGITS) ** (TOLERANCE - DIGITS)


def _near(a: Any, b: Any, digits: int) -> bool:
    import sympy

    if a.is_Rational and b.is_Rational:
        return bool(a == b)
    return bool(abs(a - b) <= abs(a) * sympy.Float(10, digits) ** (TOLERANCE - digits))


@lru_cache(maxsize=4096)
def _digits(parsed: Any) -> int:
    """Digits in which values that differ by 1 differ: 2^2008 + sqrt(2) has 600 before the point."""
    import sympy

    if not isinstance(parsed, sympy.Expr):
        return DIGITS
    sizes = [0.0]
    for part in sympy.preorder_traversal(parsed):
        if isinstance(part, sympy.Rational):
            sizes.append(max(abs(part.p), part.q).bit_length() * 0.302)
        elif isinstance(part, sympy.Pow) and part.base.is_Integer and part.exp.is_Integer:
            sizes.append(float(abs(part.exp)) * abs(part.base.p).bit_length() * 0.302)
    return DIGITS + min(int(max(sizes)), MAX_DIGITS)


def _fraction(value: Any) -> Fraction:
    return Fraction(value.p, value.q) if value.is_Rational else Fraction(str(value))


@lru_cache(maxsize=4096)
def _parse(text: str) -> Any:
    """The sympy object of a tidy expression, or None."""
    from latex2sympy2_extended.latex2sympy2 import (  # type: ignore[import-untyped]
        ConversionConfig,
        NormalizationConfig,
        latex2sympy,
        normalize_latex,
    )
    from math_verify.grader import should_treat_as_complex

    # units are ours to tell: to math-verify the t of `12+10t` is one
    written = NormalizationConfig(units=False, malformed_operators=True, nits=True)
    cased = ConversionConfig(lowercase_symbols=False)  # m and M are two masses
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    text = _DECIMAL.sub(_ratio_of, text)  # as a float it would have 15 digits
    for spelling in (text, squeeze(text)):  # math-verify takes some words for units: `a + b`
        try:
            found = latex2sympy(
                normalize_latex(spelling, written),
                is_real=not should_treat_as_complex(spelling),
                normalization_config=None,
                conversion_config=cased,
            )
        except Exception:  # not in its grammar
            continue
        return _named(found)
    return None


def _ratio_of(decimal: re.Match[str]) -> str:
    whole, part = decimal[1], decimal[2]
    return rf"\frac{{{int(whole + part)}}}{{{10 ** len(part)}}}"


def _named(parsed: Any) -> Any:
    """With i as the imaginary unit: math-verify reads a lone i as a symbol."""
    import sympy

    try:
        unit = {s: sympy.I for s in parsed.free_symbols if s.name == "i"}
        return parsed.subs(unit) if unit else parsed
    except Exception:  # an i that cannot be replaced (an index) stays
        return parsed


def _constant(parsed: Any, digits: int) -> Any:
    """The value of an expression that has one and no symbols, else None."""
    import sympy

    return _value(parsed, digits) if isinstance(parsed, sympy.Expr) else None


@lru_cache(maxsize=4096)
def _value(parsed: Any, digits: int) -> Any:
    import sympy

    try:
        value = parsed.doit()
        if not value.is_number:
            return None
        if value.is_Rational:
            return value  # exact: 2^2008 - 2 and 2^2008 - 3 agree in 600 digits
        number = sympy.N(value, digits, maxn=4 * digits)
    except Exception:  # no value
        return None
    return number if number.is_number and number.is_finite else None


def _compare(left: Any, right: Any) -> bool:
    import sympy
    from math_verify import verify

    if left == right:
        return True
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
        if left.has(sympy.oo, sympy.zoo, sympy.nan) or right.has(sympy.oo, sympy.zoo, sympy.nan):
            return False  # infinity plus one is an infinity, and no answer
        values = _values(left, right)
        if len(values) >= POINTS // 4:
            return all(abs(a - b) <= abs(a) * _tolerance() for a, b in values)
    return bool(verify(left, right, timeout_seconds=None))


def _values(left: Any, right: Any) -> list[tuple[Any, Any]]:
    """Values of both at the points where both have one, and the left is real or the point positive.

    Below zero only where the left (the gold) is real: outside its domain it says nothing.
    """
    names = sorted(left.free_symbols | right.free_symbols, key=str)
    values = []
    for k in range(POINTS):
        sign = 1 if k < POINTS // 2 else -1
        point = {name: sign * _place(str(name), k) for name in names}
        a, b = _at(left, point), _at(right, point)
        if a is None or (sign < 0 and not a.is_real):
            continue
        if b is None:
            return []
        values.append((a, b))
    return values


def _at(expression: Any, point: dict[Any, Any]) -> Any:
    """The value at a point; None where there is none."""
    import sympy

    try:
        value = sympy.sympify(expression.doit().evalf(DIGITS, subs=point, maxn=4 * DIGITS))
        parts = value.as_real_imag()
    except Exception:  # not defined there
        return None
    return value if all(part.is_Number and part.is_finite for part in parts) else None


def _place(name: str, k: int) -> Any:
    """A value between 0.3 and 2.3, the same for the same name in every process."""
    import sympy

    digest = hashlib.blake2b(f"{name} {k}".encode(), digest_size=6).digest()
    return sympy.Rational(3, 10) + sympy.Rational(int.from_bytes(digest, "big"), 1 << 47)
