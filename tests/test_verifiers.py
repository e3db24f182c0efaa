"""Verifiers of mathematics, of numbers and of strings: their policies and their statuses.

What fools and hangs graders is in corpus/ and in test_math_corpus.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.grader import load
from rewards.maths import notation
from rewards.maths.numbers import number
from rewards.verdict import Verdict
from rewards.verifiers import exact, math, numeric


def mark(text: str, gold: str, **settings: Any) -> Verdict:
    return math.grade(text, gold, {}, math.Config(**settings))


def test_several_boxes() -> None:
    text = r"\boxed{3} no, wait, \boxed{5}"
    assert mark(text, "5").correct
    assert not mark(text, "3").correct
    assert not mark(text, "5", boxes="agree").correct
    assert mark(r"\boxed{5}, that is \boxed{5.0}", "5", boxes="agree").correct
    assert mark(r"\boxed{5} but " * 80 + r"\boxed{5}", "5", boxes="agree").status == "unparseable"
    assert mark(r"\boxed{5} but " * 80 + r"\boxed{5}", "5").correct
    assert mark(r"\boxed{\boxed{5}}", "5").correct
    assert mark(r"\boxed{\{1,2\}}", r"\{1,2\}").correct


def test_answers_without_a_box() -> None:
    assert mark("5", "5").correct
    assert mark("The answer is $5$.", "5").correct
    for text in ("answer: 5 apples and 7 pears", "5\n7", "7 5"):
        assert not mark(text, "5").correct
        assert not mark(text, "7").correct
    assert mark(
        "I tried very hard and think that it could well be 5, or so I hope", "5"
    ).status == ("no_answer")
    assert mark("5", "5", bare=0).status == "no_answer"
    for text in ("", "  \n", r"so \boxed{2", r"\boxed{}"):
        assert mark(text, "2").status == "no_answer"


def test_policies() -> None:
    assert mark(r"\boxed{50\%}", "50", percent="ignore").correct
    assert mark(r"\boxed{0.333}", "1/3").correct
    assert not mark(r"\boxed{0.333}", "1/3", rounded=0).correct
    assert not mark(r"\boxed{0.333}", "1/3", rounded=4).correct
    # rounding is for golds without a finite decimal form: 1/64 is exactly 0.015625
    assert not mark(r"\boxed{0.0156}", "1/64").correct


def test_bad_golds() -> None:
    for gold in ("", "  ", r"\frac{1}{2", "1" * 600):
        verdict = mark(r"\boxed{1}", gold)
        assert verdict.status == "gold_error"
        assert not verdict.known
        assert verdict.detail


@pytest.mark.parametrize(
    "answers",
    [
        ("1/2", "0.5", r"\frac{1}{2}", r"\frac12", r"50\%", "x=1/2"),
        ("1,2", "2,1", r"\{2, 1\}"),
        ("(1,2)", "( 1, 2.0 )", r"\left(1,2\right)"),
        ("[1,2]", r"1\le x\le 2", r"x\in[1,2]"),
    ],
)
def test_equal_answers_have_one_canonical_form(answers: Sequence[str]) -> None:
    forms = {mark(rf"\boxed{{{a}}}", "77").answer for a in answers}
    assert len(forms) == 1
    assert None not in forms


def test_exact_is_exact() -> None:
    config = exact.Config()
    assert exact.grade(" B\n", "B", {}, config) == Verdict(True, 1.0, "ok", "B", exact.GRADER)
    assert exact.grade("b", "B", {}, config).status == "wrong"
    assert exact.grade("b", "B", {}, exact.Config(ignore_case=True)).correct
    assert exact.grade("B C", "B", {}, config).status == "wrong"
    assert exact.grade("  ", "B", {}, config).status == "no_answer"
    assert exact.grade("B", " ", {}, config).status == "gold_error"


def test_numeric_reads_numbers_only() -> None:
    config = numeric.Config()
    assert numeric.grade(r"so \boxed{1,000}", "1000", {}, config).correct
    assert numeric.grade(r"\boxed{\sqrt{4}}", "2", {}, config).status == "unparseable"
    assert numeric.grade(r"\boxed{0.333}", "1/3", {}, config).status == "wrong"
    assert (
        numeric.grade(
            "a long story without any box that ends with the number " * 2 + "2", "2", {}, config
        ).status
        == "no_answer"
    )
    assert numeric.grade("2", "two", {}, config).status == "gold_error"


@given(st.fractions(), st.fractions())
def test_numbers_are_exact(a: Fraction, b: Fraction) -> None:
    sign = "-" if a < 0 else ""
    forms = [
        f"{a.numerator}/{a.denominator}",
        rf"{sign}\frac{{{abs(a.numerator)}}}{{{a.denominator}}}",
    ]
    for form in forms:
        read = number(notation.tidy(form))
        assert read is not None
        assert read.value == a
        assert mark(rf"\boxed{{{form}}}", str(b)).correct == (a == b)


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_decimals_and_groups(n: int, places: int) -> None:
    value = Fraction(n, 10**places)
    digits = f"{abs(n):0{places + 1}d}"
    whole, part = (digits[:-places], digits[-places:]) if places else (digits, "")
    plain = ("-" if n < 0 else "") + whole + ("." + part if part else "")
    grouped = ("-" if n < 0 else "") + f"{int(whole):,}" + ("." + part if part else "")
    for form in (plain, grouped, grouped.replace(",", r",\!"), grouped.replace(",", " ")):
        read = number(notation.tidy(form))
        assert read is not None, form
        assert read.value == value, form


@settings(deadline=None)
@given(st.text(alphabet=r"\boxedfrac{}()[]^_,=+-*/!.%0123456789xi $", max_size=60))
def test_grading_is_total(text: str) -> None:
    """Through the grader, as everywhere: whatever is written, a verdict comes back."""
    verdict = load("math")(rf"\boxed{{{text}}}", "7/2", {})
    assert isinstance(verdict, Verdict)
    assert verdict.correct == (verdict.score == 1.0)
    assert verdict.status in ("ok", "wrong", "unparseable", "no_answer"), verdict.detail
