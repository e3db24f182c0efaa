"""math-verify's own published cases, transcribed: where `math` agrees, and why not elsewhere.

Each row of corpus/math_verify.jsonl is one parametrised case of its test suite that compares a
gold with a prediction (MIT, corpus/math_verify.LICENSE): `theirs` is what it expects, `ours` what
`math` says (true, false or a status), and `why` the reason where that differs. Text before an
end-of-thinking marker is left out, as everywhere.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from rewards.grader import load
from rewards.verdict import Verdict
from rewards.verifiers import math
from tests.corpus_rows import rows

CASES = rows("math_verify.jsonl")


def said(row: dict[str, Any]) -> Verdict:
    """Our verdict. Digits of a rounded value are the one setting that both have."""
    precision = row.get("settings", {}).get("precision", 3)
    config = math.Config(rounded=min(3, precision))
    return math.grade(row["answer"], row["gold"], {}, config)


@pytest.mark.parametrize("source", sorted({row["from"] for row in CASES}))
@pytest.mark.timeout(60)
def test_agreement_is_as_recorded(source: str) -> None:
    changed = []
    for row in (row for row in CASES if row["from"] == source):
        verdict = said(row)
        ours = verdict.correct if verdict.status in ("ok", "wrong") else verdict.status
        if ours != row["ours"]:
            changed.append((row["gold"][-80:], row["answer"][-120:], row["ours"], verdict))
    assert not changed


def test_every_difference_has_a_reason_and_most_cases_agree() -> None:
    differ = [row for row in CASES if (row["ours"] is True) != row["theirs"]]
    assert all(row.get("why") for row in differ)
    assert not [row for row in CASES if "why" in row and row not in differ]
    assert len(CASES) >= 275
    assert len(differ) <= 35
    print(f"math-verify's cases: {len(CASES)}, agreed {len(CASES) - len(differ)}")
    for why, count in Counter(row["why"] for row in differ).most_common():
        print(f"  {count:2d} {why}")


def test_the_library_as_it_is_can_be_the_second_grader() -> None:
    second = load("math_verify")
    assert second(r"so \boxed{\frac{2}{4}}", r"\frac{1}{2}", {}).correct
    assert second(r"so \boxed{3}", "5", {}).status == "wrong"
    assert second("", "5", {}).status == "no_answer"
    assert second(r"so \boxed{5}", r"\frac{", {}).status in ("gold_error", "wrong")
    assert second.at_once("5", "5", {}) is None
    # what it is fooled by, `math` is not: an audit shows these rows
    assert second(r"\boxed{3=5}", "5", {}).correct
    assert not load("math")(r"\boxed{3=5}", "5", {}).correct
