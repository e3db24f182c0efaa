r"""Answers that look like the gold and are wrong: every change of `changes` alters what it says.

Some change nothing after all (1 of `1^5`, a list that reads the same turned round): `tests.oracle`
tells which, and those are left out. Nothing here reads the code under test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from tests import oracle
from tests.written import (
    BASE,
    DEGREES,
    MATRIX,
    UNIT,
    bare_list,
    core,
    integer,
    listed,
    long_fractions,
    plain,
    rational,
)

Changes = Iterator[tuple[str, str]]
_INTEGER = re.compile(r"(?<![\d.])\d+(?![\d.]|,\\!|\{,\})")
_DECIMAL = re.compile(r"\d*\.\d+")
_LETTER = re.compile(r"(?<![A-Za-z\\{])([a-zA-Z])(?![A-Za-z}])")


def digits(gold: str) -> Changes:
    """Every number within it one more, one less, ten times as much."""
    text = long_fractions(plain(gold))
    for at, m in enumerate(list(_INTEGER.finditer(text))[:6]):
        n = int(m[0])
        for name, other in (("one more", n + 1), ("one less", n - 1), ("a digit more", 10 * n + 1)):
            if other >= 0 and (n, other) not in ((1, 0), (0, -1)):
                yield f"{name}, number {at}", text[: m.start()] + str(other) + text[m.end() :]
    for m in list(_DECIMAL.finditer(text))[:2]:
        whole, _, part = m[0].partition(".")
        last = str((int(part[-1]) + 1) % 10 or 1)
        yield "last decimal", f"{text[: m.start()]}{whole}.{part[:-1]}{last}{text[m.end() :]}"
        yield "next decimal", f"{text[: m.end()]}1{text[m.end() :]}"
        yield (
            "decimal point moved",
            f"{text[: m.start()]}{whole}{part[:1]}.{part[1:]}0{text[m.end() :]}",
        )


def signs(gold: str) -> Changes:
    """The whole negated; each inner sign turned."""
    text = gold.strip()
    value = rational(text)
    if value is not None and value:
        yield "negated", text[1:] if text.startswith("-") else f"-{text}"
    for at, m in enumerate(list(re.finditer(r"(?<![{(^\[])[-+]|(?<=[\[(])-", text))[:5]):
        turned = {"-": "+", "+": "-"}[m[0]]
        if "matrix" in text or text[max(m.start() - 1, 0)] in "([&":
            turned = ""
        yield f"sign {at} turned", text[: m.start()] + turned + text[m.end() :]


def fractions(gold: str) -> Changes:
    """Turned over, above or below alone, a rounded value that is not exact."""
    value = rational(gold)
    if value is None or value.denominator == 1:
        return
    turned = 1 / value
    yield "turned over", rf"\frac{{{turned.numerator}}}{{{turned.denominator}}}"
    yield "numerator alone", str(value.numerator)
    yield "denominator alone", str(value.denominator)
    yield "bar read as a comma", f"{value.numerator},{value.denominator}"
    if abs(value) < 10:
        yield "one digit", f"{float(value):.1f}"
    nearby = round(float(value), 3) + 0.002
    yield "wrong third decimal", f"{nearby:.3f}"


def whole(gold: str) -> Changes:
    """Of an integer: ways to almost say it, or to say two things."""
    n = integer(gold)
    if n is None:
        return
    yield "a little more", f"{n}.001"
    yield "a little less", f"{n - 1}.9999"
    yield "half more", f"{n}.5"
    yield "one over it", f"1/{n}" if n not in (1, -1) else "1/2"
    yield "percent", rf"{n}\%" if n else r"1\%"
    yield "with i", f"{n}i" if n else "i"
    yield "times pi", rf"{n}\pi" if n else r"\pi"
    yield "times letters", f"{n}xy"
    yield "times letters, apart", f"{n} ab"
    yield "its root", rf"\sqrt{{{abs(n)}}}" if abs(n) > 1 else r"\sqrt{2}"
    yield "squared", f"{n}^2" if abs(n) > 1 else "2^2"
    yield "factorial", f"{n}!" if n > 2 else "3!"
    yield "thousands", f"{n},000" if 0 < n < 1000 else f"{n},001"
    yield "digits apart", " ".join(str(n)) if len(str(n).lstrip("-")) > 1 else f"{n} {n}"
    yield "from 1 on", f"1, 2, \\ldots, {n}"


def doubtful(gold: str) -> Changes:
    """The gold together with something else: answers that do not commit, or hide another value."""
    text = gold.strip()
    yield "equation tail", f"7777={text}"
    yield "equation head", f"{text}=7777"
    yield "chain", f"1=2={text}"
    yield "or another", rf"{text} \text{{ or }} 7777"
    yield "and another", f"{text}, 7777"
    yield "not it", rf"\text{{not }} {text}"
    yield "unequal", rf"\ne {text}"
    yield "approximates", rf"7777 \approx {text}"
    yield "set of more", rf"\{{{text}, 7777\}}"
    yield "plus one", f"({text})+1"
    yield "plus or minus", rf"{text} \pm 1"
    yield "plus unknown", f"{text}+c"
    yield "crossed out", rf"\cancel{{{text}}} 7777"
    yield "unseen", rf"\phantom{{{text}}} 7777"
    yield "more than it", f">{text}"


def parts(gold: str) -> Changes:
    """Lists, tuples, intervals: turned, shortened, lengthened, other brackets."""
    items = listed(gold)
    if not items:
        return
    m = re.fullmatch(r"(?:\\left ?)?([(\[]).*?([)\]])", re.sub(r"\\right ?", "", gold.strip()))
    before, after = (m[1], m[2]) if m and not bare_list(gold) else ("", "")
    for at in range(len(items)):
        rest = items[:at] + items[at + 1 :]
        yield f"without part {at}", before + ", ".join(rest) + after
    yield "a part twice", f"{before}{', '.join([*items, items[-1]])}{after}"
    yield "a part more", f"{before}{', '.join([*items, '7777'])}{after}"
    yield "summed", "+".join(f"({item})" for item in items)
    if before:
        inner = ", ".join(items)
        yield "turned", before + ", ".join(reversed(items)) + after
        yield "as a set", rf"\{{{inner}\}}"
        yield "bare", inner
        for pair in ("()", "[)", "(]", "[]"):
            if pair != before + after and (len(items) == 2 or pair == "[]"):
                yield f"as {pair}", f"{pair[0]}{inner}{pair[1]}"


def unions(gold: str) -> Changes:
    """Of a union: one part alone, the intersection, each bracket turned."""
    if r"\cup" in gold:
        pieces = gold.split(r"\cup")
        yield "first part", pieces[0]
        yield "last part", pieces[-1]
        yield "intersection", gold.replace(r"\cup", r"\cap")
    if r"\cup" in gold or r"\infty" in gold:
        for at, m in enumerate(re.finditer(r"[(\[\])]", gold)):
            turned = {"(": "[", "[": "(", ")": "]", "]": ")"}[m[0]]
            yield f"bracket {at}", gold[: m.start()] + turned + gold[m.end() :]


def matrices(gold: str) -> Changes:
    """Transposed (if that is another), a row less, rows exchanged, as a list."""
    m = MATRIX.fullmatch(gold)
    if m is None:
        return
    rows = [[cell.strip() for cell in row.split("&")] for row in m[1].split(r"\\") if row.strip()]
    flat = [cell for row in rows for cell in row]

    def written(table: list[list[str]]) -> str:
        inner = r" \\ ".join(" & ".join(row) for row in table)
        return rf"\begin{{pmatrix}} {inner} \end{{pmatrix}}"

    if len(rows[0]) > 1:
        turned = [list(column) for column in zip(*rows, strict=True)]
        yield from [("transposed", written(turned))] if turned != rows else []
        yield "as a list", f"({', '.join(flat)})"
    yield from [("rows exchanged", written(rows[::-1]))] if rows != rows[::-1] else []
    yield "a row less", written(rows[:-1])
    yield "a row more", written([*rows, rows[-1]])
    yield "its determinant bars", written(rows).replace("pmatrix", "vmatrix")


def symbols(gold: str) -> Changes:
    """Other letters, units, degrees, roots, bases, signs of comparison."""
    text = gold.strip()
    if (
        "text" not in text
        and "mbox" not in text
        and "mathbf" not in text
        and (m := _LETTER.search(text))
    ):
        other = "q" if m[1] != "q" else "m"
        swapped = re.sub(rf"(?<![A-Za-z\\]){m[1]}(?![A-Za-z])", other, text)
        if not re.search(r"[<>]|\\(?:[lg]eq?|in|mid)(?![a-z])", text) and (
            "=" not in text or len(set(_LETTER.findall(text))) > 1
        ):
            yield "another letter", swapped
    for name, pattern, to in (
        ("pi dropped", r" ?\\pi(?![A-Za-z])", "" if re.search(r"\d ?\\pi", text) else "1"),
        ("root dropped", r"\\sqrt(?!\[)", ""),
        ("cube root", r"\\sqrt(?!\[)", r"\\sqrt[3]"),
        ("power dropped", r"\^(?:\{\d+\}|\d)", ""),
        ("percent dropped", r" ?\\%", ""),
        ("degrees as radians", DEGREES.pattern, r"\\text{ radians}"),
        ("degrees as percent", DEGREES.pattern, r"\\%"),
        ("strict", r"\\leq?(?![A-Za-z])", "<"),
        ("i dropped", r"(?<=\d) ?i(?![A-Za-z])", ""),
        ("infinity turned", r"-\\infty", r"\\infty"),
    ):
        changed = re.sub(pattern, to, text)
        if changed != text:
            yield name, changed
    if (m := UNIT.search(text)) and m.start():
        yield "another unit", text[: m.start()] + r"\text{ parsecs}"
    if (m := BASE.fullmatch(plain(text))) and m[2] != "10":
        yield "base dropped", m[1]
        yield "another base", f"{m[1]}_{{{int(m[2]) + 1}}}"
        yield "value in base ten", str(int(m[1], int(m[2])))


def words(gold: str) -> Changes:
    """Of a word or letter: another, the same negated, with a letter more, two of them."""
    m = re.fullmatch(r"\\(?:text|mbox)\{\(?([A-Za-z ]+)\)?\}|([A-Z])", gold.strip())
    if m is None:
        return
    word = (m[1] or m[2]).strip()
    if len(word) == 1:
        other = "B" if word != "B" else "D"
        yield "another letter", rf"\text{{({other})}}"
        yield "two letters", f"{word}, {other}"
        yield "either letter", f"{word} or {other}"
        yield "not the letter", rf"\text{{not {word}}}"
        yield "small letter", word.lower()
    else:
        yield "another word", r"\text{parabola}" if word != "parabola" else r"\text{circle}"
        yield "negated word", rf"\text{{not {word}}}"
        yield "letter more", rf"\text{{{word}x}}"
        yield "letter less", rf"\text{{{word[:-1]}}}"
        yield "or another word", rf"\text{{{word} or parabola}}"


UNITS = {"another unit", "degrees as radians"}
"""Changes that `tests.oracle` does not see."""
KINDS = (digits, signs, fractions, whole, doubtful, parts, unions, matrices, symbols, words)


def perturbed(gold: str, neighbours: tuple[str, ...] = ()) -> Changes:
    """(name, answer text) of every change, and of other rows' answers, that is really another."""
    gold = core(gold)
    for kind in KINDS:
        for name, written in kind(gold):
            if kind is doubtful or name in UNITS or not _unchanged(gold, written):
                yield name, rf"Thus $\boxed{{{written}}}$."
    for other in map(core, neighbours):
        if not _unchanged(gold, other):
            yield "neighbour", rf"Thus $\boxed{{{other}}}$."


def _unchanged(gold: str, other: str) -> bool:
    if re.sub(r"\s", "", plain(gold)) == re.sub(r"\s", "", plain(other)):
        return True
    a, b = _value(gold), _value(other)
    if a is not None and b is not None:
        return a == b
    return oracle.equal(gold, other) is True


def _value(gold: str) -> Fraction | None:
    return rational(gold.strip().removeprefix(r"\$"))
