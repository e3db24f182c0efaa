"""json: the same structure passes, whatever it is written like; everything else does not."""

from __future__ import annotations

import json
import random
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.grader import load
from rewards.verifiers import json as verifier

GOLD = '{"name": "Ada", "ages": [36, 1.5], "alive": false, "next": null}'


def status(text: str, gold: str = GOLD, **settings: Any) -> str:
    return load({"name": "json", **settings})(text, gold, {}).status


@pytest.mark.parametrize(
    "text",
    [
        GOLD,
        ' {"alive":false,"next":null,"ages":[36.0,15e-1],"name":"\\u0041da"}\n',
        f"First {{}} then\n```json\n{GOLD}\n```\nThat is it.",
        f"```\n[]\n```\n```json\n{GOLD}\n```",
        f"```json\n{GOLD}",
    ],
)
def test_the_same_value_is_right(text: str) -> None:
    assert status(text) == "ok"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOLD.replace("36", "37"), "wrong"),
        (GOLD.replace("36", '"36"'), "wrong"),
        (GOLD.replace("36, 1.5", "1.5, 36"), "wrong"),
        (GOLD.replace("36, 1.5", "36, 1.5, 1.5"), "wrong"),
        (GOLD.replace("false", "0"), "wrong"),
        (GOLD.replace("null", "false"), "wrong"),
        (GOLD.replace("Ada", "ada"), "wrong"),
        (GOLD.replace("}", ', "more": 1}'), "wrong"),
        (f"[{GOLD}]", "wrong"),
        (f"```json\n{GOLD}\n```\n```json\n[]\n```", "wrong"),
        (GOLD.replace("}", ', "alive": false}'), "unparseable"),
        (GOLD.replace("}", ",}"), "unparseable"),
        (GOLD.replace("1.5", "NaN"), "unparseable"),
        (GOLD.replace("1.5", "-Infinity"), "unparseable"),
        (GOLD.replace("1.5", "1e9999999999"), "unparseable"),
        (GOLD + GOLD, "unparseable"),
        (f"The answer is {GOLD}", "unparseable"),
        ("'Ada'", "unparseable"),
        ("[" * 100_000, "unparseable"),
        ("[" * 100 + "]" * 100, "unparseable"),
        ('["' + "\\" * 50_000, "unparseable"),
        ("1" * 100_000, "unparseable"),
        ("", "no_answer"),
        ("```json\n```", "no_answer"),
    ],
)
def test_anything_else_is_not(text: str, says: str) -> None:
    assert status(text) == says


@pytest.mark.parametrize("gold", ["", "{", '{"a": 1, "a": 1}', "NaN", "[" * 65 + "]" * 65, "Ada"])
def test_a_gold_that_is_no_strict_json_is_a_gold_error(gold: str) -> None:
    assert status("1", gold) == "gold_error"


def test_numbers_are_the_decimals_they_are_written_as() -> None:
    assert status("0.3", "0.30") == "ok"
    assert status("100", "1e2") == "ok"
    assert status("-0.0", "0") == "ok"
    assert status("0.30000000000000004", "0.3") == "wrong"
    assert status(f"1{'0' * 5000}1", f"1{'0' * 5000}2") == "wrong"
    assert status("1e999999", "2e999999", tolerance=0.1) == "wrong"
    assert status("true", "1", absolute=5) == "wrong"


def test_tolerances_are_inclusive_and_of_the_gold() -> None:
    assert status("[1.01]", "[1]", tolerance=0.01) == "ok"
    assert status("[0.99]", "[1]", tolerance=0.01) == "ok"
    assert status("[1.0100001]", "[1]", tolerance=0.01) == "wrong"
    assert status("0.05", "0", tolerance=0.5) == "wrong"
    assert status("0.05", "0", absolute=0.05) == "ok"
    assert status("-0.051", "0", absolute=0.05) == "wrong"


def test_lists_in_any_order_and_further_keys_only_where_asked_for() -> None:
    gold, other = '[{"a": [1, 2]}, {"b": 3}, 4]', '[4, {"b": 3}, {"a": [2, 1]}]'
    assert status(other, gold) == "wrong"
    assert status(other, gold, unordered=True) == "ok"
    assert status("[1, 1, 2]", "[1, 2, 2]", unordered=True) == "wrong"
    assert status("[1, 2]", "[1, 2, 2]", unordered=True) == "wrong"
    more = '[{"a": [1, 2], "x": 0}, {"b": 3}, 4]'
    assert status(more, gold, subset=True) == "ok"
    assert status(gold, more, subset=True) == "wrong"
    assert status('[4, {"b": 3, "c": 1}, {"a": [2, 1]}]', gold, subset=True, unordered=True) == "ok"
    # a greedy choice would give 1.0 to 1.05 and leave 0.95 without a partner
    assert status("[1.05, 1.1]", "[1.1, 1.0]", unordered=True, absolute=0.06) == "ok"
    assert status("[1.05, 1.2]", "[1.1, 1.0]", unordered=True, absolute=0.06) == "wrong"


def test_work_is_bounded() -> None:
    long = json.dumps(list(range(5000)))
    assert status(long, long, unordered=True) == "ok"
    assert status(long[:-1] + ", 1]", long[:-1] + ", 2]", unordered=True) == "wrong"
    assert status(long, long, unordered=True, absolute=1e-9) == "unparseable"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.decimals(-9, 9, places=2),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, list):
        return rng.sample([shuffled(item, rng) for item in value], len(value))
    if isinstance(value, dict):
        items = [(key, shuffled(item, rng)) for key, item in value.items()]
        return dict(rng.sample(items, len(items)))
    return value


@hypothesis.settings(deadline=None)
@given(VALUES, st.randoms(use_true_random=False))
def test_order_is_all_that_unordered_forgives(value: Any, rng: random.Random) -> None:
    gold = json.dumps(value, default=float)
    other = json.dumps(shuffled(value, rng), default=float)
    for settings in ({}, {"subset": True}, {"absolute": 1e-12}):
        assert status(gold, gold, **settings) == "ok"
        assert status(other, gold, unordered=True, **settings) == "ok"
        assert status(f"[{other}, 1]", f"[{gold}, 2]", unordered=True, **settings) == "wrong"
    one, two = (load({"name": "json", "unordered": True})(text, gold, {}) for text in (gold, other))
    assert one.answer == two.answer


def test_examples_of_a_gold() -> None:
    grader = load("json")
    for gold in (GOLD, "3", "[]", '"x"', "null"):
        right, wrong = grader.examples(gold, {})
        assert [grader(text, gold, {}).status for text in right] == ["ok"] * len(right)
        assert [grader(text, gold, {}).status for text in wrong] == ["wrong"] * len(wrong)


def test_canonical_answers_are_equal_exactly_for_equal_values() -> None:
    def answer(text: str) -> str | None:
        return load("json")(text, "0", {}).answer

    assert answer("[1, 2.50, 1e1]") == answer("[1.0, 2.5, 10]")
    assert len({answer(t) for t in ("1", "10", "0.1", "-1", '"1"', "true", "[1]", "1e30")}) == 8
    assert load("json").name == verifier.GRADER
