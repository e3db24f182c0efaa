r"""Forms of values, equations, lists, intervals, matrices, words (`tests.forms` has the others)."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.written import (
    BASE,
    CHOICE,
    DEGREES,
    MATRIX,
    NAMED,
    UNIT,
    WORD,
    Change,
    bare_list,
    changed,
    listed,
    plain,
    single,
)


def _named(name: str) -> Change:
    def change(gold: str) -> str | None:
        return f"{name}{gold}" if single(gold) and not re.search(r"\\%|[xyft]", gold) else None

    return change


def _swapped_terms(gold: str) -> str | None:
    m = re.fullmatch(r"([^-+()=,]+?) ?([+-]) ?([^-+()=,]+)", gold)
    if m is None or not single(gold) or r"\%" in gold or "|" in gold:
        return None
    if any(part.count("{") != part.count("}") for part in (m[1], m[3])):
        return None
    return f"-{m[3]}+{m[1]}" if m[2] == "-" else f"{m[3]}+{m[1]}"


def _root_after(gold: str) -> str | None:
    m = re.fullmatch(r"(-?)(\d+) ?(\\sqrt\{?\d+\}?|\\pi)", gold)
    return rf"{m[1]}{m[3]} \cdot {m[2]}" if m else None


def _split_fraction(gold: str) -> str | None:
    r"""`\frac{\sqrt{3}}{4}` as `\frac{1}{4}\sqrt{3}`, `\frac{2\pi}{3}` as `\frac{2}{3}\pi`."""
    m = re.fullmatch(
        r"(-?)\\frac\{(\d*) ?(\\sqrt\{\d+\}|\\pi)\}\{(\d+)\}",
        re.sub(r"\\[dt]frac", r"\\frac", gold),
    )
    return rf"{m[1]}\frac{{{m[2] or 1}}}{{{m[4]}}}{m[3]}" if m else None


def _over(gold: str) -> str | None:
    r"""`\frac{\sqrt{3}}{4}` as `\sqrt{3}/4`."""
    m = re.fullmatch(r"(-?)\\frac\{(\d* ?(?:\\sqrt\{\d+\}|\\pi))\}\{(\d+)\}", gold)
    return f"{m[1]}{m[2]}/{m[3]}" if m else None


def _swapped_factors(gold: str) -> str | None:
    m = re.fullmatch(r"(\([^()]*\)(?:\^\{?\d\}?)?)(\([^()]*\)(?:\^\{?\d\}?)?)", gold)
    return m[2] + m[1] if m else None


def _reversed_terms(gold: str) -> str | None:
    """A polynomial from its lowest power up."""
    if not re.fullmatch(r"[-+ \da-z^{}]+", gold) or not re.search(r"[a-z]", gold):
        return None
    terms = re.findall(
        r"[-+][^-+]+", "+" * (gold.strip()[0] != "-") + gold.strip().replace(" ", "")
    )
    return "".join(reversed(terms)).removeprefix("+") if len(terms) > 2 else None


def _sides(gold: str) -> list[str]:
    sides = [side.strip() for side in gold.split("=")]
    return sides if len(sides) == 2 and not re.search(r"[,:%]|\\approx", gold) else []


def _one_side(gold: str) -> str | None:
    sides = _sides(gold)
    if not sides or sides[1] == "0" or re.fullmatch(r"[A-Za-z]+(?:\(.*\))?", sides[0]):
        return None
    return f"{sides[0]} - ({sides[1]}) = 0"


VALUES: dict[str, Change] = {
    "parentheses": lambda g: f"({g})" if single(g) and not re.search(r"[%$]", g) else None,
    "x =": _named("x = "),
    "f(2)=": _named("f(2)="),
    "+ 0": lambda g: (
        f"{g}+0" if single(g) and not re.search(r"\\[%{]|\$|circ|^[A-Za-z]$|mathrm", g) else None
    ),
    "terms swapped": _swapped_terms,
    "terms reversed": _reversed_terms,
    "factors swapped": _swapped_factors,
    "root last": _root_after,
    "fraction first": _split_fraction,
    "over": _over,
    "name dropped": lambda g: NAMED.sub("", g) if NAMED.match(g) else None,
    "sides swapped": lambda g: (
        f"{s[1]} = {s[0]}" if (s := _sides(g)) and not re.search(r"[a-z]", s[1]) else None
    ),
    "all on one side": _one_side,
    "degrees dropped": lambda g: (
        DEGREES.sub("", g) if re.fullmatch(r"-?[\d.]+ ?\^ ?\{?\\circ\}?", g) else None
    ),
    "degrees in words": lambda g: (
        DEGREES.sub(r"\\text{ degrees}", g)
        if re.fullmatch(r"-?[\d.]+ ?\^ ?\{?\\circ\}?", g)
        else None
    ),
    "degrees braced": lambda g: changed(g, DEGREES.pattern, r"^{\\circ}"),
    "degrees sign": lambda g: changed(g, DEGREES.pattern, "\u00b0"),
    "units dropped": lambda g: g[: m.start()] if (m := UNIT.search(g)) and m.start() else None,
    "units typed": lambda g: (
        UNIT.sub(rf" {m[1].strip()}{m[2] or ''}", g)
        if (m := UNIT.search(g)) and m.start()
        else None
    ),
    "units roman": lambda g: (
        UNIT.sub(rf" \\mathrm{{{m[1].strip().replace(' ', '~')}}}{m[2] or ''}", g)
        if (m := UNIT.search(g)) and m.start()
        else None
    ),
}


# lists, tuples, intervals, matrices


def _joined(before: str, separator: str, after: str, turned: bool = False) -> Change:
    def change(gold: str) -> str | None:
        items = bare_list(gold)
        return before + separator.join(items[:: -1 if turned else 1]) + after if items else None

    return change


def _all_named(gold: str) -> str | None:
    return ", ".join(f"x={item}" for item in i) if (i := bare_list(gold)) else None


_INTERVAL = re.compile(r"(?:\\left ?)?([(\[])(.*?),(.*?)(?:\\right ?)?([)\]])")


def _inequality(gold: str) -> str | None:
    m = None if r"\cup" in gold else _INTERVAL.fullmatch(gold.strip())
    if m is None or ("[" not in m[1] + m[4].replace("]", "[") and r"\infty" not in gold):
        return None  # (1,2) may be a point
    low, high = m[2].strip(), m[3].strip()
    below, above = (r"\le" if m[1] == "[" else "<"), (r"\le" if m[4] == "]" else "<")
    if r"\infty" in low and r"\infty" in high:
        return None
    if r"\infty" in high:
        return f"x {below.replace('<', '>').replace('le', 'ge')} {low}"
    return f"x {above} {high}" if r"\infty" in low else f"{low} {below} x {above} {high}"


def _union_turned(gold: str) -> str | None:
    parts = gold.split(r"\cup")
    return r" \cup ".join(part.strip() for part in reversed(parts)) if len(parts) > 1 else None


def _array(gold: str) -> str | None:
    m = MATRIX.fullmatch(gold)
    if m is None:
        return None
    columns = "c" * (m[1].split(r"\\")[0].count("&") + 1)
    return rf"\left(\begin{{array}}{{{columns}}}{m[1]}\end{{array}}\right)"


def _column(gold: str) -> list[str]:
    m = MATRIX.fullmatch(gold)
    cells = [cell.strip() for cell in m[1].split(r"\\")] if m else []
    return [] if "&" in gold or len(cells) < 2 else cells


PARTS: dict[str, Change] = {
    "braces": _joined(r"\{", ", ", r"\}"),
    "turned": _joined("", ",", "", turned=True),
    "and": _joined("", r" \text{ and } ", ""),
    "or": _joined("", r" \text{ or } ", ""),
    "plain and": _joined("", " and ", ""),
    "quad": _joined("", r",\quad ", ""),
    "each named": _all_named,
    "each boxed": _joined("", r"}$ and $\boxed{", ""),
    "member of": lambda g: (
        rf"x \in {g}" if r"\infty" in g or re.match(r"\[", g) or r"\cup" in g else None
    ),
    "inequality": _inequality,
    "union turned": _union_turned,
    "point named": lambda g: (
        f"(x,y)={g}"
        if re.fullmatch(r"\(.*\)", g) and len(listed(g)) == 2 and "inf" not in g
        else None
    ),
    "bmatrix": lambda g: g.replace("pmatrix", "bmatrix") if "pmatrix" in g else None,
    "dfrac cells": lambda g: (
        re.sub(r"(\d+)/(\d+)", r"\\dfrac{\1}{\2}", g) if "matrix" in g and "/" in g else None
    ),
    "angle column": lambda g: rf"\langle {', '.join(c)} \rangle" if (c := _column(g)) else None,
    "array": _array,
}


# words, choices, bases


def _of_word(before: str, after: str, case: Callable[[str], str] = str) -> Change:
    def change(gold: str) -> str | None:
        m = WORD.fullmatch(gold.strip())
        return before + case(m[1].strip()) + after if m else None

    return change


def _of_choice(pattern: str) -> Change:
    def change(gold: str) -> str | None:
        m = CHOICE.fullmatch(gold.strip())
        return pattern.format(m[1] or m[2]) if m else None

    return change


def _of_base(pattern: str) -> Change:
    def change(gold: str) -> str | None:
        m = BASE.fullmatch(plain(gold))
        return pattern.format(*m.groups()) if m else None

    return change


WORDS: dict[str, Change] = {
    "word": _of_word("", ""),
    "word, upper": _of_word(r"\text{", "}", str.title),
    "word, lower": _of_word(r"\text{", "}", str.lower),
    "word, bold": _of_word(r"\textbf{", "}"),
    "word, roman": _of_word(r"\mathrm{", "}"),
    "choice": _of_choice("{}"),
    "choice ()": _of_choice("({})"),
    "choice text": _of_choice(r"\text{{{}}}"),
    "choice bold": _of_choice(r"\textbf{{({})}}"),
    "choice bold space": _of_choice(r"\textbf{{({})}}\ "),
    "choice roman": _of_choice(r"\mathrm{{({})}}"),
    "base": _of_base("{}_{}"),
    "base braced": _of_base("{}_{{{}}}"),
    "base text": _of_base(r"{}_{{\text{{{}}}}}"),
    "base ()": _of_base("({})_{{{}}}"),
    "base roman": _of_base(r"\text{{{}}}_{{{}}}"),
}
