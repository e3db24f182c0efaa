"""A run held against its estimate: what its metrics say, and that the rows it prints say it too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch import costs, measured
from launch.cli import main
from launch.costs import Estimate, Units
from launch.fits import fit
from launch.hardware import Cluster, Hardware
from launch.throughputs import Row, Span, Table, read, told
from trainer import runfolder
from trainer.config import Recipe, load
from trainer.modelfolder import ModelFolder, locate

SETTINGS = ["steps=4", "prompts_per_step=4", "rollouts_per_prompt=8", "evaluation.every=2"]
PROMPT = 20


def record(step: int, **more: Any) -> dict[str, Any]:
    """32 rollouts of 50 tokens in 2 s, of which half train in 1 s."""
    figures = {"rollouts": 32, "rollouts_kept": 32, "tokens/sampled": 1600, "tokens/kept": 1600}
    times = {"generate": 2.0, "train": 1.0, "sync": 0.25, "verify": 0.125, "step": 4.0}
    times |= {"other_share": 0.125, "learner": 0.9, "generate_tokens_per_s": 800, "verdict_p99": 9}
    timed = {f"time/{name}": seconds for name, seconds in times.items()}
    return {"step": step, "tokens": 800.0, **figures, **timed, **more}


STEPS = [
    {"step": 0, "time/evaluate": 50.0, "time/step": 50.0},
    record(1, **{"time/generate": 99.0, "time/step": 99.0}),
    record(2, **{"time/evaluate": 3.0, "time/step": 7.0}),
    record(3),
    record(4, **{"time/evaluate": 3.0, "time/checkpoint": 1.5, "time/step": 8.5}),
]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load("grpo/find", [*SETTINGS, f"output={tmp_path}"])


def estimate(recipe: Recipe, *rows: Row, engines: int = 1, learners: int = 1) -> Estimate:
    one = recipe.stages[0]
    found = fit(one, ModelFolder(locate(one.model.path)), Hardware(Cluster()), PROMPT)
    assert found.shape is not None
    units = Units({"cpu": engines}, learners, "cpu", 3.0)
    table = Table((rows,))
    return Estimate(one, found.shape, units, table, costs.sizes(one, PROMPT), engines)


def test_means_without_the_step_that_warms_up(recipe: Recipe) -> None:
    found = measured.measured(STEPS, 0, recipe.stages[0])
    assert found is not None
    assert found.steps == 3
    times = {"generate": 2.0, "train": 1.0, "sync": 0.25, "evaluate": 3.0, "step": 4.0}
    assert found.seconds == pytest.approx(times)
    driver = 0.125 * (7 + 4 + 8.5) / 3
    assert found.beside == pytest.approx({"checkpoint": 0.5, "driver": driver, "verify": 0.125})
    assert (found.rollouts, found.response, found.computed, found.kept) == (32, 50, 0.5, 32)


def test_a_later_stage_has_its_own_steps(recipe: Recipe) -> None:
    later = [{**one, "step": one["step"] + 7} for one in STEPS]
    found = measured.measured([*STEPS, *later], 7, recipe.stages[0])
    assert found == measured.measured(STEPS, 0, recipe.stages[0])
    assert measured.measured(STEPS, 4, recipe.stages[0]) is None
    assert measured.measured(STEPS[:2], 0, recipe.stages[0]) is None, "one step only warms up"


@pytest.mark.parametrize(("engines", "learners"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("more", [[], ["epochs=2"], ["learner.gradient_checkpointing=true"]])
def test_the_rows_of_a_run_tell_what_it_took(
    recipe: Recipe, engines: int, learners: int, more: list[str]
) -> None:
    one = load("grpo/find", [*SETTINGS, *more])
    before = estimate(one, engines=engines, learners=learners)
    passes = one.stages[0].epochs
    steps = [{**record, "tokens": record.get("tokens", 0.0) * passes} for record in STEPS]
    found = measured.measured(steps, 0, one.stages[0])
    assert found is not None
    assert found.computed == 0.5, "each epoch computes them"
    after = replace(before, sizes=measured.as_it_was(before.sizes, found))
    rows = measured.rows(after, found, "this run")
    again = replace(after, table=Table((tuple(rows),)))
    for name in ("generate", "train", "sync"):
        told_of = again.phases[name].seconds
        assert told_of is not None
        exactly = pytest.approx(found.seconds[name], rel=0.01)
        assert (told_of.low, told_of.high) == (exactly, exactly)


def test_what_a_row_says(recipe: Recipe) -> None:
    before = estimate(recipe, engines=2)
    found = measured.measured(STEPS, 0, recipe.stages[0])
    assert found is not None
    after = replace(before, sizes=measured.as_it_was(before.sizes, found))
    rows = {row.what: row for row in measured.rows(after, found, "this run")}
    assert rows["generate"].rate == Span(400, 400), "1600 tokens in 2 s, by two"
    assert rows["generate"].rows == 16
    assert rows["train"].rate == Span(1120, 1120), "half of 32 rows of 20 + 50 tokens in 1 s"
    assert rows["train"].engine == "deepspeed"
    assert rows["sync"].rate.low == pytest.approx(4 * before.shape.parameters / 0.25, rel=0.01)


@pytest.fixture
def run(recipe: Recipe) -> Path:
    folder = recipe.folder
    folder.mkdir(parents=True)
    (folder / runfolder.CONFIG).write_text(runfolder.resolved(recipe))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in STEPS))
    (folder / "environment.json").write_text(json.dumps({"machine": "x86_64, a CPU"}))
    return folder


def test_the_plan_of_a_run_tells_what_it_took(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(run)]) == 0
    out = capsys.readouterr().out
    assert f"# Stage 0, estimated and measured (means of 3 steps of {run})" in out
    lines = {words[0]: words for line in out.splitlines() if (words := line.split())}
    assert lines["generate,"][-1] == "2"
    assert lines["evaluate,"][-1] == "3"
    assert lines["response"][2:] == ["48-192", "50"]
    assert "  not estimated: checkpoint 0.5 s, driver 0.81 s, verify 0.12 s, means of" in out
    rows = out.partition("for --throughputs FILE:\n")[2].partition("\n\n")[0]
    own = tmp_path / "own.yaml"
    own.write_text(rows)
    assert {row.source for row in read(own).layers[0]} == {f"{run.name}, 3 steps, x86_64, a CPU"}
    assert told(read(own).layers[0]) == rows
    assert main(["plan", str(run), "--throughputs", str(own)]) == 0
    out = capsys.readouterr().out
    line = next(x for x in out.splitlines() if x.startswith("  generate, s"))
    assert line.split()[-2:] == ["2", "2"], "at these lengths, as measured"


def test_each_stage_is_held_against_its_own_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("extends: grpo/find\nstages: [{steps: 4}, {steps: 4}]\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / runfolder.CONFIG).write_text(runfolder.resolved(load(file)))
    later = [record(step, **{"time/generate": 7.0}) for step in range(5, 9)]
    lines = (json.dumps(one) + "\n" for one in [*STEPS, *later])
    (run / "metrics.jsonl").write_text("".join(lines))
    assert main(["plan", str(run)]) == 0
    out = capsys.readouterr().out
    first, second = out.partition("# Stage 0, estimated")[2].split("# Stage 1, estimated")
    assert " 2\n" in next(x for x in first.splitlines(True) if x.startswith("  generate, s"))
    assert " 7\n" in next(x for x in second.splitlines(True) if x.startswith("  generate, s"))
    assert "# Cost of all stages: 8 steps and 4 evaluations: " in out


def test_a_run_that_has_not_got_far(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").unlink()
    assert main(["plan", str(run)]) == 0
    out = capsys.readouterr().out
    assert f"# Stage 0: {run} has no two steps of it whose time is known" in out
    assert "# Resolved recipe" in out
