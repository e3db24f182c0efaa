"""A supervised stage that makes its own examples: what they hold, made once, refused early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from rewards.verdict import Verdict
from tests.here import Here
from trainer import preflight
from trainer.config import resolve
from trainer.fresh import start_model
from trainer.modelfolder import fetch
from trainer.stage import StageRun
from trainer.traces import base
from trainer.tracking import Tracker, read

MODES = {
    "high": {"ratio": 1, "suffix": "<b1>"},
    "low": {"ratio": 0.25, "suffix": "<b2>"},
    "none": {"ratio": 0, "suffix": "<b3>"},
}
SHORT = {"name": "shortest_correct", "prompts": 6, "samples": 4, "keep": 2}
EFFORT = {"name": "budget_modes", "prompts": 12, "samples": 3, "connective": "..", "modes": MODES}


def recipe(folder: Path, traces, **fields):
    return resolve(
        {
            "name": "made",
            "output": str(folder),
            "kind": "sft",
            "steps": 2,
            "model": {"path": "base/find"},
            "data": {"task": "find"},
            "supervised": {"traces": traces, "batch_tokens": 512},
            "loss": {"name": "ce"},
            "rollout": {"max_tokens": 128},
            **fields,
        }
    )


@contextmanager
def stage(whole):
    """The first stage in this process, its examples not yet supplied; and its model."""
    preflight.check_all(whole)
    first, folder = whole.stages[0], whole.folder
    folder.mkdir(parents=True, exist_ok=True)
    model = str(start_model(fetch(first.model.path), folder / "start", first, whole.seed))
    world = Here(first, model, whole.seed)
    try:
        with (
            Tracker(folder, whole.tracking, whole) as tracker,
            StageRun(whole, 0, 0, model, world, tracker, folder) as run,
        ):
            yield run, model
    finally:
        world.close()


def watch(run) -> list:
    """All rollouts that the stage's engines will make."""
    seen, rollout = [], run.world.rollout

    def watched(jobs):
        out = rollout(jobs)
        seen.extend(zip(jobs, out, strict=True))
        return out

    run.world.rollout = watched
    return seen


def rows_of(run) -> list:
    """A whole pool of the stream's rows, in the order of the examples."""
    batches = [run.stream.next()]
    batches += [run.stream.next() for _ in run.stream._pool[1:]]
    return sorted((row for rows in batches for row in rows), key=lambda row: row.prompt)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / base.EXAMPLES).read_text().splitlines()]


def test_rows_are_the_ids_of_the_shortest_right_rollouts(tmp_path):
    whole = recipe(tmp_path, SHORT)
    with stage(whole) as (run, model):
        seen = watch(run)
        base.supply(run, model)
        rows, examples = rows_of(run), lines(whole.folder / "traces-0")
        by_prompt = defaultdict(list)
        for job, rollout in seen:
            ids = np.concatenate([rollout.thought.ids_T, rollout.final.tokens.ids_T]).tolist()
            if rollout.final.text == job.prompt.answer and not rollout.truncated:
                by_prompt[job.prompt.id].append((len(ids), job.index, rollout, ids))
    assert len(seen) == 24
    expected = [one for ids in by_prompt.values() for one in sorted(ids, key=lambda t: t[:2])[:2]]
    assert len(examples) == len(rows) == len(expected) > 6
    for row, example, (length, _, rollout, ids) in zip(rows, examples, expected, strict=True):
        assert row.ids_T.tolist() == [*rollout.prompt_ids_T, *ids]
        assert row.mask_T.tolist() == [False] * len(rollout.prompt_ids_T) + [True] * length
        assert example["response"].endswith("<eos>")
        assert example["prompt"].endswith("?<think>")
    logged = read(whole.folder)[0]
    assert logged["traces/rollouts"] == 24
    assert logged["traces/kept"] == len(rows)
    assert logged["traces/right"] == sum(map(len, by_prompt.values()))
    assert logged["traces/tokens"] == sum(r.sampled_tokens for _, r in seen)
    assert logged["traces/length"] == pytest.approx(np.mean([one[0] for one in expected]))


def test_modes_are_shares_of_one_thought_answered_anew(tmp_path):
    whole = recipe(tmp_path, EFFORT)
    with stage(whole) as (run, model):
        seen = watch(run)
        base.supply(run, model)
        rows, examples = rows_of(run), lines(whole.folder / "traces-0")
    golds = {job.prompt.id: job.prompt.answer for job, _ in seen}
    by_prompt = defaultdict(dict)
    for row, example in zip(rows, examples, strict=True):
        by_prompt[example["id"]][example["mode"]] = example["response"]
        assert example["prompt"].endswith(f"?{MODES[example['mode']]['suffix']}<think>")
        assert row.ids_T.tolist() == [*example["prompt_ids"], *example["response_ids"]]
        assert row.mask_T.sum() == len(example["response_ids"]), "forced text is imitated too"
    assert {mode for modes in by_prompt.values() for mode in modes} == set(MODES)
    for name, modes in by_prompt.items():
        thought, _, _ = modes["high"].partition("</think>")
        end = f"</think>{golds[name]}<eos>"
        assert modes["high"] == thought + end
        if "low" in modes:
            assert modes["low"] == thought[: len(thought) // 4] + ".." + end
        assert modes.get("none", end) == end
    logged = read(whole.folder)[0]
    for mode in MODES:
        kept = sum(mode in modes for modes in by_prompt.values())
        assert logged[f"traces/kept/{mode}"] == kept
        asked = sum(job.plan.subgroup == mode for job, _ in seen)
        assert logged[f"traces/dropped/{mode}"] == asked - kept
    assert len(seen) == 12 * 3 + 2 * len(by_prompt)
    assert len({job.seed for job, _ in seen}) == len(seen)


def test_a_stage_that_goes_on_reads_what_was_made(tmp_path):
    whole = recipe(tmp_path, SHORT)
    with stage(whole) as (run, model):
        base.supply(run, model)
        first = [row.ids_T.tolist() for row in run.stream.next()]
        state = json.loads(json.dumps(run.stream.state_dict()))
        after = [[row.ids_T.tolist() for row in run.stream.next()] for _ in range(4)]
    with stage(whole) as (run, model):
        run.world.rollout = None
        base.supply(run, model)
        assert [row.ids_T.tolist() for row in run.stream.next()] == first
    with stage(whole) as (run, model):
        base.supply(run, model)
        run.stream.load_state_dict(state)
        assert [[row.ids_T.tolist() for row in run.stream.next()] for _ in range(4)] == after


def test_examples_do_not_depend_on_how_many_are_sampled_at_once(tmp_path, monkeypatch):
    texts = []
    for at_once in (base.AT_ONCE, 9):
        whole = recipe(tmp_path / str(at_once), EFFORT)
        monkeypatch.setattr(base, "AT_ONCE", at_once)
        with stage(whole) as (run, model):
            seen = watch(run)
            base.supply(run, model)
        texts.append((whole.folder / "traces-0" / base.EXAMPLES).read_text().splitlines())
        assert len({job.group for job, _ in seen}) == 12
    assert sorted(texts[0]) == sorted(texts[1])


def test_the_budget_policy_says_how_examples_are_sampled(tmp_path):
    budget = {"name": "fixed", "think": 12, "answer": 4, "suffix": "<b4>"}
    whole = recipe(tmp_path, SHORT | {"prompts": 12}, budget=budget)
    with stage(whole) as (run, model):
        base.supply(run, model)
    for example in lines(whole.folder / "traces-0"):
        thought, _, _ = example["response"].partition("</think>")
        assert len(thought) <= 12
        assert example["prompt"].endswith("<b4><think>")


def test_nothing_to_keep_is_an_error_and_leaves_nothing(tmp_path):
    whole = recipe(tmp_path, SHORT, rollout={"max_tokens": 2})
    with stage(whole) as (run, model), pytest.raises(ValueError) as error:
        base.supply(run, model)
    assert str(error.value).startswith(
        "supervised.traces: none of 24 rollouts of 6 prompts is to be kept (0 are right); raise"
    )
    assert not list(whole.folder.glob("traces-*"))


def test_a_mode_without_examples_is_told(tmp_path):
    modes = {"high": MODES["high"], "none": MODES["none"]}
    whole = recipe(tmp_path, EFFORT | {"modes": modes, "prompts": 2, "samples": 6})

    with stage(whole) as (run, model):
        grade = run.world.grade
        calls = []

        def graded(items):
            calls.append(1)
            verdicts = grade(items)
            return verdicts if len(calls) == 1 else [Verdict(False, 0.0, "wrong")] * len(verdicts)

        run.world.grade = graded
        with pytest.warns(UserWarning, match="nothing of mode 'none' is kept of"):
            base.supply(run, model)
    assert read(whole.folder)[0]["traces/kept/none"] == 0


# mistakes


@pytest.mark.parametrize(
    ("traces", "says"),
    [
        ("shortest_corect", r"supervised.traces: .*did you mean 'shortest_correct'"),
        (
            {"name": "shortest_correct", "sample": 4},
            "sample: unknown field; did you mean 'samples'",
        ),
        ({"name": "shortest_correct", "keep": 0}, "keep: .*greater than or equal to 1; got 0"),
        ({"name": "budget_modes", "modes": {}}, "0 of none have ratio 1; exactly one must"),
        (EFFORT | {"modes": {"a": MODES["high"], "b": MODES["high"]}}, "2 of a, b have ratio 1"),
        (EFFORT | {"modes": {"a": {"ratio": 2}}}, "modes.a.ratio: .* got 2"),
        (
            EFFORT | {"modes": {"a": {"ratio": 1}, "b": {"ratio": 0}}},
            "'a' and 'b' are asked for in the same way",
        ),
        ("samplers.seeds", "'samplers.seeds' lacks Config or make"),
    ],
)
def test_wrong_settings_are_told(tmp_path, traces, says):
    with pytest.raises(ValueError, match=says) as error:
        recipe(tmp_path, traces)
    assert "\n" not in str(error.value)


def test_traces_leave_no_place_for_a_curriculum_or_a_column(tmp_path):
    phases = [{"until": 0.5, "settings": {}}]
    with pytest.raises(ValueError, match="curriculum: has no place beside traces"):
        recipe(tmp_path, SHORT, supervised={"traces": SHORT, "curriculum": phases})
    with pytest.warns(UserWarning, match="completion has no effect beside traces"):
        recipe(tmp_path, SHORT, supervised={"traces": SHORT, "completion": "text"})


def test_preflight_looks_at_what_will_be_sampled(tmp_path):
    plain = recipe(tmp_path, EFFORT, thinking="none")
    with pytest.raises(ValueError, match=r"supervised.traces=budget_modes needs thinking markers"):
        preflight.check_all(plain)
    few = recipe(tmp_path, SHORT, data={"task": "find", "limit": 3})
    with pytest.warns(UserWarning, match=r"traces.prompts=6: the data hold 3"):
        preflight.check_all(few)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"problem": "A1+6?", "answer": "x y"}) + "\n")
    golds = recipe(tmp_path, SHORT | {"prompts": 1}, data={"path": str(rows)}, verifier="numeric")
    with pytest.raises(ValueError, match="rejects the gold of 1 of 1 rows"):
        preflight.check_all(golds)
    cap = recipe(tmp_path, SHORT, rollout={"max_tokens": 4096})
    with pytest.raises(ValueError, match=r"rollout.max_tokens=4096: .* exceeds the context"):
        preflight.check_all(cap)


# real runs

TWO_STAGES = """
extends: grpo/find
steps: 2
data: {task: find}
stages:
  - kind: sft
    steps: 3
    loss: {name: ce}
    supervised:
      batch_tokens: 512
      traces:
        name: budget_modes
        prompts: 8
        connective: .
        modes: {high: {ratio: 1, suffix: <b1>}, low: {ratio: 0.5, suffix: <b2>}}
  - prompts_per_step: 4
    rollouts_per_prompt: 4
"""


def launch(folder: Path, *more: str) -> subprocess.Popen:
    (folder / "two.yaml").write_text(TWO_STAGES)
    small = ("evaluation=null", "rollout.max_tokens=96", "checkpoint.every=1", "name=two")
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "train", str(folder / "two.yaml"),
         f"output={folder}", *small, *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def figures(folder: Path) -> list[dict]:
    machine = ("time/", "memory/")
    return [{k: v for k, v in row.items() if not k.startswith(machine)} for row in read(folder)]


@pytest.mark.slow
def test_own_examples_then_reinforcement_and_a_run_that_was_killed_equals_one_that_was_not(
    tmp_path,
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    run = launch(whole)
    _, errors = run.communicate(timeout=280)
    assert run.returncode == 0, errors[-3000:]
    reference = figures(whole / "two-seed0")
    assert [row["step"] for row in reference] == [0, 1, 2, 3, 4, 5]
    assert reference[0]["traces/kept/low"] > 0
    assert reference[4]["rollouts"] == 16

    run, folder = launch(killed), killed / "two-seed0"
    until = time.monotonic() + 240
    while not (folder / "checkpoints" / "step-000001" / "COMPLETE").exists():
        assert run.poll() is None, run.communicate()[1][-3000:]
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    examples = folder / "traces-0" / base.EXAMPLES
    made_at = examples.stat().st_mtime_ns
    again = launch(killed)
    _, errors = again.communicate(timeout=280)
    assert again.returncode == 0, errors[-3000:]
    assert figures(folder) == reference
    assert examples.stat().st_mtime_ns == made_at
