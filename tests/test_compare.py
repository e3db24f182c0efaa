"""Risk: a comparison of things that cannot be compared, or a gate that opens when it must not."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.cli import main
from tests import evaluated, tables
from tests.test_eval_budgets import PLAN, Scripted, prompts, run
from trainer.eval import compare as comparing
from trainer.eval import metrics, require, sides, statistics
from trainer.eval.budgets import EvalConfig, evaluate
from trainer.eval.compare import Comparison
from trainer.eval.metric import NOTHING, Metric
from trainer.eval.sides import Side
from trainer.eval.table import Table

SETTINGS = {"max_tokens": 100, "answer_tokens": None}


def side(name: str, *some: Table, **settings: Any) -> Side:
    problems = {(t.task, i): f"digest of {i}" for t in some for i in t.ids_M}
    graders = {t.task: settings.pop("grader", "exact/1") for t in some}
    return Side(Path(name), list(some), problems, graders, {**SETTINGS, **settings})


def compared(monkeypatch: pytest.MonkeyPatch, a: Side, b: Side, margin: float = 0.01) -> Comparison:
    monkeypatch.setattr(comparing, "read", {a.path: a, b.path: b}.__getitem__)
    return comparing.compare(a.path, b.path, margin)


def better(table: Table, by: int = 30) -> Table:
    """The same model thinking less, and right where it was."""
    shorter = np.maximum(table.think_MSJ - by, 0)
    return replace(table, think_MSJ=shorter)


def test_differences_are_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = tables.random(30, 4, (20, 50), seed=1), tables.random(30, 4, (20, 50), seed=2)
    found = compared(monkeypatch, side("a", a), side("b", b))
    assert [line.name for line in found.lines] == [
        "accuracy@20", "accuracy@50", "accuracy@inf", "anytime/log",
    ]  # fmt: skip
    line = found.lines[1]
    rates = [t.correct_MSJ[..., 1].mean(axis=1) for t in (a, b)]
    expected = statistics.paired(rates[1], rates[0])
    assert line.difference.estimate == expected.difference
    assert (line.p_t, line.p_flip) == (expected.p_t, expected.p_flip)
    assert line.p_holm == line.p_flip  # one task
    assert line.difference.se_fixed == pytest.approx(
        math.hypot(*(statistics.fixed_set_error(t.correct_MSJ[..., 1]) for t in (a, b)))
    )
    spent = [t.tokens_MSJ[..., 1].sum() for t in (a, b)]
    assert line.tokens is not None
    assert line.tokens.value == pytest.approx(spent[1] / spent[0])
    assert line.tokens.low < line.tokens.value < line.tokens.high


def test_the_order_of_problems_and_budgets_that_only_one_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = tables.random(20, 3, (20, 50), seed=1), tables.random(20, 3, (20, 50), seed=2)
    straight = compared(monkeypatch, side("a", a), side("b", b))
    mixed = tables.taken(b, np.random.default_rng(0).permutation(20))
    assert compared(monkeypatch, side("a", a), side("b", mixed)).lines == straight.lines
    more = tables.random(20, 3, (20, 30, 50), seed=1)
    names = [line.name for line in compared(monkeypatch, side("a", more), side("b", b)).lines]
    assert names == ["accuracy@20", "accuracy@50", "accuracy@inf"]  # no area: other grids


def test_as_good_on_fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    a = tables.random(40, 4, seed=3)
    few = compared(monkeypatch, side("a", a), side("b", better(a)))
    assert few.lines[-1].verdict == "undecided"  # 40 alike say nothing of the hundredth
    assert "accuracy may have fallen by 0.0881" in few.inferior()[0]
    same = compared(monkeypatch, side("a", a), side("b", better(a)), 0.1)
    assert same.lines[-1].verdict == "as good, fewer tokens"
    assert same.inferior() == []
    longer = compared(monkeypatch, side("b", better(a)), side("a", a), 0.1)
    assert longer.lines[-1].verdict == "as good"
    assert len(longer.inferior()) == 1
    assert "tokens may be" in longer.inferior()[0]
    correct = a.correct_MSJ.copy()
    correct[:8] = 0
    worse = compared(monkeypatch, side("a", a), side("b", replace(better(a), correct_MSJ=correct)))
    assert worse.lines[-1].verdict == "worse"
    assert "accuracy may have fallen by" in worse.inferior()[0]
    wide = compared(
        monkeypatch, side("a", a), side("b", replace(better(a), correct_MSJ=correct)), 0.5
    )
    assert wide.lines[-1].verdict == "as good, fewer tokens"


def test_one_problem_is_not_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    a = tables.random(1, 4, seed=3)
    alone = compared(monkeypatch, side("a", a), side("b", better(a)))
    assert alone.lines[-1].verdict == "undecided"
    assert alone.inferior() == ["t: fewer than two problems are graded in both"]


def test_several_tasks_are_corrected_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(seed: int) -> list[Table]:
        return [replace(tables.random(25, 4, seed=seed + i), task=n) for i, n in enumerate("tuv")]

    found = compared(monkeypatch, side("a", *both(0)), side("b", *both(5)))
    p = [line.p_flip for line in found.lines]
    assert len(p) == 3
    smallest = int(np.argmin(p))
    assert found.lines[smallest].p_holm == pytest.approx(min(1, 3 * min(p)))
    flat = found.metrics()
    assert flat["all/accuracy@inf"].value == pytest.approx(
        np.mean([line.difference.value for line in found.lines])
    )
    assert set(flat) == {
        *(f"{task}/{name}@inf" for task in "tuv" for name in ("accuracy", "tokens_ratio")),
        "all/accuracy@inf",
    }


def test_every_way_of_asking_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def ways(seed: int) -> list[Table]:
        free, told, low = (tables.random(20, 3, grid, seed=seed + i)
                           for i, grid in enumerate([(20,), (20,), ()]))  # fmt: skip
        told = replace(told, mode="prompt", asked="20", target=20)
        return [free, told, replace(low, mode="effort", asked="low")]

    found = compared(monkeypatch, side("a", *ways(0)), side("b", *ways(5)))
    assert set(found.metrics()) == {
        *(f"t/{kind}@{b}" for kind in ("accuracy", "tokens_ratio") for b in (20, "inf")),
        *(f"t/prompt/{kind}@20" for kind in ("accuracy", "soft_accuracy")),
        *(f"t/prompt/{kind}@20" for kind in ("tokens_ratio", "soft_tokens_ratio")),
        *(f"t/effort/{kind}@low" for kind in ("accuracy", "tokens_ratio")),
        "t/anytime/log",
    }
    alone = compared(monkeypatch, side("a", *ways(0)[:1]), side("b", *ways(5)))
    assert alone.notes == ["note: only one of both has t at '20', t at 'low'"]
    assert {line.name for line in alone.lines} == {"accuracy@20", "accuracy@inf", "anytime/log"}


def test_gained_and_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (tables.made(np.full((4, 4), 20), 10) for _ in range(2))
    right = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    now = np.array([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 0], [1, 1, 0, 1]])
    a, b = (replace(t, correct_MSJ=r[..., None].astype(float)) for t, r in ((a, right), (b, now)))
    (moved,) = compared(monkeypatch, side("a", a), side("b", b)).moved
    assert moved.gained == [("p0", 0.0, 1.0), ("p3", 0.25, 0.75)]
    assert moved.lost == [("p1", 1.0, 0.5)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_tokens": 200}, "max_tokens is 100 in the first and 200 in the second"),
        ({"grader": "exact/2"}, "t is graded by exact/1 in the first and by exact/2 in the second"),
        ({"answer_tokens": 8}, "answer_tokens is None in the first and 8"),
    ],
)
def test_refused_settings(changed: dict[str, Any], said: str) -> None:
    table = tables.random(4, 2)
    with pytest.raises(ValueError, match=said):
        sides.check(side("a", table), side("b", table, **changed))


def test_refused_problems() -> None:
    table = tables.random(4, 2)
    a = side("a", table)
    with pytest.raises(ValueError, match=r"1 are in the first alone and 0 in the second \(p3\)"):
        sides.check(a, side("b", tables.taken(table, [0, 1, 2])))
    b = side("b", table)
    changed = {key: "another gold" if key[1] == "p2" else d for key, d in b.problems.items()}
    with pytest.raises(ValueError, match=r"in 1 of 4 problems \(p2\): prompt or gold differ"):
        sides.check(a, replace(b, problems=changed))
    with pytest.raises(ValueError, match="share no task: t and u"):
        sides.check(a, side("b", replace(table, task="u")))
    unsaved = replace(b, problems=dict.fromkeys(b.problems, ""))
    sides.check(a, unsaved)
    told = sides.differences(side("a", table, temperature=1.0), side("b", table, temperature=0.6))
    assert told == ["note: temperature is 1.0 in A and 0.6 in B"]


def written(folder: Path, *scripted: type[Scripted]) -> Path:
    """A training run's evaluations, every five steps."""
    config = EvalConfig(budgets=(8, 20), samples=2)
    for i, each in enumerate(scripted):
        evaluate(each(), prompts(9), config, PLAN, step=5 * i).save(folder / "eval")
    return folder


class Brief(Scripted):
    """Needs a little less."""

    @staticmethod
    def facts(job: Any) -> tuple[int, int, bool]:
        need, length, closed = Scripted.facts(job)
        return need - 2, length - 2, closed


def test_runs_are_compared_by_their_last_evaluation(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", Brief, Scripted), written(tmp_path / "b", Scripted, Brief)
    found = comparing.compare(a, b)
    result, _ = run(EvalConfig(budgets=(8, 20), samples=2))
    line = next(line for line in found.lines if line.name == "accuracy@20")
    assert line.a.estimate == result.metrics["accuracy@20"]
    uncut = next(line for line in found.lines if line.name == "accuracy@inf")
    assert uncut.tokens is not None
    assert uncut.tokens.value < 1
    with pytest.raises(ValueError, match="no such folder"):
        comparing.compare(a, tmp_path / "c")
    with pytest.raises(ValueError, match="holds no evaluation"):
        comparing.compare(a, tmp_path)


def test_the_command_is_a_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real folders, made by the shipped base model."""
    a = evaluated.copied("truncate", tmp_path / "a")
    b = tmp_path / "b"
    shutil.copytree(a, b)
    command = ["compare", str(a), str(b)]
    assert main(command) == 0
    assert "accuracy@48" in capsys.readouterr().out
    assert main([*command, "--require", "find/accuracy@48>=0"]) == 0
    assert main([*command, "--require", "find/tokens_ratio@inf.high<1"]) == 1
    assert "find/tokens_ratio@inf.high<1: it is 1" in capsys.readouterr().err
    margin = ["--noninferiority-margin", "0.5"]  # equal problems, but few
    assert main([*command, *margin, "--require", "noninferiority"]) == 1
    assert "tokens may be 1.000 times" in capsys.readouterr().err
    assert main([*command, "--require", "find/accuracy@47>0"]) == 2
    assert "did you mean 'find/accuracy@4" in capsys.readouterr().err
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["differences"]["find/accuracy@48"]["value"] == 0
    problems = (b / "problems.jsonl").read_text().splitlines()
    row = json.loads(problems[0])
    problems[0] = json.dumps(row | {"gold": row["gold"] + "x"})
    (b / "problems.jsonl").write_text("\n".join(problems) + "\n")
    assert main(command) == 2
    assert "prompt or gold differ" in capsys.readouterr().err


# require


def metric(value: float, low: float = math.nan, **more: Any) -> Metric:
    return Metric(value, low, 2 * value - low, 10, 40, **more)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("t/accuracy@8>=0.5", True),
        ("t/accuracy@8 > 50%", False),
        ("t/accuracy@8>=50%", True),
        ("t/accuracy@8.low >= 0.4", True),
        ("t/accuracy@8.low>=0.41", False),
        ("t/accuracy@8.high<0.61", True),
        ("t/accuracy@8.n>=10", True),
        ("t/compression@0.01<=0.2", True),
        ("t/compression@0.01.low>-1", False),  # no interval
        ("t/accuracy@8.se_fixed<1", False),  # not known
        ("t/never<1e9", False),
        ("t/never>=0", True),
        ("t/nan>=-1e9", False),
        ("t/nan<1e9", False),
    ],
)
def test_requirements(text: str, holds: bool) -> None:
    found = {
        "t/accuracy@8": metric(0.5, 0.4),
        "t/compression@0.01": metric(0.2),
        "t/never": metric(math.inf),
        "t/nan": NOTHING,
    }
    failed = require.failures([require.requirement(text)], found)
    assert failed == [] if holds else len(failed) == 1
    assert all(line.startswith(text) for line in failed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("accuracy", "write NAME>=NUMBER"),
        ("t/accuracy@8=0.5", "write NAME>=NUMBER"),
        ("t/accuracy@8>=high", "'high' is no number"),
        ("t/accuracy@8>=nan", "'nan' is no number"),
        ("", "write NAME>=NUMBER"),
    ],
)
def test_what_is_no_requirement(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        require.requirement(text)
    assert "\n" not in str(caught.value)


def test_names_that_are_not_there() -> None:
    found = metrics.measure([tables.random(4, 2, (8,))])
    with pytest.raises(ValueError, match="did you mean 't/accuracy@8'"):
        require.failures([require.requirement("t/acuracy@8>0")], found)
    with pytest.raises(ValueError, match="no task 'math500' here; names begin with one of t"):
        require.check([require.requirement("math500/accuracy@8>0")], ["t"])
    require.check([require.requirement(r) for r in ("t/x>0", "all/x>0", "adherence")], ["t"])
    others = ("t/pass@4>0", "t/majority@4/accuracy>0", "t/compression@0.01>0", "t/accuracy@inf>0")
    require.check([require.requirement(r) for r in (*others, "t/e3@8>0")], ["t"], (8, 16))
    with pytest.raises(ValueError, match="nothing is measured at 7 thinking tokens; --budgets has"):
        require.check([require.requirement("t/prompt/accuracy@7.low>0")], ["t"], (8, 16))
    with pytest.raises(ValueError, match="noninferiority: nothing here tells of it"):
        require.failures([require.requirement("noninferiority")], found, {"adherence": []})
    words = {"adherence": ["t: adherence: the hard budget of 8 was exceeded"]}
    assert len(require.failures([require.requirement("adherence")], found, words)) == 1
    assert require.failures([require.requirement("adherence")], found, {"adherence": []}) == []
