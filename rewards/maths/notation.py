r"""Mathematical notation as strings: boxes, one spelling for one thing, and its outer structure.

Nothing here evaluates anything: `\frac12` becomes `\frac{1}{2}`, `(3,4]` is seen to be two items
between `(` and `]`. Values are the business of `rewards.maths.numbers` and of the verifier.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from rewards.maths import glyphs
from rewards.maths.extract import boxes

_EMPTY = re.compile(
    r"^(?:\\text ?\{)?(?:there (?:is|are) )?(?:no (?:real |integer )?(?:solutions?|roots?)|none|"
    r"(?:the )?empty set|does not exist|DNE)\}?$",
    re.I,
)
_FUNCTIONS = (
    "arcsin|arccos|arctan|arccot|sinh|cosh|tanh|coth|sin|cos|tan|cot|sec|csc|ln|log|exp|gcd|lcm|det"
)

_MATRIX = re.compile(
    r"[\[(]?\\begin ?\{(?:[pb]?(?:small)?matrix|array)\}(?:\{[lcr| ]*\})?((?:(?!\\begin).)*)"
    r"\\end ?\{(?:[pb]?(?:small)?matrix|array)\}[\])]?"
)
_END = re.compile(r"(?<![.,])[.,]$")
_GROUPS = re.compile(r"(?<=[0-9]) (?=[0-9]{3}(?![0-9]))")
_ENDS = re.compile(r"(\\[A-Za-z]+) (?=[A-Za-z])")
_APART = re.compile(r"(?<=[0-9]) (?=[0-9])")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
_SHORT = re.compile(r"([_^])\{(\w)\}")

_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = rf"({'|'.join(_SCALES)})(?![A-Za-z])( [A-Za-z ]*)?"


def _scaled(match: re.Match[str]) -> str:
    """`5 million` as a number, with what is counted as its unit."""
    counted = (match[2] or "").strip()
    return rf"\cdot 10^{_SCALES[match[1]]}" + (rf"\text{{ {counted}}}" if counted else "")


# Ordered: each rule sees what the ones before it left.
_SPELLING: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern, re.ASCII), to)
    for pattern, to in (
        # commands escaped twice, as JSON in JSON does; in a matrix \\ ends a row
        (
            r"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|left|right|leq?|geq?|text|pi|infty|cup|cdot)"
            r"(?![a-z]))",
            r"\\",
        ),
        (r"\\\$|\$", ""),
        (r"\s+", " "),
        (r"!=|\\neq(?![A-Za-z])|\\not ?=", r"\\ne "),
        (r"<=|\\(?:leq|leqslant)(?![A-Za-z])", r"\\le "),
        (r">=|\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\degree(?![A-Za-z])|\\text\{ ?degrees? ?\}", r"^\\circ"),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?", ""),
        (
            r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|hfill|bf|bfseries|rm|it|sf|"
            r"normalsize|large|Large|LARGE|huge|Huge)(?![A-Za-z])",
            "",
        ),
        (r"\\[hvm]space\*? ?\{[^{}]*\}", " "),
        (r"(?<=[0-9]) ?(?:\{ ?(?:,|\\, ?) ?\}|,\\!)(?: |\\,)*(?=[0-9]{3}(?![0-9]))", ""),
        (r",\\!\s*|(?<![A-Za-z])(?<![A-Za-z] )\{ ?, ?\}", ","),
        (r"(?:^|(?<=[0-9]))\{ ?\}", ""),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;: >]|~|\\q?quad", " "),
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"\\\\ ?\[ ?[0-9.]+ ?(?:pt|em|ex|mm)\]", r"\\\\"),
        (r"\\(?:[dtc]|nice|s)frac(?![A-Za-z])", r"\\frac"),
        (r"\{([^{}\\]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\{([^{}\\]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\\bigcup(?![A-Za-z])", r"\\cup"),
        (r"\\times(?![A-Za-z])|\\ast(?![A-Za-z])", r"\\cdot"),
        (r"\\div(?![A-Za-z])", "/"),
        (rf"\\(?:operatorname|mathrm|text) ?\{{ ?({_FUNCTIONS}) ?\}}", r"\\\1 "),
        (
            r"\\(?:mbox|textbf|textrm|textit|textnormal|textup|textsf|texttt|textsc|mathbf|mathrm|mathit|mathsf|"
            r"boldsymbol|bm|operatorname|hbox|underline)(?![A-Za-z])",
            r"\\text",
        ),
        # letters that are no unit are variables in another style
        (r"\\text ?\{ ?([eiInpqrxyz]) ?\}", r"\1"),
        (r"\\text ?\{([^A-Za-z{}]*)\}", r"\1"),
        (r"\\text ?\{((?=[^{}]*[0-9])(?:[^A-Za-z{}\\]|\b(?:and|or)\b)*)\}", r"\1"),
        # what is a number and its unit, or a word and a full stop
        (r"^\\text ?\{ ?([-+0-9.,/]*[0-9]) ?([A-Za-z][A-Za-z .]*)\}$", r"\1\\text{ \2}"),
        (r"^(\\text ?\{[A-Za-z ]+)\.\}$", r"\1}"),
        # between inequalities `or` is another thing than `and`
        (
            r"(?:\\text ?\{ ?(?:or|and) ?\}| (?:or|and) |\\(?:lor|vee|land|wedge)(?![A-Za-z]))"
            r"(?=[^,]*(?:[<>]|\\[lg]e(?![A-Za-z])))",
            lambda m: r"\lor " if re.search("or|vee", m[0]) else r"\land ",
        ),
        (r",? ?\\text ?\{ ?(?:,? ?(?:or|and) ?,?) ?\}", ", "),
        (
            r",? ?(?:\\text ?\{ ?,? ?for (?:all|every|any|each)(?: real| integer)?(?: numbers?)? ?"
            r"\}|\\forall)"
            r"(?: ?[A-Za-z](?: ?\\in ?\\mathbb ?\{?[A-Z]\}?)?)?$",
            "",
        ),
        (r", ?(?:or|and)(?![A-Za-z]) ?(?=[-+0-9\\(])", ", "),
        (
            r"(?:(?<=[0-9)}\]])|(?<=\\circ)|(?<=\b[A-Za-z])|(?<=[0-9][a-z]))"
            r" ?(?<![A-Za-z])(?:or|and) ?"
            r"(?=[-+0-9\\(]|[A-Za-z](?![A-Za-z]))",
            ", ",
        ),
        (r"\\(?:lor|vee)(?![A-Za-z])(?![^,]*(?:[<>]|\\[lg]e(?![A-Za-z])))", ", "),
        (rf"(?<=[0-9}}]) ?\\text ?\{{ ?{_SCALE}\}}", _scaled),
        (rf"(?<=[0-9}}]) ?{_SCALE}", _scaled),
        # thousands after a name: `N = 1,000`
        (r"^[^,=]*= ?[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?=$| ?\\text)", lambda m: m[0].replace(",", "")),
        (r"\\(?:langle|lparen)(?![A-Za-z])", "("),
        (r"\\(?:rangle|rparen)(?![A-Za-z])", ")"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (
            r"\\%|(?<=[0-9}]) ?(?:\\text ?\{ ?(?:percent(?:age)?|pct)\.? ?\}|"
            r"(?:percent|pct)[a-z]*)",
            "%",
        ),
        (r"(?<!\\)sqrt ?\(([^()]*)\)", r"\\sqrt{\1}"),
        (rf"(?<![\\A-Za-z])({_FUNCTIONS}|pi|infty|infinity)(?![A-Za-z])", r"\\\1"),
        (r"\\infinity", r"\\infty"),
        (r"\\(?:lvert|rvert|vert)(?![A-Za-z])", "|"),
        (r"\\sqrt ?(\w)", r"\\sqrt{\1}"),
        (r"\\frac ?(\\[a-z]+) ?(\w)", r"\\frac{\1}{\2}"),
        (r"\\frac ?(\w) ?(\w)", r"\\frac{\1}{\2}"),
        (r"\\frac ?(\w) ?\{", r"\\frac{\1}{"),
        (r"(\\frac ?\{[^{}]*\}) ?(\w)", r"\1{\2}"),
        (r"\^ ?(?:\{ ?\\circ ?\}|\\circ)", r"\\text{degree}"),
        (r"(?<![A-Za-z0-9)}\]]) ?\+ ?\\infty", r"\\infty"),
        (r"\{ ?: ?\}", ":"),
        (r" +", " "),
    )
)
_BOLD = re.compile(r"\\(?:boldsymbol|bm|pmb|mathbf) ?\{")
_VERBAL_LIST = re.compile(r"\\text ?\{ ?([A-Za-z][A-Za-z ]*(?:,|,? and |,? or )[A-Za-z ,]*)\}")


@lru_cache(maxsize=8192)
def tidy(text: str) -> str:
    """One spelling for one thing; the value is unchanged."""
    text = glyphs.plain(text).strip()
    while (inner := boxes(text)) and text.strip("$ ") in (
        rf"\boxed{{{inner[-1]}}}",
        rf"\fbox{{{inner[-1]}}}",
    ):
        text = inner[-1].strip()
    if (bold := _BOLD.match(text)) and _pair(text[bold.end() - 1 :]) == "{}":
        text = text[bold.end() : -1]
    for pattern, to in _SPELLING:
        text = pattern.sub(to, text)
    text = text.strip()
    text = _END.sub("", text).rstrip("\\").removeprefix("=").strip()
    while text[:1] == "{" and _pair(text) == "{}":
        text = text[1:-1].strip()  # braces that only group
    if m := _VERBAL_LIST.fullmatch(text):
        words = re.split(r",? (?:and|or) |,(?: (?:and|or) )?", m[1])
        text = ", ".join(rf"\text{{{word.strip()}}}" for word in words if word.strip())
    return r"\emptyset" if _EMPTY.match(text) or squeeze(text) == r"\{\}" else text


def squeeze(text: str) -> str:
    """Tidy text without the spaces and braces that mean nothing: equal strings are one answer.

    A space between two digits stays unless it groups thousands: `1 2` is not `12`.
    """
    text = _GROUPS.sub("", text)
    text = _ENDS.sub("\\1\0", text)
    text = _APART.sub("\0", text).replace(" ", "").replace("\0", " ")
    return _SHORT.sub(r"\1\2", text)


class Shape(NamedTuple):
    """`kind`: '' (one item), 'set' (order is free), 'union', '()', '(]', 'column', ':', ..."""

    kind: str
    items: tuple[str, ...]


def shape(text: str) -> Shape:
    """The outer structure of tidy text; one item means there is none."""
    text = text.strip()
    union = split(text, r"\cup")
    if len(union) > 1:
        return Shape("union", union)
    if matrix := _MATRIX.fullmatch(text):
        return _matrix(matrix[1])
    if ";" in text and len(groups := split(text, ";")) > 1:
        return Shape("set", tuple(f"({part})" if "," in part else part for part in groups))
    delimiters, inner = _unwrap(text)
    items = split(inner, ";")
    items = items if len(items) > 1 else split(inner, ",")
    if delimiters == "{}":
        return Shape("set", _signs(items))
    if delimiters and (len(items) > 1 or delimiters == "[]"):
        return Shape(delimiters, items)
    if delimiters == "()":
        return shape(inner)
    items = _signs(items)
    if len(items) == 1 and "=" not in text and len(ratio := split(text, ":")) > 1:
        return Shape(":", ratio)
    return Shape("set", items) if len(items) > 1 else Shape("", items)


def _matrix(body: str) -> Shape:
    rows = [row.split("&") for row in body.split(r"\\") if row.strip()]
    items = tuple(cell.strip() for row in rows for cell in row)
    if len(rows) > 1 and len(items) == len(rows):
        return Shape("column", items)
    if len(rows) == 1 and len(items) > 1:
        return Shape("row", items)
    widths = {len(row) for row in rows}
    return Shape(f"matrix {len(rows)}x{'?' if len(widths) != 1 else widths.pop()}", items)


def _signs(items: tuple[str, ...]) -> tuple[str, ...]:
    r"""`a \pm b` is two items."""
    out: list[str] = []
    for item in items:
        twice = len(_PLUS_MINUS.findall(item)) == 1
        out += [_PLUS_MINUS.sub(sign, item).strip() for sign in "+-"] if twice else [item]
    return tuple(out)


def _unwrap(text: str) -> tuple[str, str]:
    r"""`(a,b]` -> ('(]', 'a,b'); `\{a\}` -> ('{}', 'a'); no outer pair -> ('', text)."""
    flat = text.replace(r"\{", "\1").replace(r"\}", "\2")
    pair = _pair(flat)
    if not pair or pair == "{}":
        return "", text
    inner = flat[1:-1].replace("\1", r"\{").replace("\2", r"\}").strip()
    return pair.replace("\1", "{").replace("\2", "}"), inner


def ungrouped(text: str) -> str:
    """`(5)` without the parentheses; a tuple keeps its."""
    kind, inner = _unwrap(text)
    return inner if kind == "()" and not re.search("[,;]", inner) else text


def _pair(text: str) -> str:
    """The bracket that opens a text and the one that closes it at its very end, '' if none do."""
    if len(text) < 2 or text[0] not in "([{\1" or text[-1] not in ")]}\2":
        return ""
    depth = 0
    for i, char in enumerate(text):
        depth += (char in "([{\1") - (char in ")]}\2")
        if depth == 0 and i < len(text) - 1:
            return ""
    return text[0] + text[-1]


def split(text: str, separator: str) -> tuple[str, ...]:
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
