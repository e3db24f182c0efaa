r"""Two graders over the same answers: where they differ, and who is likely wrong. Pure.

A difference says that one of them errs, not which. What speaks for and against the first, the
texts themselves show (`SIGNS`): an answer that is the gold as it stands was hardly accepted
wrongly, one that leaves its value to be computed was. Findings are ranked by the sum of their
weights; they are to be read by a person.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

from rewards.maths import notation
from rewards.verdict import Verdict

Kind = Literal["false accept", "false reject", "unknown"]
SHOWN = 200
"""Characters of an answer in a finding."""


@dataclass(frozen=True, slots=True)
class Case:
    """One answer with both verdicts. `where` names it to people: row and sample."""

    where: str
    text: str | None
    """The answer part that both were given."""
    gold: str
    first: Verdict
    second: Verdict

    @property
    def kind(self) -> Kind | None:
        """What the first grader may have done wrong; None: they agree."""
        if not (self.first.known and self.second.known):
            return "unknown"
        if self.first.correct == self.second.correct:
            return None
        return "false accept" if self.first.correct else "false reject"


@dataclass(frozen=True, slots=True)
class Finding:
    """One gold and answer on which the graders differ, however many rows have it."""

    kind: Kind
    weight: int
    """How much speaks against the first grader (for `unknown`: 0)."""
    why: tuple[str, ...]
    """Each sign with its weight, strongest first."""
    written: str
    """The answer as it was written: its last box or last line, shortened."""
    case: Case
    """The first such row."""
    where: tuple[str, ...]
    """All such rows."""


@dataclass(frozen=True, slots=True)
class Audit:
    table: Mapping[tuple[str, str], int]
    """Answers by (status of the first, status of the second)."""
    findings: tuple[Finding, ...]
    """Most suspicious first within each kind."""
    cases: int
    known: int
    """Cases that both could judge."""
    agree: int
    """Of these, those with the same verdict."""
    kappa: float
    """Cohen's: agreement beyond chance, (p - e) / (1 - e); NaN where both always say the same."""

    def of(self, kind: Kind) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == kind]


def audit(cases: Iterable[Case]) -> Audit:
    """Table and findings of `cases`."""
    cases = list(cases)
    table: Counter[tuple[str, str]] = Counter(
        (case.first.status, case.second.status) for case in cases
    )
    known = [case for case in cases if case.first.known and case.second.known]
    pairs = Counter((case.first.correct, case.second.correct) for case in known)
    alike: dict[tuple[Kind, str, str, str, str], list[Case]] = {}
    for case in cases:
        if kind := case.kind:
            key = (kind, case.gold, written(case.text), case.first.status, case.second.status)
            alike.setdefault(key, []).append(case)
    found = [_finding(kind, same) for (kind, *_), same in alike.items()]
    found.sort(key=lambda f: (f.kind, -f.weight, -len(f.where)))  # stable: then in order of rows
    agree = pairs[True, True] + pairs[False, False]
    return Audit(table, tuple(found), len(cases), len(known), agree, _kappa(pairs))


def _kappa(pairs: Mapping[tuple[bool, bool], int]) -> float:
    n = sum(pairs.values())
    first = sum(count for (a, _), count in pairs.items() if a)
    second = sum(count for (_, b), count in pairs.items() if b)
    chance = first * second + (n - first) * (n - second)  # times n^2, exact
    if chance == n * n:
        return float("nan")
    return (n * (pairs[True, True] + pairs[False, False]) - chance) / (n * n - chance)


def _finding(kind: Kind, same: Sequence[Case]) -> Finding:
    case = same[0]
    view = _View(case, written(case.text))
    signs = [] if kind == "unknown" else [
        (sign.accept if kind == "false accept" else sign.reject, sign.says)
        for sign in SIGNS
        if sign.holds(view)
    ]  # fmt: skip
    signs = sorted((s for s in signs if s[0]), key=lambda s: -abs(s[0]))
    why = tuple(f"{weight:+d} {says}" for weight, says in signs)
    weight = sum(weight for weight, _ in signs)
    return Finding(kind, weight, why, _short(view.written), case, tuple(c.where for c in same))


def written(text: str | None) -> str:
    """What an answer text puts forward: its last box, else its last line."""
    if text is None:
        return ""
    if found := notation.boxes(text):
        return found[-1].strip()
    return text.strip().rpartition("\n")[2].strip()


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


class _View(NamedTuple):
    case: Case
    written: str


class Sign(NamedTuple):
    """Something that the texts show, and what it says against the first grader's verdict."""

    says: str
    holds: Callable[[_View], bool]
    accept: int
    """Weight where the first accepted and the second did not."""
    reject: int
    """Weight where the first rejected and the second did not."""


def _flat(text: str) -> str:
    """Without spaces, signs of mathematics mode, and the commands that only set the size."""
    return re.sub(r"\s|\$|\\(?:left|right|[dt](?=frac)|[,;!])|\.$", "", text)


def _value(text: str) -> Fraction | None:
    """The number that plain text writes: 5, -1/3, 0.5, 1,200."""
    text = text.strip()[:SHOWN]
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    if not re.fullmatch(r"[+-]?\d+(/\d*[1-9]\d*|\.\d*)?", text):
        return None
    return Fraction(text)


def _values(view: _View) -> tuple[Fraction, Fraction] | None:
    """Values of gold and answer; the second's canonical answer where the written one is none."""
    gold = _value(_flat(view.case.gold))
    given = _value(_flat(view.written))
    if given is None:
        given = next((v for a in _canonical(view.case) if (v := _value(a)) is not None), None)
    return None if gold is None or given is None else (gold, given)


def _canonical(case: Case) -> list[str]:
    return [v.answer for v in (case.second, case.first) if v.answer]


def _equal(view: _View) -> bool:
    return (pair := _values(view)) is not None and pair[0] == pair[1]


def _unequal(view: _View) -> bool:
    return (pair := _values(view)) is not None and pair[0] != pair[1]


def _numerals(text: str) -> Counter[str]:
    return Counter(re.findall(r"\d+(?:\.\d+)?", text[:4096]))


def _only(pattern: str) -> Callable[[_View], bool]:
    """The answer has it, the gold does not."""
    search = re.compile(pattern).search
    return lambda v: bool(search(v.written[:4096])) and not search(v.case.gold)


def _either(pattern: str) -> Callable[[_View], bool]:
    """One of answer and gold has it."""
    search = re.compile(pattern).search
    return lambda v: bool(search(v.written[:4096])) != bool(search(v.case.gold))


def _boxes(view: _View) -> int:
    return len({_flat(box) for box in notation.boxes(view.case.text or "")})


_COMPUTED = r"\\(?:sum|prod|int|binom|lim)(?![A-Za-z])|\d\s*!|[+*-]\s*0(?![.\d])"

SIGNS: tuple[Sign, ...] = (
    Sign("the answer is the gold as it stands", lambda v: _flat(v.written) == _flat(v.case.gold),
         -4, 4),
    Sign("gold and answer are equal numbers", _equal, -3, 3),
    Sign("gold and answer are different numbers", _unequal, 3, -3),
    Sign("the same numerals as the gold", lambda v: bool(_numerals(v.case.gold))
         and _numerals(v.case.gold) == _numerals(v.written), -1, 1),
    Sign("no numeral of the gold", lambda v: bool(_numerals(v.case.gold))
         and not _numerals(v.case.gold) & _numerals(v.written), 2, -2),
    Sign("the second read it, and found it wrong",
         lambda v: v.case.second.status == "wrong", 2, 0),
    Sign("the first could not read it",
         lambda v: v.case.first.status in ("unparseable", "no_answer"), 0, 2),
    Sign("the gold stands in the text", lambda v: bool(_flat(v.case.gold))
         and _flat(v.case.gold) in _flat((v.case.text or "")[-4096:]), 0, 1),
    Sign("an equation", _only(r"(?<![<>!\\])="), 2, -3),
    Sign("approximate", _only(r"\\approx|\\sim|\u2248|\\doteq"), 2, -1),
    Sign("leaves its value to be computed", _only(_COMPUTED), 2, -2),
    Sign("an ellipsis", _only(r"\\[lc]?dots|\.\.\."), 2, -1),
    Sign("several answers", _only(r"\b(?:or|and)\b|,|\\pm"), 1, -1),
    Sign("percent sign in one of both", _either("%"), 1, -1),
    Sign("words or a unit in one of both", _either(r"\\(?:text|mathrm|mbox)"), 1, 0),
    Sign("a base in one of both", _either(r"\d_\{?\d"), 1, -1),
    Sign("several different boxes", lambda v: _boxes(v) > 1, 1, -1),
    Sign("far longer than the gold", lambda v: len(v.written) > 40 + 4 * len(v.case.gold), 1, -1),
)  # fmt: skip
