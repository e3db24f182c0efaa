"""Real golds: every way a model would write one is right, every way to miss it is wrong.

The forms and perturbations come from tests.forms and tests.perturbations, which read nothing of
the grader; the sets from LACONIC_DATA. A sample of each set here, all of them among the slow tests;
`python -m tests.bench.golds` prints the table of the README.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from rewards.grader import Grader, load
from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from tests import answers, corpus_rows, oracle
from tests.answers import Items, Tried, examine
from tests.forms import SPELLINGS, forms
from tests.perturbations import UNITS, perturbed

SAMPLE = 40
LIMIT = 0.005
"""False rejects that are allowed, as a share of all forms."""
NUMBERS = ("aime24.jsonl", "amc23.jsonl", "aime_train.json", "gsm8k_test.json")
PAIRS = corpus_rows.rows("pairs.jsonl")


def direct(grader: Grader) -> answers.Grade:
    def grade(items: Items) -> Sequence[Verdict]:
        return [grader(str(text), gold, meta) for text, gold, meta in items]

    return grade


def check(tried: Tried, limit: float = 0.0) -> None:
    assert tried.unknown == 0
    assert tried.forms > 10 * tried.golds
    assert tried.perturbations > 5 * tried.golds
    assert tried.accepted == []
    assert len(tried.rejected) <= limit * tried.forms, tried.rejected[:20]


@pytest.mark.parametrize("name", answers.SETS)
def test_a_sample_of_each_set(name: str) -> None:
    golds = answers.answers(name)
    odd = [gold for gold in dict.fromkeys(golds) if not gold.lstrip("-").isdigit()]
    draw = random.Random(name)
    plain = sorted(set(golds) - set(odd))
    only = draw.sample(odd, min(SAMPLE, len(odd))) + draw.sample(plain, min(SAMPLE, len(plain)))
    check(examine(golds, direct(load("math")), only), LIMIT)


def test_golds_in_the_manner_of_other_sets() -> None:
    check(examine(answers.field(), direct(load("math"))))


@pytest.mark.slow
@pytest.mark.parametrize("name", answers.SETS)
@pytest.mark.timeout(1800)
def test_every_gold(name: str) -> None:
    golds = answers.answers(name)
    with VerifierPool("math", workers=4, cache=0) as pool:
        check(examine(golds, pool.grade), LIMIT)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_alone_are_read_by_numeric(name: str) -> None:
    """numeric refuses what it cannot read; of what it accepts nothing is wrong."""
    golds = answers.answers(name)
    only = random.Random(name).sample(sorted(set(golds)), min(SAMPLE, len(set(golds))))
    tried = examine(golds, direct(load("numeric")), only)
    assert tried.unknown == 0
    assert tried.accepted == []
    beyond = {
        "+ 0",
        "f(2)=",
        "x =",
        "no box, bold",
        "parentheses",
    }  # forms that are no number as they stand
    assert {name for name, *_ in tried.rejected} <= beyond


@pytest.mark.parametrize("row", PAIRS, ids=lambda row: f"{row['gold']} <- {row['answer']}")
def test_pairs_written_by_hand(row: dict[str, str]) -> None:
    """Two ways to say (or to miss) what other sets ask for."""
    verdict = load("math")(rf"Thus $\boxed{{{row['answer']}}}$.", row["gold"], {})
    assert verdict.known
    assert verdict.correct is (row["verdict"] == "right"), verdict.detail


# the forms themselves


def test_forms_and_perturbations_are_what_they_say() -> None:
    """By the other reader of LaTeX: no form is unequal, no perturbation is equal."""
    golds = [*answers.field(), "1234", "-0.5", r"\frac{7}{4}", r"3\sqrt{13}", "1, -2", "(3,4)"]
    told = 0
    for gold in golds:
        named = dict(forms(gold))
        assert len(named) >= 10
        for name in SPELLINGS:
            if name not in named:
                continue
            inside = named[name].removeprefix(r"Thus $\boxed{").removesuffix("}$.")
            verdict = oracle.equal(gold, inside)
            told += verdict is True
            assert verdict is not False or name in UNREAD, (name, gold, inside)
        for name, text in perturbed(gold):
            inside = text.removeprefix(r"Thus $\boxed{").removesuffix("}$.")
            if name not in UNITS and "text" not in inside:
                assert oracle.same(gold, inside) is not True, (name, gold, inside)
    assert told > 200


UNREAD = {
    *("typed", "unicode", "plain and", "thousands space", "with bare units", "units typed"),
    *("braces", "member of", "union turned", "inequality", "angle column"),
    *("large", "bold symbol", "grouped", "each boxed"),
}
"""Forms in notation that the other reader lacks."""


def test_the_other_reader_tells_values_apart() -> None:
    assert oracle.same(r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt3}") is True
    assert oracle.same(r"1\frac{4}{5}", "9/5") is True
    assert oracle.same("x^2-1", "(x-1)(x+1)") is True
    assert oracle.same(r"\cot x", r"\frac{\cos x}{\sin x}") is True
    assert oracle.same("2^{4181}", "2^{4181}+1") is False
    assert oracle.same("x+1", "y+1") is False
    assert oracle.same(r"\mbox{four}", "4") is None
    assert oracle.equal("1, 2", "2, 1") is True
    assert oracle.equal("(1,2)", "(2,1)") is False
    assert oracle.equal(r"1 \pm \sqrt{2}", r"1-\sqrt{2}, 1+\sqrt{2}") is True
