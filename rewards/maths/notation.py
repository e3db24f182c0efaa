r"""Mathematical notation as strings: boxes, one spelling for one thing, and its outer structure.

Nothing here evaluates anything: `\frac12` becomes `\frac{1}{2}`, `(3,4]` is seen to be two items
between `(` and `]`. Values are the business of `rewards.maths.numbers` and of the verifier.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_PREFIX = re.compile(r"^(?:so\s+|thus,?\s+)?(?:the\s+)?(?:final\s+)?answer\s*(?:is|:|=)+\s*", re.I)
_EMPTY = re.compile(
    r"^(?:\\(?:text|mbox)\{)?(?:no (?:real )?solutions?|none|(?:the )?empty set)\}?$", re.I
)
_UNIT = re.compile(
    r"(?:\\text\{(?P<text>[A-Za-z ./]+)\}|(?<=[\d}]) (?P<bare>[A-Za-z]{2,}(?: [A-Za-z]{2,}){0,2}))"
    r"(?P<power>\^\{?\d\}?)?$"
)

# Ordered: each rule sees what the ones before it left.
_SPELLING = tuple(
    (re.compile(pattern), to)
    for pattern, to in (
        (r"[\u2212\u2013]", "-"),
        (r"\u00d7", r"\\cdot "),
        (r"\u03c0", r"\\pi "),
        (r"\u221e", r"\\infty "),
        (r"\u222a", r"\\cup "),
        (r"\u2205|\\varnothing\b", r"\\emptyset"),
        (r"\u00b0|\\degree\b|\\text\{\s*degrees?\s*\}", r"^\\circ"),
        (r"\u2264|<=|\\(?:leq|leqslant)(?![A-Za-z])", r"\\le "),
        (r"\u2265|>=|\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?", ""),
        (r"\\(?:displaystyle|textstyle|limits)(?![A-Za-z])", ""),
        (r",\\!\s*|\{,\}", ","),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\times(?![A-Za-z])", r"\\cdot"),
        (r"\\(?:mbox|textbf|textrm|textit|mathbf|mathrm|operatorname|hbox)(?![A-Za-z])", r"\\text"),
        (r"\\text\s*\{\s*([eiI])\s*\}", r"\1"),
        (r"\\text\s*\{\s*(?:or|and)\s*\}|(?<=\d) (?:or|and) (?=[-+\d\\])", ","),
        (r",\s*,", ","),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\[lr]brace(?![A-Za-z])", lambda m: r"\{" if m[0][1] == "l" else r"\}"),
        (r"\\\$|\$", ""),
        (r"\\%", "%"),
        (r"(?<![\\A-Za-z])sqrt\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])(pi|sin|cos|tan|log|ln|infty|infinity)(?![A-Za-z])", r"\\\1"),
        (r"\\infinity", r"\\infty"),
        (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
        (r"\\frac\s*(\\[a-z]+)\s*(\w)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\w)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\w)", r"\1{\2}"),
        (r"\^\s*\{?\s*\\circ\s*\}?", r"\\text{degree}"),
        (r"\s+", " "),
    )
)


def boxes(text: str) -> list[str]:
    r"""Contents of the balanced, outermost `\boxed{...}` of `text`, in order."""
    found: list[str] = []
    start = 0
    while match := _BOX.search(text, start):
        end = _closing(text, match.end())
        start = match.end() if end is None else end
        if end is not None:
            found.append(text[match.end() : end])
    return found


def _closing(text: str, start: int) -> int | None:
    """Index of the brace that closes one opened just before `start`; None if none does."""
    depth, i = 1, start
    while i < len(text):
        if text[i] == "\\":
            i += 2  # \{ and \} are printed braces
            continue
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return i
        i += 1
    return None


def balanced(text: str) -> bool:
    """Braces match."""
    return _closing(text + "}", 0) == len(text)


def bare(text: str, limit: int) -> str | None:
    """An answer written without a box: the whole text, if it is one line of at most `limit`."""
    line = _PREFIX.sub("", text.strip()).strip()
    if not line or len(line) > limit or "\n" in line or _BOX.search(line):
        return None  # a box that was opened and never closed is an answer cut off
    return line


def tidy(text: str) -> str:
    """One spelling for one thing; the value is unchanged."""
    while inner := boxes(text):
        if text.strip() != text[_BOX.search(text).start() :].strip():  # type: ignore[union-attr]
            break
        text = inner[-1]
    for pattern, to in _SPELLING:
        text = pattern.sub(to, text)
    text = text.strip().removesuffix(".").strip()
    return r"\emptyset" if _EMPTY.match(text) or squeeze(text) == r"\{\}" else text


def squeeze(text: str) -> str:
    """Tidy text without the spaces and braces that mean nothing: equal strings are one answer.

    A space between two digits stays unless it groups thousands: `1 2` is not `12`.
    """
    text = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(\\[A-Za-z]+) (?=[A-Za-z])", "\\1\0", text)
    text = re.sub(r"(?<=\d) (?=\d)", "\0", text).replace(" ", "").replace("\0", " ")
    return re.sub(r"([_^])\{(\w)\}", r"\1\2", text)


def split_unit(text: str) -> tuple[str, str]:
    """Tidy text -> (what is measured, its unit or '')."""
    match = _UNIT.search(text)
    if match is None or match.start() == 0:
        return text, ""
    unit = (match["text"] or match["bare"]).strip().lower().rstrip(".").removesuffix("s")
    power = re.sub(r"[{}]", "", match["power"] or "")
    return text[: match.start()].strip(), unit + power


class Shape(NamedTuple):
    """`kind` is '' (one item), 'set' (order is free), 'union', '()', '(]', 'matrix 2x3', ..."""

    kind: str
    items: tuple[str, ...]


def shape(text: str) -> Shape:
    """The outer structure of tidy text; one item means there is none."""
    text = text.strip()
    union = _split(text, r"\cup")
    if len(union) > 1:
        return Shape("union", union)
    matrix = re.fullmatch(r"\\begin\{[pb]matrix\}(.*)\\end\{[pb]matrix\}", text)
    if matrix:
        rows = [row.split("&") for row in matrix[1].split(r"\\") if row.strip()]
        items = tuple(cell.strip() for row in rows for cell in row)
        column = len(rows) > 1 and len(items) == len(rows)
        return Shape("()" if column else f"matrix {len(rows)}x{len(rows[0])}", items)
    delimiters, inner = _unwrap(text)
    items = _split(inner, ",")
    if delimiters == "{}":
        return Shape("set", _signs(items))
    if delimiters and (len(items) > 1 or delimiters == "[]"):
        return Shape(delimiters, items)
    if delimiters == "()":
        return shape(inner)
    items = _signs(items)
    return Shape("set", items) if len(items) > 1 else Shape("", items)


def _signs(items: tuple[str, ...]) -> tuple[str, ...]:
    r"""`a \pm b` is two items."""
    out: list[str] = []
    for item in items:
        twice = item.count(r"\pm") == 1
        out += [item.replace(r"\pm", sign).strip() for sign in "+-"] if twice else [item]
    return tuple(out)


def _unwrap(text: str) -> tuple[str, str]:
    r"""`(a,b]` -> ('(]', 'a,b'); `\{a\}` -> ('{}', 'a'); no outer pair -> ('', text)."""
    flat = text.replace(r"\{", "\1").replace(r"\}", "\2")
    if len(flat) < 2 or flat[0] not in "([\1" or flat[-1] not in ")]\2":
        return "", text
    depth = 0
    for i, char in enumerate(flat):
        depth += (char in "([{\1") - (char in ")]}\2")
        if depth == 0 and i < len(flat) - 1:
            return "", text
    pair = (flat[0] + flat[-1]).replace("\1", "{").replace("\2", "}")
    return pair, flat[1:-1].replace("\1", r"\{").replace("\2", r"\}").strip()


def _split(text: str, separator: str) -> tuple[str, ...]:
    """Split at a separator that stands outside every bracket."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i].strip())
            i = start = i + len(separator)
            continue
        depth += (text[i] in "([{") - (text[i] in ")]}")
        i += 1
    return (*parts, text[start:].strip())
