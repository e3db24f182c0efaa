"""Requirements: what an evaluation or a comparison must show, as one line of text each.

math500/accuracy@1024>=0.80          the value
math500/accuracy@1024.low >= 75%     the lower end of its interval; also .high, .se_fixed, .n
adherence                            no hard budget was exceeded
noninferiority                       of a comparison: as good, within its margin, on fewer tokens
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from trainer.eval.metric import Metric

WORDS = ("adherence", "noninferiority")
PARTS = ("value", "low", "high", "n", "samples", "se_fixed", "se_pop")
_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_FORM = re.compile(
    rf"(?P<name>\S+?)(?:\.(?P<part>{'|'.join(PARTS)}))?\s*(?P<sign>>=|<=|>|<)\s*(?P<bound>\S+)"
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One that was asked for; a word has no sign."""

    text: str
    name: str
    part: str = "value"
    sign: str = ""
    bound: float = 0.0

    def holds(self, metric: Metric) -> bool:
        """NaN and what is not known never hold."""
        found = getattr(metric, self.part)
        return found is not None and bool(_OPERATORS[self.sign](found, self.bound))


def requirement(text: str) -> Requirement:
    """Read one.

    Raises:
        ValueError: it is none, in one line.
    """
    text = text.strip()
    if text in WORDS:
        return Requirement(text, text)
    form = _FORM.fullmatch(text)
    if form is None:
        raise ValueError(
            f"--require '{text}': write NAME>=NUMBER with >=, >, <= or <, as "
            f"math500/accuracy@1024>=0.80 or math500/accuracy@1024.low>=75%, or one of "
            f"{', '.join(WORDS)}"
        )
    number, percent = form["bound"].removesuffix("%"), form["bound"].endswith("%")
    try:
        bound = float(number) / (100 if percent else 1)
    except ValueError:
        bound = float("nan")
    if bound != bound:
        raise ValueError(f"--require '{text}': '{form['bound']}' is no number; write 0.80 or 80%")
    return Requirement(text, form["name"], form["part"] or "value", form["sign"], bound)


def check(
    requirements: Sequence[Requirement], tasks: Collection[str], budgets: Collection[int] = ()
) -> None:
    """Refuse, before anything is generated, what names another task or budget.

    Raises:
        ValueError: such a requirement.
    """
    for one in requirements:
        task = one.name.partition("/")[0]
        if one.sign and task not in {*tasks, "all"}:
            raise ValueError(
                f"--require '{one.text}': no task '{task}' here{_near(task, tasks)}; names begin "
                f"with one of {', '.join(tasks)}"
            )
        name, _, budget = one.name.rpartition("/")[2].partition("@")
        if budget.isdecimal() and name != "pass" and int(budget) not in budgets:
            there = ", ".join(map(str, sorted(budgets))) or "none but inf"
            raise ValueError(
                f"--require '{one.text}': nothing is measured at {budget} thinking tokens; "
                f"--budgets has {there}"
            )


def failures(
    requirements: Sequence[Requirement],
    metrics: Mapping[str, Metric],
    words: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """One line for each requirement that does not hold.

    Args:
        words: of each of `WORDS` that can be required here, the reasons why it does not hold.

    Raises:
        ValueError: a metric or a word that is not there.
    """
    words = words or {}
    out = []
    for one in requirements:
        if not one.sign:
            if one.name not in words:
                raise ValueError(f"--require {one.name}: nothing here tells of it")
            out += [f"{one.name}: {reason}" for reason in words[one.name]]
            continue
        metric = metrics.get(one.name)
        if metric is None:
            raise ValueError(
                f"--require '{one.text}': no metric '{one.name}'{_near(one.name, metrics)}"
            )
        if not one.holds(metric):
            found = getattr(metric, one.part)
            told = "is not known" if found is None or found != found else f"is {found:.6g}"
            out.append(f"{one.text}: it {told}")
    return out


def _near(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
