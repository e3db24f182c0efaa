"""numeric with a tolerance: a share of the gold or an amount, inclusive, in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.grader import load


def status(answer: str, gold: str, **settings: Any) -> str:
    return load({"name": "numeric", **settings})(rf"\boxed{{{answer}}}", gold, {}).status


def test_none_unless_asked_for() -> None:
    assert status("3.1400000001", "3.14") == "wrong"
    assert status("3.140", "3.14") == "ok"


@pytest.mark.parametrize(
    ("answer", "gold", "settings", "says"),
    [
        ("101", "100", {"tolerance": 0.01}, "ok"),
        ("99", "100", {"tolerance": 0.01}, "ok"),
        ("101.0000001", "100", {"tolerance": 0.01}, "wrong"),
        ("-101", "-100", {"tolerance": 0.01}, "ok"),
        ("100", "-100", {"tolerance": 0.5}, "wrong"),
        ("0.0001", "0", {"tolerance": 0.5}, "wrong"),
        (r"1.1 \cdot 10^{-30}", r"10^{-30}", {"tolerance": 0.1}, "ok"),
        (r"2 \cdot 10^{-30}", r"10^{-30}", {"tolerance": 0.1}, "wrong"),
        ("0.1", "0", {"absolute": 0.1}, "ok"),
        ("0.10000000000000001", "0", {"absolute": 0.1}, "wrong"),
        (r"\frac{1}{3}", "0.333", {"absolute": 0.001}, "ok"),
        ("102", "100", {"tolerance": 0.01, "absolute": 2}, "ok"),
        ("pi", "3.14", {"tolerance": 0.1}, "unparseable"),
        ("3", "pi", {"tolerance": 0.1}, "gold_error"),
    ],
)
def test_tolerances(answer: str, gold: str, settings: dict[str, Any], says: str) -> None:
    assert status(answer, gold, **settings) == says


@hypothesis.settings(deadline=None)
@given(
    st.fractions(-99, 99, max_denominator=99),
    st.sampled_from([{"tolerance": 0.5}, {"absolute": 1000.0}, {"tolerance": 0.99, "absolute": 5}]),
)
def test_examples_lie_within_and_beyond(value: Fraction, settings: dict[str, Any]) -> None:
    gold, grader = str(value), load({"name": "numeric", **settings})
    (right,), (wrong,) = grader.examples(gold, {})
    assert grader(right, gold, {}).status == "ok"
    assert grader(wrong, gold, {}).status == "wrong"


@pytest.mark.parametrize("field", [{"tolerance": -0.1}, {"tolerance": 1.0}, {"absolute": -1}])
def test_what_a_tolerance_may_be(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        load({"name": "numeric", **field})
