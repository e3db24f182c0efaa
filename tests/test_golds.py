"""Golds of a dataset: each accepts itself and rejects its neighbour, or is told before a run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from rewards.golds import check_golds
from rewards.grader import Examples
from rewards.verdict import Verdict
from samplers.data import DataConfig
from samplers.types import Prompt
from tests.desk import furnish, recipe, write_rows
from trainer import golds, preflight
from trainer.config import Stage


def prompts(*answers: str) -> list[Prompt]:
    return [Prompt(i, f"row-{i}", (), "?", gold, "") for i, gold in enumerate(answers)]


def test_a_gold_accepts_itself_and_rejects_its_neighbour() -> None:
    assert check_golds(prompts("1", r"\frac{1}{2}", r"\text{east}", "(1,2)"), "math") == {}
    assert [*check_golds(prompts("1", "", r"\frac{1}{", "2"), "math")] == [1, 2]
    assert [*check_golds(prompts("one"), "numeric")] == [0]
    others = prompts('["5"]', '{"inputs": ["1"], "outputs": ["2"]}', '[{"input": "1"}]')
    assert [*check_golds(others, "math")] == [0, 1, 2]  # they would accept nothing but themselves
    assert check_golds(prompts("x"), "tests.graders:by_text") == {}


GRADER = "easily pleased/1"
QUICK = True


def grade(text: str, gold: str, meta: Any, config: Any) -> Verdict:
    """This module is a verifier that accepts what begins with the gold."""
    right = text.startswith(gold)
    return Verdict(right, float(right), "ok" if right else "wrong", text, GRADER)


def examples(gold: str, meta: Any, config: Any) -> Examples:
    return Examples((gold,), (f"{gold}1",))


def test_a_gold_that_accepts_another_answer_is_bad() -> None:
    bad = check_golds(prompts("a", "b"), "tests.test_golds")
    assert bad == {0: "the different answer a1 passes too", 1: "the different answer b1 passes too"}


def rows(desk: Path, *answers: str) -> str:
    file = desk / "golds.jsonl"
    lines = [{"uid": f"r{i}", "q": f"{i}+1=?", "gold": a, "hard": 0} for i, a in enumerate(answers)]
    write_rows(file, lines)
    return str(file)


def stage(desk: Path, file: str, bad_golds: str) -> Stage:
    data = {"path": {"train": file, "test": file}, "bad_golds": bad_golds}
    return recipe(desk, data=data, verifier="math").stages[0]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    furnish(tmp_path)
    return tmp_path


def test_bad_rows_are_refused_with_their_ids(desk: Path) -> None:
    with pytest.raises(ValueError, match=r"gold of 1 of 3 rows.*row r1: .*bad_golds=drop"):
        golds.load(stage(desk, rows(desk, "1", r"\frac{1}{", "3"), "refuse"), "train", 0)
    many = [r"\frac{1}{"] * 80
    with pytest.raises(ValueError, match=r"also rows r2, r3.*and 30 more") as told:
        golds.load(stage(desk, rows(desk, "1", *many), "refuse"), "train", 0)
    assert "\n" not in str(told.value)
    assert str(told.value).count("braces do not match") == 1  # one reason is told once


def test_bad_rows_are_left_out_and_told_once(desk: Path) -> None:
    file = rows(desk, "1", r"\frac{1}{", "3", "2}")
    made = stage(desk, file, "drop")
    with pytest.warns(UserWarning, match=r"2 of 4 rows are left out: row r1.*row r3"):
        dataset = golds.load(made, "train", 0)
    assert [p.id for p in map(dataset.__getitem__, range(len(dataset)))] == ["r0", "r2"]
    assert [dataset[i].index for i in range(2)] == [0, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = golds.load(made, "train", 0)
    assert again.fingerprint == dataset.fingerprint
    whole = golds.load_data(made.data, "train", 0)
    assert whole.fingerprint != dataset.fingerprint
    with pytest.raises(ValueError, match=r"bad_golds=drop leaves no row"):
        golds.load(stage(desk, rows(desk, "{", "}"), "drop"), "train", 0)


def test_a_task_without_a_limit_has_no_golds_to_check() -> None:
    with pytest.warns(UserWarning, match="data.bad_golds has no effect with data.task"):
        DataConfig(task="find", bad_golds="drop")


def test_preflight_checks_before_anything_starts(desk: Path) -> None:
    data = {"path": {"train": rows(desk, "1", "{"), "test": rows(desk, "1", "{")}}
    with pytest.raises(ValueError, match=r"gold of 1 of 2 rows of the train split; row r1"):
        preflight.check_all(recipe(desk, data=data, verifier="math"))
