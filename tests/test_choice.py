"""choice: the label an answer commits to, however it is written; hedges and lists win nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.grader import load
from rewards.verdict import Verdict

CITIES = {"options": ["London", "Berlin", "Paris", "Rome"]}


def verdict(
    text: str, gold: str = "C", meta: Mapping[str, Any] = CITIES, **settings: Any
) -> Verdict:
    return load({"name": "choice", **settings})(text, gold, meta)


STATED = (
    r"\boxed{C}",
    r"\boxed{\text{C}}",
    r"So $\boxed{\textbf{(C)}}$.",
    r"\boxed{C. Paris}",
    r"\boxed{c}",
    r"\boxed{Paris}",
    "Answer: C",
    "answer: c",
    "The answer is (C).",
    "**Answer:** C",
    "**Answer: C**",
    "The correct answer is **C) Paris**.",
    "Answer: C - Paris",
    "Answer:\nC",
    "Final answer: option C",
    "The best choice is C because it is in France.",
    "The answer is C, and a cat agrees.",
    "The answer is Paris",
    r"The answer is \(C\)",
    r"The answer is: \text{C}",
    "<answer>C</answer>",
    "\u7b54\u6848\uff1aC",
    "\u7b54\u6848\u662fC\u3002",
    "C",
    "(C)",
    "c.",
    "`C`",
    "Option C",
    "PARIS.",
    "It is in France.\n\n**C**",
    "Answer: A. No, wait. Answer: C",
    "Answer: C\nI hope this answer is good.",
)


@pytest.mark.parametrize("text", STATED)
def test_a_label_or_its_option_is_right_however_it_is_written(text: str) -> None:
    assert verdict(text) == Verdict(True, 1.0, "ok", "C", "choice/1")


@pytest.mark.parametrize("text", STATED)
def test_the_same_words_are_wrong_where_another_label_is_asked_for(text: str) -> None:
    assert verdict(text, "B").status == "wrong"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (r"\boxed{B}", "wrong"),
        (r"\boxed{A, C}", "wrong"),
        (r"\boxed{C} or rather \boxed{A}", "wrong"),
        ("C or B", "wrong"),
        ("Answer: B/C", "wrong"),
        ("Answer: C and D", "wrong"),
        ("ABCD", "wrong"),
        ("Answer: A, B, C, D", "wrong"),
        ("C) London", "wrong"),
        ("Answer: C\nAnswer: D", "wrong"),
        ("D\nbecause of C", "no_answer"),
        ("A B C D", "unparseable"),
        ("not C", "unparseable"),
        ("The answer is not C", "unparseable"),
        ("Answer: anything but C", "unparseable"),
        ("Answer: A dog", "unparseable"),
        ("Answer: Ceuta", "unparseable"),
        ("Answer: C^2", "unparseable"),
        ("Answer: E", "unparseable"),
        ("Answer: \u0421", "unparseable"),  # a Cyrillic letter
        (r"\boxed{C} \boxed{}", "no_answer"),
        ("", "no_answer"),
        (" \n", "no_answer"),
        ("I looked at A first.\nThen I looked at C and grew tired of it.", "no_answer"),
    ],
)
def test_what_commits_to_no_label_or_to_another_is_not_right(text: str, says: str) -> None:
    assert verdict(text).status == says


def test_several_statements_count_by_the_last_or_must_agree() -> None:
    changed = "Answer: A\nAnswer: C"
    assert verdict(changed).correct
    assert verdict(changed, statements="agree").status == "wrong"
    assert verdict("Answer: C\nAnswer: (C)", statements="agree").correct
    assert verdict(r"\boxed{A}\boxed{C}", statements="agree").status == "wrong"


def test_several_labels_may_be_asked_for() -> None:
    for gold in ("A, C", "AC", "A and C", "(A), (C)"):
        for text in (r"\boxed{A, C}", "Answer: C and A", "AC", "A,C", "Answer: A & C"):
            assert verdict(text, gold).correct, (gold, text)
        for text in ("A", "A, B, C", "A or C", "ABC", "A/C"):
            assert verdict(text, gold).status == "wrong", (gold, text)


@pytest.mark.parametrize(
    "options",
    [
        ["5", "7"],
        ("A. 5", "(B) 7"),
        {"A": "5", "B": "7"},
        {"label": ["A", "B"], "text": ["5", "7"]},
        '["5", "7"]',
        [5, 7],
    ],
)
@pytest.mark.parametrize("column", ["options", "choices"])
def test_options_are_read_in_the_forms_that_data_come_in(options: Any, column: str) -> None:
    for gold in ("B", "7", "b", "(B) 7"):
        assert verdict("7", gold, {column: options}).correct
        assert verdict("Answer: B", gold, {column: options}).correct
        assert verdict("5", gold, {column: options}).status == "wrong"


def test_a_number_as_gold_says_what_it_counts_from() -> None:
    assert verdict("C", "2").status == "gold_error"
    assert verdict("C", "2", counted_from=0).correct
    assert verdict("B", "2", counted_from=1).correct
    assert verdict("B", "2", {}, counted_from=1).correct
    assert verdict("A", "0", counted_from=1).status == "gold_error"
    assert verdict("A", "4", counted_from=0).status == "gold_error"
    labelled = {"choices": {"label": ["1", "2"], "text": ["ice", "sea"]}}
    assert verdict("2", "2", labelled).correct
    assert verdict("Answer: (2)", "2", labelled).correct
    assert verdict("sea", "2", labelled).correct
    assert verdict("1", "2", labelled).status == "wrong"


@pytest.mark.parametrize(
    ("gold", "meta"),
    [
        ("", CITIES),
        ("E", CITIES),
        ("Madrid", CITIES),
        ("Madrid", {}),
        ("A or B", CITIES),
        ("C", {"options": "London, Paris"}),
        ("C", {"options": []}),
        ("C", {"options": 3}),
    ],
)
def test_a_gold_that_names_no_option_is_a_gold_error(gold: str, meta: Mapping[str, Any]) -> None:
    assert verdict("C", gold, meta).status == "gold_error"


def test_without_options_letters_count_as_far_as_the_gold() -> None:
    assert verdict("Answer: J", "J", {}).correct
    assert verdict("Answer: J", "C", {}).status == "unparseable"
    assert verdict("Answer: I think it is hard", "C", {}).status == "unparseable"


def test_labels_win_over_options_that_look_like_labels() -> None:
    turned = {"options": ["B", "A", "C", "D"]}
    assert verdict("Answer: B", "B", turned).correct
    assert verdict("Answer: A", "B", turned).status == "wrong"


def test_options_that_say_the_same_are_one() -> None:
    twice = {"options": ["yes", "no", "yes", "No"]}
    assert verdict("A", "C", twice).correct
    assert verdict("C", "A", twice).correct
    assert verdict("yes", "C", twice).correct
    assert verdict("no", "B", twice).correct
    assert verdict("NO", "B", twice).status == "unparseable"  # two options differ in case alone


def test_examples_are_right_and_wrong() -> None:
    grader = load({"name": "choice", "counted_from": 0})
    for gold, meta in (("C", CITIES), ("Paris", CITIES), ("1", CITIES), ("B", {}), ("AC", {})):
        right, wrong = grader.examples(gold, meta)
        assert right
        assert wrong
        assert all(grader(text, gold, meta).correct for text in right)
        assert not any(grader(text, gold, meta).correct for text in wrong)
    assert grader(grader.examples("Madrid", CITIES).right[0], "Madrid", CITIES).status == (
        "gold_error"
    )


@hypothesis.settings(deadline=None)
@given(st.text(alphabet="ABCDacx ,./()\\{}*\n:;|&-orn'answeri", max_size=60))
def test_a_right_verdict_needs_the_gold_in_the_text(text: str) -> None:
    """And the canonical answer is what was said, whatever the gold."""
    graded = {gold: verdict(text, gold) for gold in "ABCD"}
    assert sum(v.correct for v in graded.values()) <= 1
    assert len({(v.answer, v.detail) for v in graded.values()}) == 1
    for gold, one in graded.items():
        assert not one.correct or gold in text.upper()


@pytest.mark.parametrize(
    "piece",
    ["answer is ", r"\boxed{", "(", "<answer>", "A, ", "**", "\n", "Answer: A", "$", "option "],
)
def test_long_texts_are_read_once(piece: str) -> None:
    """A megabyte of what statements are made of gets a verdict (quadratic work would hang)."""
    assert verdict(piece * (1_000_000 // len(piece))).status in (
        "no_answer",
        "unparseable",
        "wrong",
    )
