r"""Sets of real numbers in one spelling: `1 \le x < 2`, `x \in [1,2)` and `[1,2)` are one thing.

Everything becomes an interval or a union of intervals, as text; what is none stays as it is.
"""

from __future__ import annotations

import re

from rewards.maths import algebra, notation
from rewards.maths.notation import squeeze
from rewards.maths.numbers import number

SIGN = re.compile(r"(<|>|=|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z]))")
_MEMBER = re.compile(r"^(?:[A-Za-z]|\([A-Za-z](?:, ?[A-Za-z])+\)) ?\\in(?![A-Za-z]) ?")
_RULE = re.compile(r"\\\{ ?[A-Za-z](?: ?\\in ?\\mathbb\{?R\}?)? ?(?:\\mid|:|\|)(.+)\\\}")
"""`\\{x : x > 1\\}`."""
_ORDER = r"(<|>|\\le|\\ge) ?"
_NAME = r"[A-Za-z](?:\([A-Za-z]\))?"
_BETWEEN = re.compile(rf"([^<>]+?){_ORDER}({_NAME}){_ORDER}([^<>]+)")
_RAY = re.compile(rf"({_NAME}){_ORDER}([^<>]+)")
_TURNED_RAY = re.compile(rf"([^<>A-Za-z]+){_ORDER}({_NAME})")
_UNEQUAL = re.compile(rf"({_NAME})\\ne(.+)")
_WITHOUT = re.compile(r"(.+)(?:\\setminus|\\backslash) ?\\\{(.+)\\\}")
_REALS = re.compile(
    r"\\mathbb\{?R\}?|(?:\\text\{)?(?:all )?real numbers?\}?|(?:\\text\{)?all reals?\}?"
)
_LINE = r"(-\infty,\infty)"


def both(gold: str, answer: str) -> tuple[str, str]:
    """Both as intervals, or none of two inequalities (`x < 1`, `-x > -1`)."""
    low, high = region(gold), region(answer)
    inequalities = SIGN.search(gold) and SIGN.search(answer)
    if inequalities and (low == gold.strip()) != (high == answer.strip()):
        return gold, answer
    return low, high


def region(text: str) -> str:
    r"""Tidy text as an interval or a union: `x > 3`, `x < 1, x > 3`, `x \ne 2`, `\mathbb{R}`."""
    text = _MEMBER.sub("", text.strip())
    if (m := _RULE.fullmatch(text)) and SIGN.search(m[1]):
        text = m[1].strip()
    if _REALS.fullmatch(text):
        return _LINE
    if m := _WITHOUT.fullmatch(text):
        return _punctured(_LINE if _REALS.fullmatch(m[1].strip()) else m[1].strip(), m[2]) or text
    if not SIGN.search(text):
        return text
    flat = squeeze(text)
    if m := _UNEQUAL.fullmatch(flat):
        return _punctured(_LINE, m[2]) or text
    return _joined(flat) or text.replace(r"\land", ",").replace(r"\lor", ",")


def _joined(flat: str) -> str:
    r"""`x < 1 \lor x > 3` as a union, `x > 1 \land x < 3` as an interval, '' where neither is told.

    A comma is either: a union, but for two rays that overlap.
    """
    sign = next((sign for sign in (r"\land", r"\lor") if sign in flat), ",")
    pieces = [_inequality(piece) for piece in notation.split(flat, sign)]
    if not all(pieces) or len({name for name, _ in pieces}) > 1:  # type: ignore[misc]
        return ""
    intervals = [interval for _, interval in pieces]  # type: ignore[misc]
    intervals.sort(key=lambda one: not one.startswith(r"(-\infty"))
    common = "" if sign == r"\lor" else _common(intervals)
    return common if common or sign == r"\land" else r" \cup ".join(intervals)


def _common(intervals: list[str]) -> str:
    """What `(-infinity, b)` and `(a, infinity)` share, where a < b are numbers; else ''."""
    below = re.fullmatch(r"\(-\\infty,(.+)([)\]])", intervals[0])
    above = re.fullmatch(r"([(\[])(.+),\\infty\)", intervals[-1])
    if len(intervals) != 2 or not below or not above:
        return ""
    low, high = number(above[2]), number(below[1])
    return (
        f"{above[1]}{above[2]},{below[1]}{below[2]}"
        if low and high and low.value < high.value
        else ""
    )


def _inequality(flat: str) -> tuple[str, str] | None:
    """(the variable, the interval it is in) of one inequality without spaces."""
    if m := _BETWEEN.fullmatch(flat):
        low, first, name, second, high = m.groups()
        if first in (">", r"\ge"):
            low, first, second, high = high, algebra.TURNED[second], algebra.TURNED[first], low
        if first in ("<", r"\le") and second in ("<", r"\le"):
            opened, closed = "(" if first == "<" else "[", ")" if second == "<" else "]"
            return name, f"{opened}{low},{high}{closed}"
        return None
    if m := _RAY.fullmatch(flat):
        name, sign, bound = m.groups()
    elif m := _TURNED_RAY.fullmatch(flat):
        bound, sign, name = m[1], algebra.TURNED[m[2]], m[3]
    else:
        return None
    if set(re.findall("[A-Za-z]", name)) & algebra.symbols(bound) or "," in bound:
        return None
    strict = sign in ("<", ">")
    if sign in ("<", r"\le"):
        return name, rf"(-\infty,{bound}{')' if strict else ']'}"
    return name, rf"{'(' if strict else '['}{bound},\infty)"


def _punctured(interval: str, points: str) -> str:
    r"""An interval without some points inside it, as a union; '' where that cannot be told."""
    read = [number(point) for point in points.split(",")]
    m = re.fullmatch(r"([(\[])(.+),(.+)([)\]])", interval)
    if m is None or not all(read):
        return ""
    low, high = number(m[2]), number(m[3])
    names = points.split(",")
    values = sorted((p.value, name) for p, name in zip(read, names, strict=True) if p)
    if (low and values[0][0] <= low.value) or (high and values[-1][0] >= high.value):
        return ""
    if (low is None and r"\infty" not in m[2]) or (high is None and r"\infty" not in m[3]):
        return ""
    ends = [m[2].strip(), *(text.strip() for _, text in values), m[3].strip()]
    first = [m[1], *"(" * len(values)]
    last = [*")" * len(values), m[4]]
    pieces = zip(first, ends[:-1], ends[1:], last, strict=True)
    return r" \cup ".join(f"{a}{x},{y}{b}" for a, x, y, b in pieces)
