"""The audit: what it counts, and that the planted mistakes come first."""

from __future__ import annotations

import math
import random

import pytest

from rewards.audit import Case, audit, written
from rewards.verdict import Status, Verdict


def verdict(status: Status, answer: str | None = None) -> Verdict:
    return Verdict(status == "ok", float(status == "ok"), status, answer)


def case(gold: str, text: str | None, first: Status, second: Status, where: str = "r#0") -> Case:
    return Case(where, text, gold, verdict(first), verdict(second))


def test_every_answer_is_in_the_table_and_every_difference_in_one_finding() -> None:
    statuses: list[Status] = ["ok", "wrong", "no_answer", "unparseable", "timeout", "error"]
    rng = random.Random(0)
    cases = [
        case(f"{rng.randrange(3)}", f"{rng.randrange(3)}", first, second, f"r{i}#0")
        for i in range(500)
        for first, second in [rng.choices(statuses, k=2)]
    ]
    found = audit(cases)
    assert sum(found.table.values()) == found.cases == 500
    for (a, b), count in found.table.items():
        assert count == sum((c.first.status, c.second.status) == (a, b) for c in cases)
    named = [where for f in found.findings for where in f.where]
    assert sorted(named) == sorted(c.where for c in cases if c.kind)
    assert found.known == sum(c.first.known and c.second.known for c in cases)
    assert found.agree == found.known - sum(
        len(f.where) for f in found.findings if f.kind != "unknown"
    )
    for kind in ("false accept", "false reject"):
        weights = [f.weight for f in found.of(kind)]
        assert weights == sorted(weights, reverse=True)


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ("ok", "ok", None),
        ("wrong", "unparseable", None),
        ("ok", "wrong", "false accept"),
        ("ok", "no_answer", "false accept"),
        ("unparseable", "ok", "false reject"),
        ("timeout", "ok", "unknown"),
        ("ok", "gold_error", "unknown"),
        ("error", "error", "unknown"),
    ],
)
def test_what_a_difference_is(first: Status, second: Status, kind: str | None) -> None:
    assert case("5", "5", first, second).kind == kind


def test_agreement_beyond_chance() -> None:
    """Cohen's own kind of table: 20 and 15 agreed, 5 and 10 not: (0.7 - 0.5) / (1 - 0.5)."""
    pairs: list[tuple[Status, Status, int]] = [
        ("ok", "ok", 20), ("ok", "wrong", 5), ("wrong", "ok", 10), ("wrong", "wrong", 15)
    ]  # fmt: skip
    cases = [case("5", "5", a, b) for a, b, n in pairs for _ in range(n)]
    assert audit(cases).kappa == pytest.approx(0.4)
    assert math.isnan(audit(cases[:20]).kappa)
    assert audit([]).cases == 0


def test_equal_answers_to_equal_golds_are_one_finding() -> None:
    cases = [case("5", f"so \\boxed{{6}} {i}", "ok", "wrong", f"r{i}#0") for i in range(3)]
    (finding,) = audit([*cases, case("5", "5", "ok", "ok")]).findings
    assert finding.where == ("r0#0", "r1#0", "r2#0")
    assert finding.written == "6"


ACCEPTS = [r"\boxed{3=5}", r"\boxed{5 \approx 6}", r"\boxed{17}", r"\boxed{\sum_{k=1}^{100} k}"]
"""Accepted for 5 (or 5050) by graders in use: what such an audit is for."""


@pytest.mark.parametrize("text", ACCEPTS)
def test_planted_false_accepts_come_before_harmless_ones(text: str) -> None:
    gold = "5050" if "sum" in text else "5"
    harmless = case("x + 1", r"\boxed{x+1}", "ok", "wrong", "harmless")
    found = audit([harmless, case(gold, text, "ok", "wrong", "planted")]).of("false accept")
    assert [f.where[0] for f in found] == ["planted", "harmless"]
    assert found[0].weight > 2 > found[1].weight


@pytest.mark.parametrize(
    ("gold", "text"),
    [("1/2", r"\boxed{0.5}"), ("1,200", "1200"), (r"\frac{3}{4}", r"$\boxed{\dfrac{3}{4}}$")],
)
def test_planted_false_rejects_come_before_harmless_ones(gold: str, text: str) -> None:
    hidden = case("5", r"\boxed{\sum_{k=1}^{5} 1}", "unparseable", "ok", "harmless")
    found = audit([hidden, case(gold, text, "wrong", "ok", "planted")]).of("false reject")
    assert [f.where[0] for f in found] == ["planted", "harmless"]


def test_every_sign_that_counts_is_told_with_its_weight() -> None:
    (finding,) = audit([case("5", r"\boxed{4} or \boxed{3=6}", "ok", "wrong")]).findings
    assert finding.weight == sum(int(why.split()[0]) for why in finding.why)
    assert "+2 an equation" in finding.why
    assert "+1 several different boxes" in finding.why


def test_what_an_answer_puts_forward() -> None:
    assert written(r"\boxed{3} then \boxed{\frac{1}{2}} done") == r"\frac{1}{2}"
    assert written("first\n last line \n\n") == "last line"
    assert written(None) == written("") == ""


@pytest.mark.parametrize(
    "text", ["(" * 200_000, "\\boxed{" * 50_000, "9" * 200_000, "a\n" * 99_999]
)
def test_monstrous_answers_are_read_in_part(text: str) -> None:
    (finding,) = audit([case("5", text, "ok", "wrong")]).findings
    assert len(finding.written) <= 200
