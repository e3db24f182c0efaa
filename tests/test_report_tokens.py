"""Risk: a comparison at equal tokens, or a figure of many arms, that says what nobody measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from launch.cli import main
from samplers import seam
from samplers.budgets import base as budgets
from tests.test_report import BUDGETS, CAP, Reasoner, make_run, problem
from trainer import report
from trainer.eval.asked import with_asked
from trainer.eval.budgets import EvalConfig, evaluate
from trainer.report import asked, curves, data, frontier, page, table, tokens
from trainer.report.options import MANY, Options
from trainer.report.table import Contrast

ARMS = {"grpo/find": (0.95, 8.0), "length/find": (0.94, 1.0), "never/find": (0.5, 30.0)}


def three_arms(root: Path) -> list[Path]:
    return [
        make_run(root, name, seed, *skill, steps=4, problems=30)
        for name, skill in ARMS.items()
        for seed in (0, 1, 2)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return three_arms(tmp_path_factory.mktemp("runs"))


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def area(run: Path, step: int, metric: str = "cap_area") -> float:
    return float(
        json.loads((run / f"eval/step-{step}.json").read_text())["metrics"][metric]["value"]
    )


def by_hand(run: Path, metric: str = "cap_area") -> tuple[list[float], list[float]]:
    steps = metrics(run)
    spent = [sum(s.get("tokens/sampled", 0) for s in steps if s["step"] <= at) for at in (0, 2, 4)]
    return spent, [area(run, at, metric) for at in (0, 2, 4)]


@given(
    st.lists(st.tuples(st.floats(1, 50), st.floats(0, 1)), min_size=1, max_size=6),
    st.floats(0.01, 0.99),
)
@settings(deadline=None)
def test_first_crossing_is_that_of_a_fine_walk_along_the_line(
    points: list[tuple[float, float]], target: float
) -> None:
    at = np.cumsum([gap for gap, _ in points])
    values = np.array([value for _, value in points])
    walk = np.linspace(at[0], at[-1], 20_001)
    above = np.flatnonzero(np.interp(walk, at, values) >= target)
    found = tokens.until(at, values, target)
    if np.isnan(found):
        assert values.max() < target
    else:
        assert np.interp(found, at, values) == pytest.approx(max(target, values[0]))
        if above.size:  # a peak may fall between two points of the walk
            assert found <= walk[above[0]] + 1e-9


def test_read_off_the_line_and_nowhere_beyond_it() -> None:
    at, values = np.array([0.0, 100.0, 300.0]), np.array([0.4, 0.6, 0.5])
    assert tokens.until(at, values, 0.55) == pytest.approx(75)
    assert tokens.until(at, values, 0.3) == 0
    assert np.isnan(tokens.until(at, values, 0.61))
    assert np.isnan(tokens.until(at[:0], values[:0], 0.1))
    assert tokens.after(at, values, 200) == pytest.approx(0.55)
    assert tokens.after(at, values, 300) == 0.5
    assert np.isnan(tokens.after(at, values, 301))


def test_of_evaluations_at_equal_tokens_the_last_ends_the_line(tmp_path: Path) -> None:
    """A supervised stage samples its examples first; seeds differ in how many tokens that took."""
    at, values = np.array([0.0, 100.0, 100.0, 100.0]), np.array([0.4, 0.5, 0.8, 0.7])
    assert tokens.after(at, values, 50) == pytest.approx(0.55)
    assert tokens.until(at, values, 0.6) == 100
    made = [make_run(tmp_path, "sft", seed, 0.9, 5.0, steps=4, problems=8) for seed in (0, 1)]
    for run, count in zip(made, (1000, 3000), strict=True):
        (run / "metrics.jsonl").write_text(json.dumps({"step": 0, "traces/tokens": count}) + "\n")
    (arm,) = data.arms(map(data.read_run, made))
    (curve,) = curves.curves([arm], None)
    spent, (mean, *_) = frontier._line(curve)
    assert spent[-1] == 1000
    other = area(made[1], 0) + (area(made[1], 4) - area(made[1], 0)) / 3
    assert mean[-1] == pytest.approx((area(made[0], 4) + other) / 2)


def test_tokens_until_an_area_per_seed_and_paired(runs: list[Path]) -> None:
    found = data.arms(map(data.read_run, runs))
    target = 0.55
    (block,) = tokens.blocks(found, Options(reach=target))
    assert [line.name for line in block.lines] == list(ARMS)
    crossed = {}
    for name in ("grpo/find", "length/find"):
        mine = [run for run in runs if run.name.startswith(name.replace("/", "-"))]
        crossed[name] = [
            float(np.interp(target, values[:2], spent[:2]))
            if values[1] >= target
            else float(np.interp(target, values[1:], spent[1:]))
            for spent, values in map(by_hand, mine)
        ]
    grpo, length, never = block.lines
    assert grpo.value.value == pytest.approx(np.mean(crossed["grpo/find"]))
    assert length.contrast is not None
    difference = np.subtract(crossed["length/find"], crossed["grpo/find"])
    assert length.contrast.difference.value == pytest.approx(difference.mean())
    assert length.contrast.p_t == pytest.approx(stats.ttest_1samp(difference, 0).pvalue)
    assert grpo.contrast is None
    assert never.missing == "3 of 3 never"
    assert np.isnan(never.value.value)
    assert never.contrast is None


def test_area_and_accuracy_at_equal_tokens(runs: list[Path]) -> None:
    found = data.arms(map(data.read_run, runs))
    spent = [by_hand(run)[0] for run in runs]
    at = int(min(s[-1] for s in spent))
    first, second, third = tokens.blocks(found, Options(at_tokens=at, against="length/find"))
    for block, metric in (
        (first, "cap_area"),
        (second, "accuracy"),
        (third, "think_tokens/mean"),
    ):
        assert block.against == "length/find"
        here = [float(np.interp(at, *by_hand(run, metric))) for run in runs]
        for i, line in enumerate(block.lines):
            assert line.value.value == pytest.approx(np.mean(here[3 * i : 3 * i + 3]))
            assert (line.contrast is None) == (line.name == "length/find")
    beyond, *_ = tokens.blocks(found, Options(at_tokens=10**9))
    assert {line.missing for line in beyond.lines} == {"3 of 3 ended before"}
    text = report.summary_table(runs, options=Options(reach=0.55, at_tokens=at))
    assert f"area at {at:,} generated tokens" in text
    assert "3 of 3 never" in text
    assert f"every run generated {at:,} tokens or more" in text


def test_what_was_generated_counts_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path, "grpo", 0, 0.9, 5.0, steps=4, problems=6)
    lines = [
        {"step": 0, "traces/tokens": 1000},
        {"step": 1, "tokens/sampled": 10, "chunks/tokens": 7, "tokens/scored": 5},
        {"step": 2, "tokens/sampled": 20, "chunks/tokens": 3, "traces/tokens": None},
        {"step": 3, "loss": 1.0},
        {"step": 4, "tokens/sampled": 40, "chunks/tokens": 0, "tokens/scored": 6},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = data.read_run(run)
    assert found.generated(0) == 0, "an evaluation comes before a stage makes its examples"
    assert found.generated(1) == 1017, "of unfinished rollouts what there is of them"
    assert [found.generated(step) for step in (2, 3, 4)] == [1033, 1030, 1070]
    assert found.scored(4) == 11
    note = tokens.notes(data.arms([found]))
    assert note[-1] == "grpo: 11 tokens a run scored at cuts, beside them"
    named = data.arms([replace(found, config={"name": "GRPO"})])
    assert "; GRPO: 11 tokens a run" in page._tokens(named, Options(reach=0.5))


@pytest.mark.parametrize(
    ("stages", "started"),
    [
        ([{"kind": "rl", "steps": 4}], 0),
        ([{"kind": "sft", "steps": 2}, {"kind": "rl", "steps": 2}], 2),
        ([{"kind": "rl", "steps": 2}, {"kind": "rl", "steps": 2}], 0),
        ([{"kind": "sft", "steps": 1}, {"kind": "sft", "steps": 3}], 1),
        (
            [
                {"kind": "sft", "steps": 2, "supervised": {"traces": {"name": "budget_modes"}}},
                {"kind": "rl", "steps": 2},
            ],
            0,
        ),
    ],
)
def test_what_was_trained_is_what_came_before_the_first_samples(
    tmp_path: Path, stages: list[dict[str, Any]], started: int
) -> None:
    run = make_run(tmp_path, "grpo", 0, 0.9, 5.0, steps=4, problems=6)
    (run / "config.yaml").write_text(yaml.safe_dump({"name": "grpo", "stages": stages}))
    assert data.read_run(run).started == started


def test_an_arm_that_began_elsewhere_has_a_base_of_its_own(tmp_path: Path) -> None:
    made = {}
    for name, path in (("grpo", "base/find"), ("length", "base/find"), ("l1", "base/told")):
        made[name] = make_run(tmp_path, name, 0, 0.9, 5.0, steps=2, problems=8)
        stage = {"kind": "rl", "steps": 2, "model": {"path": path}}
        config = yaml.safe_dump({"name": name, "stages": [stage]})
        (made[name] / "config.yaml").write_text(config)
    first = made["l1"] / "eval/step-0.json"
    summary = json.loads(first.read_text())
    summary["metrics"]["accuracy"]["value"] = 0.123
    first.write_text(json.dumps(summary))
    lines = report.summary_table(list(made.values())).splitlines()
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        "base", "base of l1", "grpo", "length", "l1",
    ]  # fmt: skip
    assert "0.123" in lines[2]
    assert "accuracy 0.12 to" in report.write(list(made.values()), tmp_path / "r.html").read_text()
    chosen = report.summary_table(list(made.values()), base=made["grpo"])
    assert "base of" not in chosen


def test_a_run_that_is_not_yet_evaluated_is_no_seed(tmp_path: Path) -> None:
    made = [make_run(tmp_path, "grpo", seed, 0.9, 5.0, steps=4, problems=8) for seed in (0, 1)]
    for step in (2, 4):
        (made[1] / f"eval/step-{step}.json").unlink()
    asked = Options(reach=0.01, at_tokens=10)
    for block in tokens.blocks(data.arms(map(data.read_run, made)), asked):
        assert [(line.seeds, line.missing) for line in block.lines] == [(1, "")]


def test_evaluations_under_another_cap_are_no_part_of_the_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, "grpo", 0, 0.9, 5.0, steps=4, problems=6)
    path = run / "eval/step-0.json"
    path.write_text(path.read_text().replace(f'"max_tokens": {CAP}', '"max_tokens": 48'))
    spent, values = tokens.curve(data.read_run(run), "cap_area")
    assert values.tolist() == [area(run, 2), area(run, 4)]
    assert spent[0] > 0


def test_of_many_arms_each_is_compared_with_one(runs: list[Path]) -> None:
    three = data.arms(map(data.read_run, runs))
    many = [replace(three[i % 2], name=f"arm {i}") for i in range(MANY + 1)]

    def sides(found: list[Contrast]) -> set[tuple[str, str]]:
        return {(c.earlier, c.later) for c in found}

    assert len(sides(table.contrasts(many[:-1]))) == MANY * (MANY - 1) // 2
    assert sides(table.contrasts(many)) == {("arm 0", f"arm {i}") for i in range(1, MANY + 1)}
    to = Options(against="length/find")
    pairs = {("length/find", name) for name in ARMS if name != "length/find"}
    assert sides(table.contrasts(three, to)) == pairs
    with pytest.raises(ValueError, match=r"no arm 'kimi'; there are grpo/find, length/find"):
        report.summary_table(runs, options=Options(against="kimi"))


def test_more_metrics_may_be_shown(runs: list[Path]) -> None:
    text = report.summary_table(runs, options=Options(show=("think_tokens/sd", "truncated")))
    head, *_ = text.splitlines()
    assert head.split()[-2:] == ["think_tokens/sd", "truncated"]
    compared = [line.split()[:4] for line in text.splitlines() if "length/find - grpo/find" in line]
    assert ["length/find", "-", "grpo/find", "think_tokens/sd"] in compared
    with pytest.raises(ValueError, match=r"no evaluation has 'think_sd'.*think_tokens/sd"):
        report.summary_table(runs, options=Options(show=("think_sd",)))


def test_area_of_one_seed_is_paired_by_problem(runs: list[Path]) -> None:
    one = data.read_run(runs[0]).final
    assert one is not None
    per_problem = one.per_problem("cap_area")
    assert np.mean(list(per_problem.values())) == pytest.approx(area(runs[0], 4))
    (contrast,) = (
        c
        for c in table.contrasts(data.arms(map(data.read_run, (runs[0], runs[3]))))
        if c.metric == "cap_area"
    )
    assert contrast.units == "30 problems"
    assert contrast.result.difference.value == pytest.approx(area(runs[3], 4) - area(runs[0], 4))


def set_area(run: Path, value: float | None) -> None:
    path = run / "eval/step-4.json"
    summary = json.loads(path.read_text())
    summary["metrics"]["cap_area"]["value"] = value
    path.write_text(json.dumps(summary))


def test_only_what_was_measured_on_the_same_problems_is_compared(tmp_path: Path) -> None:
    made = [
        make_run(tmp_path, name, seed, 0.9, 5.0, steps=4, problems=8)
        for name in ("grpo", "length")
        for seed in (0, 1, 2)
    ]

    def units(runs: list[Path]) -> dict[str, str]:
        found = table.contrasts(data.arms(map(data.read_run, runs)))
        return {c.metric: c.units for c in found}

    set_area(made[0], None)
    assert units(made)["cap_area"] == "2 seeds"
    assert units(made)["accuracy"] == "3 seeds"
    alone = [made[0], made[3]]
    assert set(units(alone)) == {"accuracy", "think_tokens/mean", "anytime"}
    config = yaml.safe_load((made[3] / "config.yaml").read_text())
    config["stages"][0]["data"] = {"task": {"name": "find", "candidates": [4, 8]}}
    (made[3] / "config.yaml").write_text(yaml.safe_dump(config))
    assert units(alone) == {}, "their problems have the same ids"


def ask(run: Path, step: int) -> None:
    """Evaluate `run` at `step` again, with numbers that are asked for."""
    model, problems = Reasoner(0.9, 3.0), [problem(i) for i in range(20)]
    config = EvalConfig(budgets=BUDGETS)
    result = evaluate(model, problems, config, budgets.plan(budgets.Asking(max_tokens=CAP)), step)
    spec = {"name": "prompted", "budget": (20, 100), "max_tokens": CAP}
    plans = budgets.asked(*seam.resolve("samplers.budgets", spec))
    with_asked(result, model, problems, config, plans).save(run / "eval")


def test_what_was_asked_for_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path, "l1", 0, 0.9, 3.0, steps=2, problems=20)
    assert "asked for" not in report.summary_table([run])
    for step in (0, 2):
        ask(run, step)
    lines = report.summary_table([run]).splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("asked for"))
    rows = [line.split() for line in lines[begin + 1 : begin + 11]]
    assert [row[-9] for row in rows] == ["20", "40", "60", "80", "100"] * 2
    assert rows[0][:4] == ["l1,", "at", "its", "start"]
    assert rows[5][0] == "l1"
    value = json.loads((run / "eval/step-2.json").read_text())["metrics"]
    assert rows[5][2] == f"{value['asked/20/accuracy']['value']:.3f}"
    kept = lines[begin + 14].split()
    assert kept[0] == "l1"
    assert kept[1] == f"{value['asked/deviation']['value']:.3f}"
    found = data.arms([data.read_run(run)])
    assert asked.names(found[0].finals[0]) == ["20", "40", "60", "80", "100"]
    page = report.write([run], tmp_path / "report.html").read_text()
    assert "What was asked for" in page
    assert "rank correlation" in page


def test_the_command_asks(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["report", *map(str, runs), "--out", str(tmp_path / "report.html")]
    more = [
        "--reach",
        "0.55",
        "--at-tokens",
        "100",
        "--against",
        "never/find",
        "--show",
        "truncated",
    ]
    assert main([*argv, *more]) == 0
    out = capsys.readouterr().out
    assert "generated tokens until the area is 0.55" in out
    assert "less never/find" in out
    page = (tmp_path / "report.html").read_text()
    assert "accuracy at 100 generated tokens" in page
    assert main([*argv, "--against", "kimi"]) == 2
    assert "no arm 'kimi'" in capsys.readouterr().err
    assert main([*argv, "--reach", "70"]) == 2
    assert "write an area above 0 and below 1" in capsys.readouterr().err
    argv = ["sweep", "grpo/find", "--output", str(tmp_path / "none"), "--against", "length/find"]
    assert main(argv) == 2
    assert "no arm 'length/find'; there are grpo/find" in capsys.readouterr().err
    assert not (tmp_path / "none").exists(), "told before anything starts"
