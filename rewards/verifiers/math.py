r"""math: mathematical equality of the last `\boxed{...}`, exact where it can be.

Numbers are compared as rationals; tuples, intervals, sets, unions and matrices item by item;
single expressions by computer algebra (`rewards.maths.algebra`) behind guards against what fools or
hangs it. It may still take for ever, so it runs only where it can be killed (`rewards.pool`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Literal

from rewards.grader import Examples
from rewards.maths import algebra, notation
from rewards.maths.notation import squeeze
from rewards.maths.numbers import Percent, number, same
from rewards.verdict import Status, Verdict
from samplers.seam import Component

GRADER = f"math/1 (math-verify {version('math-verify')})"
QUICK = False
"""May hang: never in the calling process."""

_MEMBER = re.compile(r"^[A-Za-z] ?\\in(?![A-Za-z]) ?")
_BASE = re.compile(r"[0-9A-F]+_\d+")
_OP = r"(<|>|\\le|\\ge) ?"
_BETWEEN = re.compile(rf"(.+?){_OP}([A-Za-z]){_OP}(.+)")
_RAY = re.compile(rf"([A-Za-z]){_OP}([^<>]+)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*[A-Za-z]")
_LETTER = re.compile(r"\(?([A-Z])\)?")


class Config(Component):
    percent: Percent = "value"
    """50% is 1/2 ('value'), or the sign is dropped ('ignore')."""
    rounded: int = 3
    """Accept 0.333 for 1/3 and 3.14 for pi: rounded to this many significant digits. 0: never."""
    boxes: Literal["last", "agree"] = "last"
    r"""Of several \boxed{}: grade the last, or accept only if all of them are right."""
    bare: int = 64
    r"""An answer without \boxed{} may be a single line of at most this many characters. 0: never"""


class RefusedError(Exception):
    """The answer cannot be judged; the text says why."""


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    """Verdict of one answer.

    An empty, unbalanced or over-long gold is a gold_error; no box and no short line no_answer;
    an answer that hides its value, is too costly or cannot be read unparseable.
    """
    if fault := _gold_fault(gold):
        return _verdict("gold_error", detail=fault)
    found = notation.boxes(text) or [notation.bare(text, config.bare) or ""]
    answers = found[-1:] if config.boxes == "last" else found
    if not answers[-1].strip():
        return _verdict("no_answer")
    wanted = notation.tidy(gold)
    status: Status = "ok"
    for written in answers:
        if len(written) > algebra.MAX_CHARS:
            return _verdict("unparseable", detail=f"{len(written)} characters")
        try:
            right = matches(wanted, notation.tidy(written), config)
        except RefusedError as reason:
            return _verdict("unparseable", detail=str(reason))
        status = status if right else "wrong"
    return _verdict(status, canonical(notation.tidy(answers[-1]), config))


def _verdict(status: Status, answer: str | None = None, detail: str = "") -> Verdict:
    return Verdict(status == "ok", float(status == "ok"), status, answer, GRADER, detail)


def _gold_fault(gold: str) -> str:
    if not gold.strip():
        return "the gold answer is empty"
    if len(gold) > algebra.MAX_CHARS:
        return f"the gold answer has {len(gold)} characters, at most {algebra.MAX_CHARS}"
    return "" if notation.balanced(gold) else f"braces do not match in {gold[:80]!r}"


def examples(gold: str, meta: Mapping[str, Any], config: Config) -> Examples:
    """A right answer text and, where one is easily made, a wrong one (a digit changed)."""
    digit = re.search(r"\d", gold)
    right = rf"\boxed{{{gold}}}"
    if digit is None:
        return Examples((right,))
    other = str((int(digit[0]) + 1) % 10 or 1)
    wrong = rf"\boxed{{{gold[: digit.start()]}{other}{gold[digit.end() :]}}}"
    return Examples((right,), (wrong,))


def warm() -> None:
    """Import sympy and math-verify and build their parser."""
    algebra.equal(r"\sqrt{8}", r"2\sqrt{2}")
    algebra.equal("x+1", "1+x")


def matches(gold: str, answer: str, config: Config) -> bool:
    """Whether two tidy answers are equal.

    Raises:
        RefusedError: the answer hides its value, is too costly or cannot be read.
    """
    if squeeze(gold) == squeeze(answer):
        return True
    if reason := algebra.refusal(answer, gold):
        raise RefusedError(reason)
    gold, unit = notation.split_unit(gold)
    answer, other = notation.split_unit(answer)
    if unit and other and unit != other:
        return False
    return _equal(gold, answer, config)


def _equal(gold: str, answer: str, config: Config) -> bool:
    gold, answer = _range(gold), _range(answer)
    if squeeze(gold) == squeeze(answer):
        return True
    a, b = number(gold, config.percent), number(answer, config.percent)
    if a and b:
        return same(a, b, config.rounded)
    if _BASE.fullmatch(squeeze(gold)) or _BASE.fullmatch(squeeze(answer)):
        return False  # a numeral in another base is right only as it stands
    if (words := _words(gold)) and words == _words(answer):
        return True
    if gold.startswith(r"\text"):
        return False
    left, right = notation.shape(gold), notation.shape(answer)
    if a and not right.kind:
        left = notation.Shape("", (gold,))  # the comma of 2,125 groups thousands
    if b and not left.kind:
        right = notation.Shape("", (answer,))
    if left.kind or right.kind:
        return _same_shape(left, right, config)
    return _single(left.items[0], right.items[0], config)


def _same_shape(gold: notation.Shape, answer: notation.Shape, config: Config) -> bool:
    if len(gold.items) != len(answer.items):
        return False
    if len(gold.items) == 1 and {gold.kind, answer.kind} <= {"", "set"}:
        return _equal(gold.items[0], answer.items[0], config)
    if gold.kind != answer.kind:
        return False
    if gold.kind not in ("set", "union"):
        return all(_equal(g, a, config) for g, a in zip(gold.items, answer.items, strict=True))
    left = list(answer.items)
    for item in gold.items:
        match = next((i for i, other in enumerate(left) if _equal(item, other, config)), None)
        if match is None:
            return False
        del left[match]
    return True


def _single(gold: str, answer: str, config: Config) -> bool:
    """One expression or equation against another."""
    wanted, given = gold.split("="), answer.split("=")
    if len(given) > 2 or len(wanted) > 2:
        raise RefusedError("a chain of equations")
    if len(given) == 2 and not _names(given[0]) and len(wanted) == 1:
        raise RefusedError("an equation where a value is asked for")
    if len(given) == len(wanted) == 2 and not _assigns(wanted, given):
        return _known(algebra.proportional((wanted[0], wanted[1]), (given[0], given[1])))
    if len(wanted) == 2 and not _names(wanted[0]):
        return False
    if len(given) == 2 or len(wanted) == 2:
        return _equal(wanted[-1].strip(), given[-1].strip(), config)
    if "%" in answer + gold:
        return False
    if re.search(r"\d \d", squeeze(answer)):
        raise RefusedError("two numbers side by side")
    written = number(answer)
    return _known(algebra.equal(gold, answer, config.rounded, written))


def _known(verdict: bool | None) -> bool:
    if verdict is None:
        raise RefusedError("cannot be read")
    return verdict


def _names(side: str) -> bool:
    """The left side of an answer names something (`x`, `f(3)`, `AB`, `a+b`): no bare numbers."""
    side = re.sub(r"_(\{[^{}]*\}|\w)|\([^()]*\)", "", side)
    return bool(algebra.symbols(side)) and not re.search(r"\d", side)


def _assigns(wanted: list[str], given: list[str]) -> bool:
    """Both give a value to the same name."""
    return _names(given[0]) and squeeze(wanted[0]) == squeeze(given[0])


def _words(text: str) -> str:
    """What a verbal answer says (`\\text{Evelyn}`, `(C)`), '' if it is not verbal."""
    text = re.sub(r"^\\text ?\{(.*)\}$", r"\1", text.strip()).strip()
    if letter := _LETTER.fullmatch(text):
        return letter[1]
    return text.lower() if _WORDS.fullmatch(text) else ""


def _range(text: str) -> str:
    r"""`x \in [1,2]`, `1 \le x \le 2` and `x > 3` as intervals; anything else as it is."""
    text = _MEMBER.sub("", text.strip())
    flat = squeeze(text)
    if m := _BETWEEN.fullmatch(flat):
        low, first, _, second, high = m.groups()
        if first in (">", r"\ge"):
            low, first, second, high = high, _turn(second), _turn(first), low
        if second in ("<", r"\le"):
            return f"{'(' if first == '<' else '['}{low},{high}{')' if second == '<' else ']'}"
    elif (m := _RAY.fullmatch(flat)) and m[1] not in algebra.symbols(m[3]):
        _, sign, bound = m.groups()
        closed = sign in (r"\le", r"\ge")
        if sign in ("<", r"\le"):
            return rf"(-\infty,{bound}{']' if closed else ')'}"
        return rf"{'[' if closed else '('}{bound},\infty)"
    return text


def _turn(sign: str) -> str:
    return {">": "<", r"\ge": r"\le", "<": ">", r"\le": r"\ge"}[sign]


def canonical(text: str, config: Config) -> str:
    """One string for equal numbers, sets in any order, spaces: what majority votes compare."""
    text = _range(notation.split_unit(text)[0])
    if value := number(text, config.percent):
        return str(value.value)
    form = notation.shape(text)
    if not form.kind:
        left, _, right = form.items[0].rpartition("=")
        return canonical(right, config) if left and _names(left) else squeeze(form.items[0])
    items = [canonical(item, config) for item in form.items]
    inner = ", ".join(sorted(items) if form.kind in ("set", "union") else items)
    return f"{form.kind}: {inner}"
