r"""The adversarial corpus: answers that fool or hang graders of mathematics, and honest ones.

Each row of corpus/math.jsonl is a defect measured in a grader, a way to get paid without having
the value, or an everyday form that must stay right; `why` names its family. A new exploit is a
new row. The fast path and what is sent to a worker must never change a verdict: both are tried on
every row, on pairs across rows and on texts of a megabyte.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.grader import load
from rewards.maths import extract
from rewards.verdict import Verdict
from rewards.verifiers import math
from tests.corpus_rows import rows, text_of

ROWS = rows("math.jsonl")
FAMILIES = sorted({row["why"] for row in ROWS})
CHEAP = [row for row in ROWS if row["verdict"] != "unparseable"]
CONFIG = math.Config()


def mark(text: str, gold: str, config: math.Config = CONFIG) -> Verdict:
    return math.grade(text, gold, {}, config)


def test_the_corpus_has_families_of_both_kinds() -> None:
    assert len(ROWS) > 700
    assert len(FAMILIES) > 30
    assert len({(row["gold"], text_of(row)) for row in ROWS}) > 700
    verdicts = [row["verdict"] for row in ROWS]
    assert verdicts.count("right") > 250
    assert verdicts.count("wrong") > 350


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.timeout(60)
def test_family(family: str) -> None:
    failed = []
    for row in (row for row in ROWS if row["why"] == family):
        verdict = mark(text_of(row), row["gold"])
        status = {"ok": "right", "no_answer": "none"}.get(verdict.status, verdict.status)
        wanted = row["verdict"]
        if status != wanted and not (wanted == "wrong" and status == "unparseable"):
            failed.append((row["gold"], text_of(row), wanted, verdict))
        assert verdict.known
        assert verdict.correct == (verdict.score == 1.0)
    assert not failed


def test_fast_path_agrees_on_the_corpus_and_takes_most_of_it() -> None:
    quick = 0
    for row in CHEAP:
        text = text_of(row)
        verdict = math.fast(text, row["gold"], {}, CONFIG)
        if verdict is not None:
            quick += 1
            assert verdict == mark(text, row["gold"])
            assert verdict == mark(math.relevant(text, CONFIG), row["gold"])
    assert quick > len(CHEAP) / 2


@given(st.sampled_from(CHEAP), st.sampled_from(CHEAP), st.sampled_from(("last", "agree")))
def test_fast_path_and_essence_never_change_a_verdict(
    one: dict[str, Any], other: dict[str, Any], boxes: Any
) -> None:
    """Answers against golds of other rows, and two answers in one text."""
    config = math.Config(boxes=boxes)
    for text in (text_of(other), text_of(other) + " But no: " + text_of(one)):
        full = mark(text, one["gold"], config)
        assert math.fast(text, one["gold"], {}, config) in (None, full)
        assert mark(math.relevant(text, config), one["gold"], config) == full


PIECES = (
    r"\boxed{", r"\fbox{", "}", "{", "5", "6", r"\%", "%", " percent", ", ", " and ", " or ", "$",
    r"\(", r"\)", "answer is ", "Answer: ", "#### ", "\n", ". ", " ", "x=", "\\", r"\{", "1,000",
    r"\text{", "so ", "**", "\u200b",
)  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.sampled_from(("5", "5,6")))
def test_essence_of_any_text_has_its_verdict(text: str, gold: str) -> None:
    for config in (CONFIG, math.Config(boxes="agree"), math.Config(bare=0)):
        full = mark(text, gold, config)
        essence = math.relevant(text, config)
        assert mark(essence, gold, config) == full
        assert math.relevant(essence, config) == essence
        assert math.fast(text, gold, {}, config) in (None, full)


MEGABYTE = 1 << 20
HOSTILE = (
    "\\boxed{", "\\boxed{}", "\\boxed{1}, ", "\\boxed{1} ", "\\boxed ", "\\", "{", "}", "{}", "$",
    "$a", "$$", "\\(", "\\(a\\)", "\\[", "answer", "answer is ", "answer is is ", "answer**\n",
    "#### ", ". ", "\n", " ", "1,", "1 ", "a", "(", "\\frac{", "\\text{", "%", "\\%", "\\boxed{\\{",
    "\u200b", "\\begin{pmatrix}", "1+", "^", "_", "=", "<", "or ", "\\pm ", "\\sqrt", "\\overline{",
    "\\boxed 5", "<answer>", "# answer\n", "answer is $5$ or ", "\\text{a} ", "\\text{1 and ",
    "5 million ", " or x<", "\\mu \\text{a}^{-1}/", "5 a b c ", "{a\\over ", "\\{x:", "\\forall",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.timeout(120)
def test_texts_of_a_megabyte_are_looked_at_once(piece: str) -> None:
    """A scan that looks back for each character would take hours, not the limit of this test."""
    flood = piece * (MEGABYTE // len(piece))
    short = piece * (511 // len(piece))
    for text in (flood, rf"\boxed{{5}} {flood}", rf"{flood} \boxed{{5}}", rf"\boxed{{{flood}}}"):
        essence = math.relevant(text, CONFIG)
        assert len(essence) <= 70 * 512
        assert isinstance(math.fast(text, "5", {}, CONFIG), Verdict | None)
    for text in (short, rf"\boxed{{{short}}}", short[:60], f"answer is {short[:500]}"):
        assert isinstance(math.fast(text, "5", {}, CONFIG), Verdict | None)
        assert isinstance(math.fast(text, short, {}, CONFIG), Verdict | None)


def test_each_brace_is_looked_at_once() -> None:
    """Steps of the scan, counted: twice the text, twice the steps."""

    steps = [
        sum(1 for _ in extract._TOKEN.finditer(r"\boxed{ {" * n + "}" * n)) for n in (1000, 2000)
    ]
    assert steps[1] == 2 * steps[0]
    nested = r"\boxed{" * 5000 + "5" + "}" * 5000
    assert extract.boxes(nested) == [nested[7:-1]]


def test_grader_answers_at_once_or_leaves_it_to_a_worker() -> None:
    grader = load("math")
    assert grader.at_once(r"\boxed{5.0}", "5", {}) == grader(r"\boxed{5.0}", "5", {})
    assert grader.at_once(r"\boxed{\sqrt{12}}", r"2\sqrt{3}", {}) is None
    assert grader.essence((r"so \boxed{5} it is", "5", {"prompt": "?"})) == (r"\boxed{5}", "5", {})
    assert grader.essence((None, "5", {})) == (None, "5", {})
