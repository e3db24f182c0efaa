"""by_row: every row is graded by the verifier it names, with that verifier's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from rewards.golds import check_golds
from rewards.grader import Grader, load
from rewards.service.pool import VerifierPool
from rewards.verify import context
from samplers.files import Columns, Row, prompts
from samplers.types import Prompt
from trainer import components

MIXED = (
    "numeric",
    {"name": "exact", "ignore_case": True},
    {"science": "choice", "loose": {"name": "numeric", "rounded": 2}},
    {"mine": "tests.graders:by_text"},
)


def by_row(*verifiers: Any, **settings: Any) -> Grader:
    return load({"name": "by_row", "verifiers": verifiers or MIXED, **settings})


def row(verifier: str, **meta: Any) -> Mapping[str, Any]:
    return context(Prompt(0, "r", (), "?", "", verifier, meta))


def test_each_row_has_its_own_verifier() -> None:
    grader = by_row()
    assert grader("Answer: B", "B", row("science")).grader == "choice/1"
    assert grader("YES", "yes", row("exact")).correct
    assert grader("YES", "yes", row("exact")).grader == "exact/1 ignore_case=true"
    assert grader("0.33", "1/3", row("loose")).correct
    assert grader("0.33", "1/3", row("numeric")).status == "wrong"
    assert grader("it is x", "x", row("mine")).grader == "tests.graders:by_text"
    assert grader("raise", "x", row("mine")).status == "error"
    assert load("numeric").name in grader.name


@pytest.mark.parametrize("named", ["numric", "choice", "", "by_row"])
def test_a_row_that_names_none_of_them_is_unknown_and_never_a_zero(named: str) -> None:
    verdict = by_row()("1", "1", row(named))
    assert verdict.status == "gold_error"
    assert "numeric, exact, science, loose, mine" in verdict.detail
    assert by_row()("1", "1", {"verifier": None}).status == "gold_error"
    assert by_row(default="exact")("A", "a", row("")).correct
    assert by_row(default="exact")("A", "a", row("numric")).status == "gold_error"


def test_what_is_known_at_once_is_the_own_verifiers() -> None:
    grader = by_row()
    assert grader.at_once("2", "2", row("numeric")) == load("numeric")("2", "2", {})
    assert grader.at_once("hang", "2", row("mine")) is None
    unknown = grader.at_once("2", "2", row("nobody"))
    assert unknown is not None
    assert unknown.status == "gold_error"


def test_examples_and_the_deadline_are_those_of_the_verifiers() -> None:
    grader = by_row()
    assert grader.examples("7", row("numeric")) == load("numeric").examples("7", {})
    assert grader.deadline == 10.0
    prompts_ = [
        Prompt(0, "a", (), "?", "7", "numeric"),
        Prompt(1, "b", (), "?", "seven", "numeric"),
        Prompt(2, "c", (), "?", "B", "science"),
        Prompt(3, "d", (), "?", "B", "scienc"),
    ]
    bad = check_golds(prompts_, {"name": "by_row", "verifiers": MIXED})
    assert [*bad] == [1, 3]
    assert "names 'scienc'" in bad[3]


def test_the_rows_verifier_reaches_it_from_a_column_of_any_name() -> None:
    rows = [Row("f:1", "1", {"prompt": "1+1?", "answer": "2", "kind": "numeric"})]
    (prompt,) = prompts(rows, Columns(verifier="kind"))
    assert context(prompt)["verifier"] == "numeric"
    assert by_row()("2.0", prompt.answer, context(prompt)).correct
    assert "verifier" not in context(replace(prompt, verifier="", meta={}))


def test_it_runs_in_a_pool() -> None:
    with VerifierPool({"name": "by_row", "verifiers": MIXED}, workers=1) as pool:
        items = [
            ("2", "2", row("numeric")),
            ("it is x", "x", row("mine")),
            ("Answer: B", "A", row("science")),
            (None, "A", row("science")),
            ("2", "2", row("")),
        ]
        statuses = [verdict.status for verdict in pool.grade(items)]
    assert statuses == ["ok", "ok", "wrong", "no_answer", "gold_error"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"verifiers": []}, "got none"),
        ({"verifiers": ["numeric", {"numeric": "exact"}]}, "'numeric' is there twice"),
        ({"verifiers": ["numric"]}, "did you mean 'numeric'"),
        ({"verifiers": [{"a": {"name": "exact", "case": 1}}]}, "'a': .*case"),
        ({"verifiers": [{"a": {"settings": 1}}]}, "'name'"),
        ({"verifiers": ["exact"], "default": "math"}, "'math' is none of exact"),
        ({"verifiers": ["by_row"]}, "by_row itself"),
        ({"verifiers": ["exact", "tests.graders:nothing"]}, "cannot be imported"),
        ({}, "verifiers"),
    ],
)
def test_mistakes_are_told_in_one_line(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        components.check("verifier", "rewards.verifiers", {"name": "by_row", **spec})
    assert "\n" not in str(caught.value)


def test_one_mapping_is_as_good_as_a_list() -> None:
    grader = load({"name": "by_row", "verifiers": {"science": "choice", "a": "exact"}})
    assert grader("b", "b", row("a")).correct
    assert grader("Answer: B", "B", row("science")).correct
