"""Risk: a record that loses, doubles or invents figures, or that stops the run it records."""

from __future__ import annotations

import contextlib
import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.verdict import Verdict
from samplers.types import Answer, Group, Plan, Prompt, Rollout, Tokens
from tests import vectors
from trainer import metrics, tracking
from trainer.console import Console, duration
from trainer.metrics import Clock, effective_gradient_ratio, summarise
from trainer.tracking import Tracker, TrackingConfig

PLAIN = TrackingConfig()


def tokens(count: int, finish: str = "stop", forced: int = 0) -> Tokens:
    logprobs = np.full(count, -0.1, dtype=np.float32)
    logprobs[:forced] = np.nan
    return Tokens(np.arange(count, dtype=np.int32), logprobs, finish, ((0, 7),))  # type: ignore[arg-type]


def rollout(index: int, think: int, closed: bool = True) -> Rollout:
    thought = tokens(think + closed, "stop" if closed else "length")
    answer = Answer(len(thought), tokens(2 if closed else 0), "A" if closed else None)
    return Rollout(0, 0, index, 1, Plan(64), tokens(3).ids_T, thought, closed, ((answer,),))


def group(statuses: list[str], thinks: list[int], serial: int = 0) -> Group:
    prompt = Prompt(serial, f"p{serial}", (), "A1+1?", "A", "exact")
    verdicts = tuple(((Verdict(s == "ok", float(s == "ok"), s),),) for s in statuses)  # type: ignore[arg-type]
    rollouts = tuple(
        rollout(i, t, s != "no_answer")
        for i, (s, t) in enumerate(zip(statuses, thinks, strict=True))
    )
    known = np.array([v[0][0].known for v in verdicts])
    score = np.where(known, [float(s == "ok") for s in statuses], np.nan)[:, None, None]
    rewards = {"correct": score, "length": np.where(known[:, None, None], -0.25, np.nan)}
    return Group(prompt, serial, rollouts, verdicts, rewards)


@vectors.each("effective_gradient_ratio")
def test_effective_gradient_ratio_of_the_vectors(case: vectors.Case) -> None:
    vectors.check(case, effective_gradient_ratio(case["inputs"]["groups"]))


def test_effective_gradient_ratio_leaves_unknowns_out_and_looks_at_every_cut() -> None:
    nan = np.nan
    alone = effective_gradient_ratio([[1, nan, nan], [nan, nan], [0, nan]])
    assert alone == {
        "prompt_level": 0.0,
        "response_level": 0.0,
        "all_positive_ratio": pytest.approx(1 / 3),
        "all_negative_ratio": pytest.approx(1 / 3),
    }
    # [G, C, A]: every rollout alike at the last cut, but not at the first.
    nested = np.array([[[1], [1]], [[0], [1]]])
    assert effective_gradient_ratio([nested])["prompt_level"] == 1.0
    # All wrong early and all right later is the same for all: nothing to compare.
    rising = np.array([[[0], [1]], [[0], [1]]])
    assert effective_gradient_ratio([rising])["prompt_level"] == 0.0


def test_summary_of_a_step_by_hand() -> None:
    groups = [
        group(["ok", "wrong", "timeout", "no_answer"], [10, 20, 30, 64], 0),
        group(["ok", "ok"], [12, 14], 1),
    ]
    out = summarise(groups, {"loss": 0.5, "tokens": 600})
    assert out["accuracy"] == pytest.approx(3 / 5)
    assert out["reward/correct"] == pytest.approx(3 / 5)
    assert out["reward/length"] == -0.25
    assert out["reward/total"] == pytest.approx(0.35)
    assert out["think_tokens/mean"] == pytest.approx(150 / 6)
    assert out["think_tokens/median"] == pytest.approx(17)
    assert out["answer_tokens/mean"] == pytest.approx(10 / 6)
    assert out["truncated"] == out["finish/length"] == pytest.approx(1 / 6)
    assert out["closed"] == pytest.approx(5 / 6)
    assert out["gradient/effective_prompts"] == 0.5
    assert out["gradient/effective_responses"] == pytest.approx(4 / 6)
    assert out["gradient/all_right"] == 0.5
    assert out["gradient/all_wrong"] == 0.0
    assert (out["unknown/timeout"], out["unknown/error"], out["unknown/gold_error"]) == (1, 0, 0)
    assert out["no_answer"] == pytest.approx(1 / 6)
    assert out["tokens/sampled"] == 150 + 5 + 10  # thoughts, end markers, answers
    assert (out["groups"], out["rollouts"], out["loss"]) == (2, 6, 0.5)
    assert not any(name.startswith(metrics.MACHINE) for name in out)


def test_modes_cuts_and_token_rewards_have_figures_of_their_own() -> None:
    made = group(["ok", "wrong", "ok"], [3, 5, 7])
    plans = [Plan(max_tokens=9, subgroup=key, cuts=(1, 9)) for key in ("low", "low", "high")]
    rollouts = tuple(replace(r, plan=p) for r, p in zip(made.rollouts, plans, strict=True))
    rewards = {"dense": tuple(np.full(4, -0.5) for _ in plans)}
    figures = summarise([replace(made, rollouts=rollouts, token_rewards=rewards)])
    assert figures["accuracy/low"] == 0.5
    assert figures["accuracy/high"] == 1.0
    assert figures["think_tokens/low"] == 4
    assert figures["think_tokens/high"] == 7
    assert figures["accuracy/cuts"] == pytest.approx(2 / 3)
    assert figures["reward/dense"] == -2.0


def test_times_and_throughput() -> None:
    timings = {"generate": 2.0, "train": 1.0, "step": 4.0}
    out = summarise([group(["ok", "wrong"], [10, 20])], {"tokens": 600}, timings)
    assert out["time/generate_tokens_per_s"] == pytest.approx((30 + 2 + 4) / 2)
    assert out["time/train_tokens_per_s"] == 600
    assert out["time/other_share"] == pytest.approx(0.25)
    assert out["memory/driver_gb"] > 0


def test_clock_counts_each_second_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock()
    now[0] = 1
    with clock.phase("generate"):
        now[0] = 3
        with clock.phase("grade"):
            now[0] = 3.5
        now[0] = 4
    with contextlib.suppress(KeyError), clock.phase("train"):
        now[0] = 6
        raise KeyError
    now[0] = 7
    assert clock.lap() == {"generate": 2.5, "grade": 0.5, "train": 2.0, "step": 7.0}
    now[0] = 8
    assert clock.lap() == {"step": 1.0}


def test_metrics_are_written_at_once_and_as_strict_json(tmp_path: Path) -> None:
    with Tracker(tmp_path, PLAIN, console=quiet()) as tracker:
        values = {
            "a": np.float32(0.1),
            "b": float("nan"),
            "c": np.int64(3),
            "d": float("inf"),
            "e": 123456.789,
        }
        tracker.log(1, values)
        text = (tmp_path / "metrics.jsonl").read_text()  # before close
    assert json.loads(text) == {"step": 1, "a": 0.1, "b": None, "c": 3, "d": None, "e": 123457.0}


def test_a_step_is_never_written_twice(tmp_path: Path) -> None:
    with Tracker(tmp_path, PLAIN, console=quiet()) as tracker:
        for step in (0, 1, 1, 0, 2):
            tracker.log(step, {"x": step})
    with Tracker(tmp_path, PLAIN, console=quiet()) as tracker:
        tracker.log(2, {"x": -1})
        tracker.log(3, {"x": 3})
    assert tracking.read(tmp_path) == [{"step": i, "x": i} for i in range(4)]


def test_resuming_drops_what_will_be_made_again(tmp_path: Path) -> None:
    with Tracker(tmp_path, PLAIN, console=quiet()) as tracker:
        for step in range(6):
            tracker.log(step, {"x": 1})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "x"')  # killed while writing
    with Tracker(tmp_path, PLAIN, first_step=3, console=quiet()) as tracker:
        assert tracker.last == 3
        tracker.log(4, {"x": 2})
    assert [(s["step"], s["x"]) for s in tracking.read(tmp_path)] == [
        (0, 1), (1, 1), (2, 1), (3, 1), (4, 2),
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "x": 1}\n{"step": 1, "x": 1}\n{"st')
    Tracker(tmp_path, PLAIN, first_step=3, console=quiet(said := io.StringIO())).close()
    assert "metrics.jsonl lacks steps 2 to 3" in said.getvalue()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join(["{broken", *lines]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: broken JSON"):
        tracking.read(tmp_path)


def test_what_comes_later_joins_its_step(tmp_path: Path) -> None:
    """A stage that begins where another ended evaluates a step that is already there."""
    with Tracker(tmp_path, PLAIN, console=quiet()) as tracker:
        tracker.log(3, {"x": 3})
    with Tracker(tmp_path, PLAIN, first_step=3, console=quiet()) as tracker:
        tracker.log(3, {"x": -1, "eval/accuracy": 0.5})
        tracker.log(3, {"x": -1, "eval/accuracy": 0.1})
        tracker.log(2, {"eval/accuracy": 0.7})
    assert tracking.read(tmp_path) == [{"step": 3, "x": 3, "eval/accuracy": 0.5}]


def test_samples_show_a_right_and_a_wrong_rollout(tmp_path: Path) -> None:
    groups = [
        group(["wrong", "wrong", "ok"], [5, 6, 7], 0),
        group(["ok", "timeout"], [8, 9], 1),
        group(["ok"], [3], 2),
    ]
    with Tracker(tmp_path, TrackingConfig(samples=3), console=quiet()) as tracker:
        tracker.samples(4, groups, lambda ids: [f"{len(i)} ids" for i in ids])
    rows = [
        json.loads(r) for r in (tmp_path / "rollouts" / "step-4.jsonl").read_text().splitlines()
    ]
    assert [(r["id"], r["rollout"], r["status"]) for r in rows] == [
        ("p0", 0, "wrong"), ("p0", 2, "ok"), ("p1", 0, "ok"),
    ]  # fmt: skip
    assert rows[1]["thought"] == "8 ids"
    assert rows[1]["rewards"] == {"correct": 1.0, "length": -0.25}
    assert rows[1]["version"] == 7


def quiet(said: io.StringIO | None = None) -> Console:
    from rich.console import Console as Terminal

    return Console(0, "run", terminal=Terminal(file=said or io.StringIO(), width=200))


def shown(terminal: bool, records: list[dict[str, Any]]) -> str:
    from rich.console import Console as Terminal

    stream = io.StringIO()
    console = Console(4, "grpo", terminal=Terminal(file=stream, force_terminal=terminal, width=150))
    for record in records:
        console.step(record)
    console.close()
    return stream.getvalue()


def test_console_degrades_to_one_line_a_step() -> None:
    evaluated = {"eval/accuracy": 0.66, "eval/think_tokens/mean": 82.0, "eval/anytime": 0.41}
    records: list[dict[str, Any]] = [
        {"step": 0, **evaluated},
        {"step": 1, "accuracy": 0.65625, "think_tokens/mean": 82.03, "entropy": None},
    ]
    lines = shown(False, records).splitlines()
    assert len(lines) == 2
    assert lines[0] == "grpo  step 0/4 (0%)  eval:  accuracy 0.660  thinking 82.0  any-time 0.410"
    assert lines[1].startswith("grpo  step 1/4 (25%)  accuracy 0.656  thinking 82.0  left 0:00")
    assert "\x1b" not in "".join(lines)
    live = shown(True, records)
    assert "\x1b" in live
    assert "eval:  accuracy 0.660" in live
    assert "1/4" in live


def test_durations() -> None:
    assert [duration(s) for s in (5, 75, 3700)] == ["0:05", "1:15", "1:01:40"]
