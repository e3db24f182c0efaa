"""Risk: an evaluation that pays twice, mixes experiments, or reads its own samples wrongly."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.inprocess import Workers
from rewards.service.pool import VerifierPool
from samplers.budget import Asks
from samplers.types import Plan
from tests.evaluated import (
    KINDS,
    MODES,
    TOLD,
    copied,
    evaluation,
    never,
    rows,
    said,
    table,
    task,
    worker,
)
from trainer.eval import budgets, progress, run, samples
from trainer.eval.budgets import EvalConfig
from trainer.eval.folder import open_folder
from trainer.eval.settings import EvalSettings, ways
from trainer.eval.table import STATUSES

# What the tables say


@pytest.mark.parametrize("asked", ["", "32"])
def test_tables_say_what_the_samples_say(asked: str, tmp_path: Path) -> None:
    """Against a slow reading of both files, cell by cell."""
    path = copied("both" if asked else "truncate", tmp_path)
    found = table(path, asked)
    assert found.budgets == ((32,) if asked else (0, 16, 48))
    assert found.present_MS.all()
    assert found.present_MS.shape == (12, 4)
    header, *judged = samples.read(path / samples.VERDICTS)
    assert header == {"graders": {"find": "exact/1"}}
    mine = [pair for pair in zip(rows(path), judged, strict=True) if pair[0]["asked"] == asked]
    assert len(mine) == 48
    for row, verdict in mine:
        m, s = found.ids_M.index(row["id"]), row["sample"]
        assert found.closed_MS[m, s] == row["closed"]
        for j, budget in enumerate((*found.budgets, "inf")):
            at = [i for i, cut in enumerate(row["cuts"]) if cut["budget"] == budget]
            own = not at
            assert own == (row["closed"] and budget != "inf" and budget >= row["think_tokens"])
            i = at[0] if at else -1
            cut, (status, _) = row["cuts"][i], verdict["verdicts"][i]
            assert STATUSES[found.status_MSJ[m, s, j]] == status
            assert found.correct_MSJ[m, s, j] == (status == "ok")
            assert found.think_MSJ[m, s, j] == cut["think"]
            assert found.answer_MSJ[m, s, j] == cut["tokens"]
            assert found.forced_MSJ[m, s, j] == (not own and budget != "inf")


def test_it_is_the_evaluation_of_training(tmp_path: Path) -> None:
    """The same problems, seed and budgets: the same tokens and verdicts, sample by sample."""
    grid = (0, 16, 48)
    path = copied("truncate", tmp_path)
    found, problems = table(path), task(12)
    config = EvalConfig(samples=4, budgets=grid, answer_tokens=8)
    with VerifierPool("exact") as pool:
        workers = Workers(worker("base/find"), pool)
        result = budgets.evaluate(workers, problems.prompts, config, Plan(max_tokens=128))
    assert len(result.rows) == found.correct_MSJ.size
    for row in result.rows:
        m, s = found.ids_M.index(row["id"]), row["sample"]
        j = found.columns.index(str(row["budget"]))
        assert found.correct_MSJ[m, s, j] == row["correct"]
        assert found.think_MSJ[m, s, j] == row["think_tokens"]
        assert found.answer_MSJ[m, s, j] == row["answer_tokens"]
        assert found.forced_MSJ[m, s, j] == row["forced"]


def test_experiments_are_never_mixed(tmp_path: Path) -> None:
    """What is cut was told nothing; what is told was generated for it, with common seeds."""
    found = open_folder(copied("both", tmp_path)).tables()
    assert [(t.asked, t.mode, t.budgets) for t in found] == [
        ("", "truncate", (32, 96)),
        ("32", "prompt", (32,)),
        ("96", "prompt", (96,)),
    ]
    by = {a: {(r["id"], r["sample"]): r for r in rows(tmp_path) if r["asked"] == a}
          for a in ("", "32", "96")}  # fmt: skip
    for key, plain in by[""].items():
        told = by["32"][key]
        assert told["prompt_tokens"] == plain["prompt_tokens"] + len(";32")
        assert told["seed"] == plain["seed"]
    thought = [found[i].think_MSJ[..., -1].mean() for i in (1, 2)]
    assert thought[0] < thought[1]


def test_the_uncut_run_is_the_same_whatever_is_cut(tmp_path: Path) -> None:
    apart = copied("prompt", tmp_path / "a")
    both = copied("both", tmp_path / "b")
    one, two = (table(path) for path in (apart, both))
    assert (one.mode, one.budgets) == ("prompt", ())
    np.testing.assert_array_equal(one.think_MSJ[..., -1], two.think_MSJ[..., -1])
    for asked in ("32", "96"):
        kept = [[r for r in rows(p) if r["asked"] == asked] for p in (apart, both)]
        keyed = [{samples.key_of(r): said(r) for r in some} for some in kept]
        assert keyed[0] == keyed[1]


def test_efforts_have_a_table_each(tmp_path: Path) -> None:
    found = open_folder(copied("effort", tmp_path)).tables()
    assert [t.asked for t in found] == ["", "none", "low", "medium", "high"]
    assert {t.mode for t in found} == {"effort"}
    thought = {t.asked: t.think_MSJ.mean() for t in found}
    assert thought["none"] < thought["low"] < thought["high"]


def test_samples_do_not_depend_on_the_order_of_lots(tmp_path: Path) -> None:
    """One at a time, and problems turned round; against all at once."""
    _, asks, usual = KINDS["truncate"]
    settings = EvalSettings(**usual, samples=2, answer_tokens=8)
    turned = replace(task(6), prompts=task(6).prompts[::-1])
    engine = worker("base/find")
    run.evaluate(engine, [task(6)], settings, tmp_path / "a", asks=asks)
    run.evaluate(engine, [turned], settings, tmp_path / "b", asks=asks, room=1)
    kept = [{samples.key_of(r): said(r) for r in rows(tmp_path / p)} for p in "ab"]
    assert kept[0] == kept[1]


def test_thoughts_of_a_few_problems_are_kept(tmp_path: Path) -> None:
    folder = open_folder(copied("truncate", tmp_path))
    shown = folder.examples("find")
    assert len(shown) == 6
    assert len({row["difficulty"] for row in shown}) > 1
    for row in shown:
        assert row["sample"] == 0
        assert len(row["thought"]) == row["think_tokens"]  # a token is a character here
        assert len(row["verdicts"]) == len(row["cuts"])
        assert row["gold"] in "ABCDEF"
    every = evaluation("truncate", tmp_path / "all", 3, 2, thoughts=True)
    assert len(every.examples("find")) == 6


def test_equal_answers_are_one_class_and_unknown_is_no_accuracy(tmp_path: Path) -> None:
    path = copied("truncate", tmp_path)
    lines = (path / samples.VERDICTS).read_text().splitlines()
    first = json.loads(lines[1])
    first["verdicts"][-1][0] = "timeout"
    lines[1] = json.dumps(first)
    (path / samples.VERDICTS).write_text("\n".join(lines) + "\n")
    found = table(path)
    at = found.ids_M.index(first["id"]), first["sample"], -1
    assert np.isnan(found.correct_MSJ[at])
    assert STATUSES[found.status_MSJ[at]] == "timeout"
    judged = [json.loads(line) for line in lines[1:]]
    for one in judged:
        for two in judged:
            if one["id"] == two["id"]:
                classes = [
                    found.class_MSJ[found.ids_M.index(v["id"]), v["sample"], -1] for v in (one, two)
                ]
                same = one["verdicts"][-1][1] == two["verdicts"][-1][1]
                assert (classes[0] == classes[1]) == same


# Precision


def test_precision_samples_until_it_is_there_or_the_cap(tmp_path: Path) -> None:
    folder = evaluation("truncate", tmp_path / "a", 20, 2, precision=0.05, max_samples=64)
    error, (found,) = run.errors(folder.tables())["find"], folder.tables()
    assert error <= 0.05
    assert 2 < found.present_MS.shape[1] < 64
    for j in range(4):
        rate_M = found.correct_MSJ[..., j].mean(axis=1)
        n = found.present_MS.shape[1]
        assert np.sqrt((rate_M * (1 - rate_M) / (n - 1)).sum()) / 20 <= 0.05
    capped = evaluation("truncate", tmp_path / "b", 4, 2, precision=0.01, max_samples=5)
    assert capped.tables()[0].present_MS.shape == (4, 5)
    assert run.errors(capped.tables())["find"] > 0.01


def test_a_precision_is_not_believed_of_two_that_agree(tmp_path: Path) -> None:
    wide = evaluation("truncate", tmp_path / "a", 3, 1, precision=0.49, max_samples=64)
    assert wide.tables()[0].present_MS.shape == (3, run.LEAST)
    few = evaluation("truncate", tmp_path / "b", 3, 1, precision=0.49, max_samples=3)
    assert few.tables()[0].present_MS.shape == (3, 3)


# What cannot be asked is refused before anything is generated


@pytest.mark.parametrize(
    ("settings", "asks", "said"),
    [
        (
            {"budgets": (128,), "max_tokens": 128},
            Asks(),
            r"--budgets: 128 .* \(--max-tokens\)",
        ),
        ({"max_tokens": 2000}, Asks(), "exceed the model's context of 1024"),
        ({"mode": "prompt"}, TOLD, "announces numbers"),
        ({"mode": "prompt", "budgets": (8,)}, Asks(), "cannot be told of a budget"),
        ({"mode": "effort"}, Asks(), "knows no efforts"),
        ({"mode": "effort", "budgets": (8,)}, MODES, "have no effect in mode effort"),
        (
            {"mode": "prompt", "budgets": (8,)},
            Asks(budget={"template": {"thinking_budget": "{budget}"}}),
            "ignores the argument 'thinking_budget'",
        ),
        ({"mode": "effort"}, Asks(efforts={"low": {}}), "'low' would have no effect"),
        ({"mode": "prompt", "budgets": (8,)}, Asks(budget={"suffix": "x"}), "--ask: no text says"),
    ],
)
def test_mistakes_are_told_before_work(
    settings: dict[str, Any], asks: Asks, said: str, tmp_path: Path
) -> None:
    renderer = worker("base/find").renderer
    with pytest.raises(ValueError, match=said):
        run.fill(
            never, renderer, [task(3)], EvalSettings(**settings), tmp_path / "o",
            asks=asks, context=1024,
        )  # fmt: skip
    assert not (tmp_path / "o").exists()


def test_no_problems_are_refused_and_one_is_enough(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 0 problems"):
        evaluation("truncate", tmp_path / "a", problems=0)
    (found,) = evaluation("truncate", tmp_path / "b", problems=1, samples=1).tables()
    assert found.present_MS.shape == (1, 1)


def test_a_stopping_rule_goes_with_uncut_thoughts_alone() -> None:
    with pytest.raises(ValueError, match="ends thoughts by itself"):
        EvalSettings(stopping="consistency", budgets=(8,))
    (way,) = ways(EvalSettings(stopping="consistency"), Asks())
    assert way.plan.stopping == "consistency"


def test_a_notebook_evaluates_by_name(tmp_path: Path) -> None:
    import trainer.eval

    found = trainer.eval.evaluate(
        "base/find", ["find"], tmp_path, budgets=(0, 16), samples=2, wanted={"problems": 5}
    )
    assert found["find/accuracy@16"].n == 5
    again = open_folder(tmp_path).metrics()["find/accuracy@16"]
    assert again == found["find/accuracy@16"]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_or_lines(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr(progress, "EVERY", 0.0)
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    with progress.Progress("sampling", 40, 10, console) as bar:
        bar.add(10, 500)
        bar.add(20, 500)
        assert bar.line().startswith("sampling 40/40 (100%)  ")
    assert ("\x1b" in text.getvalue()) == terminal
    if not terminal:
        first, second = text.getvalue().splitlines()
        assert first.startswith("sampling 20/40 (50%)")
        assert "left " in first
        assert "left" not in second
