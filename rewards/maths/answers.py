r"""Whether two written answers are equal: structure by structure, then value by value.

Numbers are compared as rationals; tuples, intervals, sets, unions and matrices item by item;
equations and inequalities by what they say; single expressions by computer algebra.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rewards.maths import algebra, guards, notation, regions, units
from rewards.maths.notation import Shape, squeeze
from rewards.maths.numbers import Number, Percent, number, numeral, same

ROUNDED_GOLD = 7
"""Significant digits of a decimal gold that are enough to tell which exact value was rounded."""

_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*[A-Za-z](?: [0-9]+)?")
_SHORT_WORDS = frozenset(["yes", "no", "all", "odd", "red", "one", "two", "six", "ten"])
_OPTION = re.compile(
    r"(?:\\text ?\{ ?\(?([A-Z])\)?[.:]? ?\}|\(([A-Z])\) )[ .:]*"
    r"((?:(?<=\} )-|[0-9.(]|\\(?:frac|sqrt|text|pi)|(?<=[)}] )[A-Za-z]).*)"
)
"""A choice with its value: `\\textbf{(C)}\\ 12`, `(C) 12`."""
_LABEL = re.compile(r"\\text ?\{[A-Za-z][A-Za-z ]*\}")
_LETTER = re.compile(r"\(?([A-Z])\)?")
_TUPLE = re.compile(r"\([A-Za-z]\w*(?:, ?[A-Za-z]\w*)+\)")


class Rules(NamedTuple):
    percent: Percent = "value"
    rounded: int = 3
    algebra: bool = True
    """False: raise NeedsAlgebraError rather than ask the computer algebra system."""


class RefusedError(Exception):
    """The answer cannot be judged; the text says why."""


class NeedsAlgebraError(Exception):
    """Only computer algebra can tell."""


def matches(gold: str, answer: str, rules: Rules) -> bool:
    """Whether two tidy answers are equal.

    Raises:
        RefusedError: the answer hides its value, is too costly or cannot be read.
        NeedsAlgebraError: it takes computer algebra, and `rules` exclude that.
    """
    if squeeze(gold) == squeeze(answer):
        return True
    if reason := guards.refusal(answer, gold):
        raise RefusedError(reason)
    if r"\approx" in gold:
        return _approximate(gold, answer, rules)
    wanted, given = _OPTION.fullmatch(gold), _OPTION.fullmatch(answer)
    if wanted or given:
        return _chosen(gold, wanted, answer, given, rules)
    return _measured(gold, answer, rules)


def _chosen(
    gold: str, wanted: re.Match[str] | None, answer: str, given: re.Match[str] | None, rules: Rules
) -> bool:
    """Of `(C) 12` the letter or the value will do; where an answer gives both, both must fit."""
    letter = (wanted[1] or wanted[2]) if wanted else _letter(gold)
    said = (given[1] or given[2]) if given else _letter(answer)
    if letter and said and letter != said:
        return False
    if said and not given:
        return letter == said
    if letter and not wanted:  # nothing tells what the value should be; another choice may not be
        return letter == said and not re.search(r"[,=<>]|\\text|\\pm", given[3] if given else "")
    return _measured(wanted[3] if wanted else gold, given[3] if given else answer, rules)


def _letter(text: str) -> str:
    words = _words(text)
    return words if len(words) == 1 else ""


def _approximate(gold: str, answer: str, rules: Rules) -> bool:
    r"""`2/3 \approx 0.67` may be answered by its first value or by both, `\approx 8.24` by 8.24."""
    wanted, given = ([p for p in t.split(r"\approx") if p.strip()] for t in (gold, answer))
    if not given or len(given) > len(wanted):
        return False
    return all(_measured(g, a, rules) for g, a in zip(wanted, given, strict=False))


def _measured(gold: str, answer: str, rules: Rules) -> bool:
    """Equal, and in the same unit where both name one."""
    gold, unit = units.split(notation.ungrouped(gold))
    answer, other = units.split(notation.ungrouped(answer))
    if (unit and other and unit != other) or (other and "%" in gold):
        return False
    return _equal(gold, answer, rules)


def _equal(gold: str, answer: str, rules: Rules) -> bool:
    gold, answer = _assigned(gold, answer), _assigned(answer, gold)
    whole, given = _called(gold), _called(answer)
    if whole[0] and given[0] and whole[0] != given[0]:
        return False
    gold, answer = regions.both(whole[1], given[1])
    if squeeze(gold) == squeeze(answer):
        return True
    gold, answer = _decimal(gold), _decimal(answer)
    a, b = number(gold, rules.percent), number(answer, rules.percent)
    if a and not b and a.value.denominator != 1 and _COMMA.fullmatch(answer):
        b = number(answer.replace(",", "."))  # 1,5 where 1.5 is asked for
    if a and b:
        return same(a, b, rules.rounded)
    if (m := numeral(gold)) or numeral(answer):
        return m == numeral(answer)  # in another base it is right only as it stands
    if (words := _words(gold)) and words == _words(answer):
        letters = (
            1 < len(words) <= 3 and words not in _SHORT_WORDS and r"\text" not in gold + answer
        )
        if not letters or gold.strip() == answer.strip():  # `mgh` and `Mgh` are two products
            return True
    if _LABEL.fullmatch(gold) or r"\emptyset" in (gold, answer):
        return False
    left, right = notation.shape(gold), notation.shape(answer)
    if a and not right.kind:
        left = Shape("", (gold,))  # the comma of 2,125 groups thousands
    if b and not left.kind:
        right = Shape("", (answer,))
    if left.kind or right.kind:
        return _same_shape(left, right, rules)
    return _single(left.items[0], right.items[0], rules)


def _same_shape(gold: Shape, answer: Shape, rules: Rules) -> bool:
    if answer.kind == "set" and len(answer.items) == 1 and not answer.items[0].startswith(r"\{"):
        answer = notation.shape(answer.items[0])  # the only element of a set
    if len(gold.items) != len(answer.items):
        return False
    if len(gold.items) == 1 and {gold.kind, answer.kind} <= {"", "set"}:
        return _equal(gold.items[0], answer.items[0], rules)
    vectors = {gold.kind, answer.kind} in ({"()", "column"}, {"()", "row"})
    if gold.kind != answer.kind and not vectors:
        return False
    wanted, given = _shared_name(gold.items), _shared_name(answer.items)
    names = {squeeze(item.partition("=")[0]) for item in wanted if "=" in item}
    free = gold.kind in ("set", "union") and (len(names) < 2 or any("=" in item for item in given))
    if all(len(_words(item)) > 1 for item in wanted):
        free = False  # names may be listed by rank
    if not free:
        return all(_measured(g, a, rules) for g, a in zip(wanted, given, strict=True))
    left = list(given)
    for item in wanted:
        match = next((i for i, other in enumerate(left) if _measured(item, other, rules)), None)
        if match is None:
            return False
        del left[match]
    return True


def _shared_name(items: tuple[str, ...]) -> tuple[str, ...]:
    """`n = 1`, `2`, `3` -> `1`, `2`, `3`: the first item's name is that of all."""
    name, sign, value = items[0].partition("=")
    if sign and _names(name) and not any("=" in item for item in items[1:]):
        return (value.strip(), *items[1:])
    return items


def _single(gold: str, answer: str, rules: Rules) -> bool:
    """One expression, equation or inequality against another."""
    wanted, given = _parts(gold), _parts(answer)
    if {*wanted[1], *given[1]} - {"="}:
        return _ordered(wanted, given, rules)
    values = given[0]
    if len(values) > 2:
        return _chain(gold, values, rules)
    sides = wanted[0] if len(wanted[0]) < 3 else [wanted[0][0], wanted[0][-1]]
    if (
        len(sides) == 2
        and not _names(sides[0])
        and (len(wanted[0]) > 2 or (number(sides[0]) and number(sides[1])))
    ):
        return _equal(sides[-1], answer, rules)  # 0.56 = 56%
    if len(values) == 2 and len(sides) == 2:
        return _equation(sides, values, rules)
    if len(sides) == 2:
        return _names(sides[0]) and _equal(sides[1], values[0], rules)
    if len(values) == 2:
        if not _names(values[0]):
            values = values[::-1]
        if not _names(values[0]):
            raise RefusedError("an equation where a value is asked for")
        return _equal(gold if len(wanted[0]) < 3 else sides[0], values[1], rules)
    return _value(sides[0], values[0], rules)


def _chain(gold: str, values: list[str], rules: Rules) -> bool:
    """`S = 10/2 = 5`: it starts with a name, and each of its values is right."""
    if not _names(values[0]):
        raise RefusedError("a chain of equations that does not start with a name")
    rest = values[1:]
    while len(rest) > 1 and _names(rest[0]):
        rest = rest[1:]
    return all(_equal(gold, value, rules) for value in reversed(rest))


def _equation(gold: list[str], answer: list[str], rules: Rules) -> bool:
    """Two equations: values of the same name, or the same up to a constant factor."""
    if _names(gold[0]) and not algebra.symbols(gold[1]) & algebra.symbols(gold[0]):
        for name, value in (answer, answer[::-1]):
            if squeeze(name) == squeeze(gold[0]):
                return _equal(gold[1], value, rules)
        if not algebra.symbols(gold[1]) and not re.search(r"[-+*/]", gold[0]):
            return False  # 2x = 10 does not say what x is
    _needs_algebra(rules)
    return _known(algebra.related((gold[0], "=", gold[1]), (answer[0], "=", answer[1])))


def _ordered(
    gold: tuple[list[str], list[str]], answer: tuple[list[str], list[str]], rules: Rules
) -> bool:
    """Inequalities: one against one, or chains of the same signs side by side."""
    (wanted, signs), (given, others) = gold, answer
    if len(signs) != len(others):
        return False
    if len(signs) == 1:
        if signs[0] == "=" or others[0] == "=":
            return False
        _needs_algebra(rules)
        return _known(
            algebra.related((wanted[0], signs[0], wanted[1]), (given[0], others[0], given[1]))
        )
    if signs != others:
        given, others = given[::-1], [algebra.TURNED[sign] for sign in reversed(others)]
    return signs == others and all(_equal(g, a, rules) for g, a in zip(wanted, given, strict=True))


def _value(gold: str, answer: str, rules: Rules) -> bool:
    """Two expressions that are no numbers both."""
    if "%" in answer + gold or (r"\infty" in answer and r"\infty" not in gold):
        return False
    if re.search(r"(?<![_^])[0-9] [0-9]", squeeze(answer)):
        raise RefusedError("two numbers side by side")
    if re.search(r"[0-9]_", squeeze(answer)) and not re.search(r"[0-9]_", squeeze(gold)):
        raise RefusedError("a number with an index")
    if r"\text" in answer.replace(r"\text{degree}", "") and r"\text" not in gold:
        raise RefusedError("words within an expression")
    _needs_algebra(rules)
    wanted, written = number(gold), number(answer)
    equal = _known(algebra.equal(gold, answer, rules.rounded, written))
    if equal or wanted is None or not wanted.decimals or not rules.rounded:
        return equal
    return bool(algebra.rounds(wanted, answer, max(rules.rounded, ROUNDED_GOLD)))


def _needs_algebra(rules: Rules) -> None:
    if not rules.algebra:
        raise NeedsAlgebraError


def _known(verdict: bool | None) -> bool:
    if verdict is None:
        raise RefusedError("cannot be read")
    return verdict


def _parts(text: str) -> tuple[list[str], list[str]]:
    """Sides and signs of an equation or inequality: `a < b` -> ([a, b], [<])."""
    sides, signs, start = [], [], 0
    for match in regions.SIGN.finditer(text):
        before = text[: match.start()]
        if all(before.count(a) == before.count(b) for a, b in ("{}", "()")):  # not in _{k=1}
            sides.append(text[start : match.start()].strip())
            signs.append(match[0])
            start = match.end()
    return [*sides, text[start:].strip()], signs


def _names(side: str) -> bool:
    """The left side of an answer names something (`x`, `f(3)`, `AB`, `a+b`): no bare numbers."""
    if re.search(r"[<>]|\\(?:ne|le|ge)(?![A-Za-z])", side):
        return False
    if _LABEL.fullmatch(side.strip()):
        return True
    side = re.sub(r"_(\{[^{}]*\}|\w)|\([^()]*\)", "", side)
    return bool(algebra.symbols(side)) and not re.search(r"[0-9]", side)


def _called(text: str) -> tuple[str, str]:
    """`(x, y) = (1, 2)`, `D = [0, 1]`, `a:b = 2:3` -> (squeezed name, what it is)."""
    name, sign, value = (part.strip() for part in text.partition("="))
    if not sign or "=" in value or not (_names(name) or _TUPLE.fullmatch(name)):
        return "", text
    if "," in name and not _TUPLE.fullmatch(name):
        return "", text
    kind = notation.shape(value).kind
    listed = kind == "set" and not value.startswith(r"\{")
    return ("", text) if not kind or listed else (squeeze(name), value)


def _assigned(text: str, other: str) -> str:
    """`(p, q) = (2, 3)` as `p = 2, q = 3` where the other answer is written so."""
    name, sign, value = (part.strip() for part in text.partition("="))
    if not sign or not _TUPLE.fullmatch(name) or _TUPLE.match(other) or other.count("=") < 2:
        return text
    names, values = notation.shape(name).items, notation.shape(value).items
    if len(names) != len(values):
        return text
    return ", ".join(f"{n} = {v}" for n, v in zip(names, values, strict=True))


def _decimal(text: str) -> str:
    """A numeral in base ten as the number it is."""
    read = numeral(text)
    return read[0] if read and read[1] == 10 else text


def _words(text: str) -> str:
    """What a verbal answer says (`\\text{Evelyn}`, `(C)`), '' if it is not verbal."""
    text = re.sub(r"^\\text ?\{(.*)\}$", r"\1", text.strip()).strip()
    if letter := _LETTER.fullmatch(text):
        return letter[1]
    return text.lower() if _WORDS.fullmatch(text) else ""


def canonical(text: str, percent: Percent) -> str:
    """One string for equal numbers, sets in any order, spaces: what majority votes compare."""
    text = regions.region(_called(units.split(text)[0])[1])
    if value := number(text, percent):
        return _shown(value)
    form = notation.shape(text)
    if not form.kind:
        left, _, right = form.items[0].rpartition("=")
        return canonical(right, percent) if left and _names(left) else squeeze(form.items[0])
    items = [canonical(item, percent) for item in form.items]
    inner = ", ".join(sorted(items) if form.kind in ("set", "union") else items)
    return f"{'()' if form.kind in ('row', 'column') else form.kind}: {inner}"


def _shown(value: Number) -> str:
    return str(value.value)
