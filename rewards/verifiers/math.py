r"""math: mathematical equality of the last `\boxed{...}`, exact where it can be.

What counts as equal is said in rewards/maths/README.md. Numbers, letters, words, and tuples and
sets of those are decided at once (`fast`); the rest needs computer algebra, which may take for
ever, so it runs only where it can be killed (`rewards.service.pool`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Literal

from rewards.grader import Examples
from rewards.maths import algebra, answers, extract, glyphs, guards, notation
from rewards.maths.answers import NeedsAlgebraError, RefusedError, Rules
from rewards.maths.extract import Found
from rewards.maths.numbers import Percent
from rewards.verdict import Status, Verdict
from samplers.seam import Component

GRADER = f"math/2 (math-verify {version('math-verify')})"
QUICK = False
"""May hang: never in the calling process."""
READS = ()

_TOO_LONG = f"more than {guards.MAX_CHARS} characters"
_TOO_MANY = f"more than {extract.MAX_BOXES} boxes"


class Config(Component):
    percent: Percent = "value"
    """50% is 1/2 ('value'), or the sign is dropped ('ignore')."""
    rounded: int = 3
    """Accept 0.333 for 1/3 and 3.14 for pi: rounded to this many significant digits. 0: never."""
    boxes: Literal["last", "agree"] = "last"
    r"""Of several \boxed{}: grade the last, or accept only if all of them are right. Boxes joined
    by a comma, 'and' or 'or' are one answer, a list."""
    bare: int = 64
    r"""An answer without \boxed{} may be stated ("The answer is 5"), be the only formula, or be a
    single line, of at most this many characters. 0: never"""


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    """Verdict of one answer.

    An empty, unbalanced or over-long gold is a gold_error; no box and no stated answer no_answer;
    an answer that hides its value, is too costly or cannot be read unparseable.
    """
    return _grade(text, gold, config, Rules(config.percent, config.rounded))


def fast(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict | None:
    """The same verdict where no computer algebra is needed for it, else None."""
    try:
        return _grade(text, gold, config, Rules(config.percent, config.rounded, algebra=False))
    except NeedsAlgebraError:
        return None


def relevant(text: str, config: Config) -> str:
    """The boxes alone that count (or the stated answer, boxed): what the verdict depends on."""
    found = extract.found(text, config.bare)
    if config.boxes == "last":
        found = found[-1:]
    # a box too long to be read is as good as any other such
    long = "0" * (guards.MAX_CHARS + 1)
    short = [answer if len(answer.text) <= guards.MAX_CHARS else Found((long,)) for answer in found]
    return " then ".join(answer.rewritten() for answer in short)


def _grade(text: str, gold: str, config: Config, rules: Rules) -> Verdict:
    wanted = extract.gold(gold)
    if fault := _gold_fault(wanted.text):
        return _verdict("gold_error", detail=fault)
    found = extract.found(text, config.bare)
    if not found or not found[-1].text.strip():
        return _verdict("no_answer")
    if config.boxes == "agree" and len(found) > extract.MAX_BOXES:
        return _verdict("unparseable", detail=_TOO_MANY)
    status: Status = "ok"
    for answer in found[-1:] if config.boxes == "last" else found:
        try:
            right = _right(wanted, answer, rules)
        except RefusedError as reason:
            return _verdict("unparseable", detail=str(reason))
        status = status if right else "wrong"
    return _verdict(status, answers.canonical(notation.tidy(found[-1].text), config.percent))


def _right(gold: Found, answer: Found, rules: Rules) -> bool:
    if len(answer.text) > guards.MAX_CHARS:
        raise RefusedError(_TOO_LONG)
    if reason := glyphs.refused(answer.text):
        raise RefusedError(reason)
    written = notation.tidy(answer.text)
    if len(written) > 2 * guards.MAX_CHARS:
        raise RefusedError(_TOO_LONG)
    golds = [notation.tidy(gold.text)]
    golds += [golds[0] + "%"] if gold.percent else []
    writings = [written, written + "%"] if answer.percent else [written]
    return any(answers.matches(g, w, rules) for w in writings for g in golds)


def _verdict(status: Status, answer: str | None = None, detail: str = "") -> Verdict:
    return Verdict(status == "ok", float(status == "ok"), status, answer, GRADER, detail)


def _gold_fault(gold: str) -> str:
    if not gold.strip():
        return "the gold answer is empty"
    if len(gold) > guards.MAX_CHARS:
        return f"the gold answer has {len(gold)} characters, at most {guards.MAX_CHARS}"
    if re.match(r'\s*[\[{]\s*["{]', gold) and _is_json(gold):
        return (
            "the gold answer is JSON: name one of its items as the column (answer.0), or another "
            "verifier"
        )
    return "" if extract.balanced(gold) else f"braces do not match in {gold[:80]!r}"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def examples(gold: str, meta: Mapping[str, Any], config: Config) -> Examples:
    """A right answer text, and a wrong one: a digit or the letter changed, or a strange number."""
    gold = extract.gold(gold).text.strip()
    digit = re.search(r"[0-9]", gold)
    other = "271828"
    if digit is not None:
        changed = str((int(digit[0]) + 1) % 10 or 1)
        other = gold[: digit.start()] + changed + gold[digit.end() :]
    elif letter := re.fullmatch(r"\(?([A-Z])\)?", gold):
        other = "B" if letter[1] == "A" else "A"
    return Examples((rf"\boxed{{{gold}}}",), (rf"\boxed{{{other}}}",))


def warm() -> None:
    """Import sympy and math-verify and build their parser."""
    algebra.equal(r"\sqrt{8}", r"2\sqrt{2}")
    algebra.equal("x+1", "1+x")
