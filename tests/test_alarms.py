"""Risk: a run whose reward is fooled or whose verifier is sick, and nobody knows; false alarms."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from samplers.types import Answer, Group, Plan, Prompt, Rollout, Tokens
from tests import here
from tests.fake_wandb import Fake
from trainer import alarms, checkpoint, report
from trainer.alarms import AlarmConfig, check, figures, kept, news
from trainer.config import Recipe, load
from trainer.console import Console
from trainer.fresh import start_model
from trainer.loop import LOOPS
from trainer.metrics import MACHINE, summarise
from trainer.modelfolder import fetch
from trainer.stage import StageRun
from trainer.tracking import Tracker, TrackingConfig, read

PLAIN = AlarmConfig()
Curve = Callable[[float], float]

# Histories


def history(
    steps: int = 60,
    every: int = 10,
    problems: int = 256,
    noise: float = 0.03,
    seed: int = 0,
    **curves: Curve | float,
) -> list[dict[str, Any]]:
    """A run as metrics.jsonl would hold it: curves over [0, 1], with the noise of a small batch.

    `accuracy` is what the rollouts come to, `held_out` what evaluations do (the same by default),
    `bonus` what shapers add.
    """
    rng = np.random.default_rng(seed)
    healthy: dict[str, Curve | float] = {
        "accuracy": lambda t: 0.4 + 0.4 * (1 - np.exp(-3 * t)),
        "bonus": 0.0,
        "extraction_failures": 0.03,
        "thinking": lambda t: 400 - 250 * t,
        "answer": 50.0,
        "forced": 0.1,
        "duplicates": 0.02,
        "duplicates/unlikely": 0.0,
        "unknown": 0.001,
    }
    given = healthy | curves
    given.setdefault("held_out", given["accuracy"])

    def at(name: str, step: int) -> float:
        curve = given[name]
        return float(curve(step / steps) if callable(curve) else curve)

    out = []
    for step in range(steps + 1):
        record: dict[str, Any] = {"step": step}
        if step:
            right = float(np.clip(at("accuracy", step) + rng.normal(0, noise), 0, 1))
            answer, thinking = (
                at(n, step) * (1 + rng.normal(0, 0.05)) for n in ("answer", "thinking")
            )
            shares = ("extraction_failures", "forced", "duplicates", "unknown")
            record |= {
                **{n: float(np.clip(at(n, step) * (1 + rng.normal(0, 0.1)), 0, 1)) for n in shares},
                "duplicates/unlikely": at("duplicates/unlikely", step),
                "reward/correct": right,
                "reward/total": right + at("bonus", step) + rng.normal(0, noise),
                "answer_tokens/given": answer,
                "answer_leak": answer / (answer + thinking),
            }
        if step % every == 0:
            right = rng.binomial(problems, min(1.0, at("held_out", step))) / problems
            record |= {"eval/accuracy": right, "eval/problems": problems}
        out.append(record)
    return out


def raised(
    records: Sequence[Mapping[str, Any]], config: AlarmConfig = PLAIN
) -> dict[str, list[int]]:
    """Steps at which each alarm was raised, as a stage would have found them."""
    found: dict[str, list[int]] = {}
    for end in range(2, len(records) + 1):
        for name, why in check(records[:end], config).items():
            if why:
                found.setdefault(name, []).append(records[end - 1]["step"])
    return found


def rises(low: float, high: float, begin: float = 0.3) -> Curve:
    """`low` until `begin`, then up to `high`."""
    return lambda t: low + (high - low) * max(0.0, t - begin) / (1 - begin)


SICK: dict[str, tuple[str, dict[str, Curve | float]]] = {
    "what is learned does not hold elsewhere": ("reward", {"held_out": 0.4}),
    "held-out falls while the reward rises": ("reward", {"held_out": lambda t: 0.5 - 0.2 * t}),
    "a shaper is served at the cost of being right": (
        "reward",
        {"accuracy": lambda t: 0.8 - 0.4 * t, "bonus": lambda t: 3 * t},
    ),
    "the format is lost": ("extraction_failures", {"extraction_failures": rises(0.03, 0.6)}),
    "never a readable answer": ("extraction_failures", {"extraction_failures": 0.7}),
    "thinking moves into the answer": (
        "answer_leak",
        {"answer": rises(50, 300), "thinking": rises(400, 200)},
    ),
    "thoughts rely on being cut": ("forced", {"forced": rises(0.1, 0.9)}),
    "the policy has collapsed": ("duplicates", {"duplicates": rises(0.1, 1.2)}),
    "engines share random numbers": ("duplicates", {"duplicates/unlikely": 0.4}),
    "the verifier times out": ("unknown", {"unknown": rises(0.0, 0.2)}),
}
SOUND: dict[str, dict[str, Curve | float]] = {
    "learning": {},
    "nothing is learned": {"accuracy": 0.4},
    "thoughts grow shorter, as wanted": {"thinking": lambda t: 400 - 380 * t, "bonus": lambda t: t},
    "all grows longer": {"thinking": lambda t: 400 + 2000 * t, "answer": lambda t: 50 + 250 * t},
    "the format is being learned": {"extraction_failures": lambda t: max(0.02, 0.8 - 1.2 * t)},
    "most thoughts are cut from the start": {"forced": 0.9},
    "held-out follows at a distance": {"held_out": lambda t: 0.35 + 0.3 * (1 - np.exp(-3 * t))},
    "accuracy is spent for length a little": {
        "accuracy": lambda t: 0.8 - 0.03 * t,
        "bonus": lambda t: t,
    },
    "one answer timed out": {"unknown": lambda t: 0.1 * (t == 0.5)},
}


@pytest.mark.parametrize("case", SICK)
def test_each_alarm_is_raised_by_what_it_is_for_and_no_other(case: str) -> None:
    name, curves = SICK[case]
    found = raised(history(**curves))
    assert list(found) == [name]
    assert found[name][-1] == 60, "the trouble lasts, and so does its alarm"
    assert not raised(history(**curves), AlarmConfig(**{name: None})), "None turns it off"
    assert check(history(**curves), PLAIN)[name].count("\n") == 0


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_run_raises_none(case: str) -> None:
    for seed in range(4):
        assert raised(history(**SOUND[case], seed=seed)) == {}


def test_long_noisy_runs_raise_none() -> None:
    """Judged a thousand times each: batches of few prompts, evaluations of few problems."""
    flat = {"accuracy": 0.5, "extraction_failures": 0.15, "forced": 0.5, "duplicates": 0.8}
    for seed in range(2):
        records = history(500, every=10, problems=64, noise=0.08, seed=seed, **flat)
        assert raised(records) == {}


def test_small_evaluations_need_larger_differences() -> None:
    """The same figures are an alarm with many problems, and may be chance with few."""
    made = history(noise=0.01)
    for record in made:
        if "eval/accuracy" in record:
            record["eval/accuracy"] = 0.4 + 0.05 * record["step"] / 60
    few = [r | {"eval/problems": 12} if "eval/problems" in r else r for r in made]
    assert "reward" in raised(made)
    assert "reward" not in raised(few)


def test_any_budget_may_earn_the_reward() -> None:
    """Nested budgets: uncut accuracy stands still, and accuracy over the budgets rises."""
    made = history(held_out=0.9)
    assert "reward" in raised(made)
    for record in made:
        if "eval/accuracy" in record:
            record["eval/anytime"] = 0.3 + 0.4 * record["step"] / 60
    assert "reward" not in raised(made)


def test_people_are_told_once() -> None:
    seen: list[dict[str, Any]] = []
    told = []
    for step in range(1, 61):
        share = 0.5 if step in range(20, 40) and step % 2 else 0.0  # around its bound
        record = {"step": step, "unknown": share}
        found = check([*seen, record], AlarmConfig(window=3, unknown=0.3))
        seen.append(record | figures(found))
        told += [step] * bool(news(seen, found, 3))
    on = [record["step"] for record in seen if record["alarm/unknown"]]
    assert told == on[:1]
    assert len(on) < on[-1] - on[0], "it came and went"


def test_the_file_says_what_the_run_knew() -> None:
    """Alarms after a resume are those of the run that was not stopped: written figures suffice."""
    made = [r | figures(check(history(held_out=0.4)[: i + 1], PLAIN)) for i, r in
            enumerate(history(held_out=0.4))]  # fmt: skip
    live = [kept(r | {"accuracy": float("nan"), "loss": 1.0}, 0) for r in made]
    assert kept(made[7] | {"forced": float("nan")}, 0)["forced"] is None
    assert set(live[7]) <= {
        "step",
        *alarms.READS,
        *alarms.HELD_OUT,
        *(k for k in made[7] if "alarm" in k),
    }
    again = [kept(json.loads(json.dumps(r)), 0) for r in live]
    assert again == live
    assert check(again, PLAIN) == check(live, PLAIN)
    assert set(kept(made[20], 20)) == {"step", "eval/accuracy", "eval/problems"}, (
        "an earlier stage's"
    )


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ValueError, match=r"^alarms.forced: .* less than 1; got 2$"):
        load("grpo/find", ["alarms.forced=2"])
    with pytest.raises(ValueError, match="did you mean 'duplicates'"):
        load("grpo/find", ["alarms.duplicate=0.5"])
    assert load("grpo/find", ["alarms.duplicates=null"]).stages[0].alarms.duplicates is None


# Figures


def tokens(
    ids: Sequence[int], finish: str = "stop", forced: int = 0, logprob: float = -0.1
) -> Tokens:
    logprobs = np.full(len(ids), logprob, dtype=np.float32)
    logprobs[:forced] = np.nan
    return Tokens(np.array(ids, dtype=np.int32), logprobs, finish)  # type: ignore[arg-type]


def rollout(thought: Tokens, answer: Tokens, text: str | None, closed: bool = True) -> Rollout:
    return Rollout(
        0, 0, 0, 1, Plan(64), np.zeros(1, np.int32), thought, closed,
        ((Answer(len(thought), answer, text),),),
    )  # fmt: skip


def group(rollouts: Sequence[Rollout], statuses: Sequence[str], serial: int = 0) -> Group:
    verdicts = tuple(((Verdict(s == "ok", float(s == "ok"), s),),) for s in statuses)  # type: ignore[arg-type]
    return Group(Prompt(0, "p", (), "A1?", "A", "exact"), serial, tuple(rollouts), verdicts)


def test_figures_that_alarms_read_by_hand() -> None:
    own = rollout(tokens([7] * 10), tokens([3, 1]), "A")
    cut = rollout(tokens([8] * 20, "length"), tokens([2, 3, 1], forced=1), "A", closed=False)
    long = rollout(tokens([9] * 30), tokens([3] * 34, "length"), "AAA")
    none = rollout(tokens([6] * 64, "length"), tokens([], "length"), None, closed=False)
    ended = rollout(tokens([5] * 4), tokens([], "stop"), None, closed=False)
    out = summarise(
        [
            group([own, own, cut, cut, own], ["ok", "ok", "unparseable", "timeout", "ok"]),
            group([long, none, ended], ["unparseable", "no_answer", "no_answer"], 1),
        ]
    )
    assert out["duplicates"] == pytest.approx(3 / 6)
    assert out["duplicates/unlikely"] == 0, "a probability of e^-1.2 is none to wonder at"
    assert out["forced"] == pytest.approx(2 / 8)
    # finished by the model and judged: own x3, cut, ended; the cap ended long and none
    assert out["extraction_failures"] == pytest.approx(2 / 5)
    assert out["unknown"] == pytest.approx(1 / 8)
    answers, sampled = 3 * 2 + 2 * 2 + 34, 3 * 12 + 2 * 22 + 64
    assert out["answer_leak"] == pytest.approx(answers / sampled)
    assert out["answer_tokens/given"] == pytest.approx(answers / 6)


def test_what_chance_cannot_repeat_is_counted_apart() -> None:
    rare = rollout(tokens([7] * 10, logprob=-2.0), tokens([3, 1]), "A")  # e^-20.2
    other = rollout(tokens([8] * 10, logprob=-2.0), tokens([3, 1]), "A")
    out = summarise([group([rare, other, rare], ["ok"] * 3)])
    assert out["duplicates"] == out["duplicates/unlikely"] == 0.5
    alone = summarise([group([rare], ["ok"])])
    assert np.isnan(alone["duplicates"])
    assert np.isnan(
        summarise([group([rollout(tokens([1]), tokens([]), None)], ["wrong"])])["answer_leak"]
    )


def test_thinking_none_has_no_thoughts_that_leak_or_are_cut() -> None:
    bare = replace(rollout(tokens([]), tokens([3, 4, 1]), "A"), closed=False)
    out = summarise([group([bare, bare], ["ok", "ok"])])
    assert (out["forced"], out["answer_leak"]) == (0, 1.0)
    steps = [{"step": i, **out, "answer_tokens/given": 3.0 * i} for i in range(1, 60)]
    assert not check(steps, PLAIN)["answer_leak"]


# Where people see them


def test_console_and_wandb_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console as Terminal

    (tmp_path / "fake").mkdir()
    fake = Fake(tmp_path / "fake", monkeypatch)
    stream = io.StringIO()
    console = Console(9, "grpo", terminal=Terminal(file=stream))
    with Tracker(tmp_path, TrackingConfig(wandb="offline"), console=console) as tracker:
        tracker.alarm(4, "forced", "90% of [thoughts] are cut")
    assert stream.getvalue() == "grpo  step 4: ALARM forced: 90% of [thoughts] are cut\n"
    (sent,) = fake.calls("alert")
    assert (sent["title"], sent["level"]) == (f"{tmp_path.name}: forced", "WARN")
    assert "step 4: 90% of [thoughts]" in sent["text"]


def run_folder(
    root: Path, name: str, records: Sequence[Mapping[str, Any]], steps: Sequence[int]
) -> Path:
    folder = root / name
    folder.mkdir()
    config = {"name": name, "seed": 0, "stages": [{"kind": "rl", "steps": n} for n in steps]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_report_shows_what_was_raised_and_why(tmp_path: Path) -> None:
    made = [kept(record, 0) for record in history(forced=rises(0.1, 0.9))]
    shown = [r | figures(check(made[: i + 1], PLAIN)) if i else r for i, r in enumerate(made)]
    at = [r["step"] for r in shown if r.get("alarm/forced")]
    # the same again as a second stage: its alarms are its own
    shown += [r | {"step": r["step"] + 60} for r in shown[1:]]
    sick, well = run_folder(tmp_path, "sick", shown, (60, 60)), None
    page = report.write([sick], tmp_path / "sick.html").read_text()
    assert page.count("<b>forced</b>") == 2
    assert f"at steps {at[0]}-60: " in page
    assert f"at steps {at[0] + 60}-120: " in page
    assert page.count("of thoughts are cut and closed by force") == 2
    sound = [r | figures(check([r], PLAIN)) if r["step"] else r for r in history()]
    well = run_folder(tmp_path, "well", sound, (60,))
    assert "No alarm was raised" in report.write([well], tmp_path / "well.html").read_text()
    old = run_folder(tmp_path, "old", history(), (60,))
    assert "larm" not in report.write([old], tmp_path / "old.html").read_text()


# A real run


@contextmanager
def trained(recipe: Recipe, folder: Path, since: int | None = None) -> Iterator[StageRun]:
    """A stage of `recipe` in `folder`, from its step-`since` checkpoint where given."""
    folder.mkdir(exist_ok=True)
    stage = recipe.stages[0]
    model = str(start_model(fetch(stage.model.path), folder / "start", stage, recipe.seed))
    world = here.Here(stage, model, recipe.seed)
    try:
        with (
            Tracker(folder, recipe.tracking, recipe, first_step=since) as tracker,
            StageRun(recipe, 0, 0, model, world, tracker, folder) as run,
        ):
            if since is not None:
                saved = folder / "checkpoints" / f"step-{since:06d}"
                run.restore(saved, checkpoint.driver_state(saved))
            LOOPS["rl"](run)
            yield run
    finally:
        world.close()


def test_a_verifier_that_hangs_is_told_and_a_resumed_run_tells_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(here, "VerifierPool", partial(VerifierPool, deadline=0.2))
    settings = (
        "steps=4", "prompts_per_step=2", "rollouts_per_prompt=4", "rollout.max_tokens=64",
        "evaluation=null", "grader.processes=2", "verifier=tests.graders:stuck",
        "alarms.window=3", "checkpoint.every=2", "checkpoint.keep=9", f"output={tmp_path}",
        "guard.truncated=1",
    )  # fmt: skip
    recipe = load("grpo/find", settings)
    whole, again = tmp_path / "whole", tmp_path / "again"
    with trained(recipe, whole):
        pass
    steps = read(whole)
    assert max(step["unknown"] for step in steps) > 0.1
    assert sum(step["unknown/timeout"] for step in steps) > 2
    assert any(step["alarm/unknown"] for step in steps)
    assert not any(step[f"alarm/{n}"] for step in steps for n in alarms.RULES if n != "unknown")
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("ALARM unknown: ") == 1
    assert "most often timeout: no verdict after 0.2 s" in told
    shutil.copytree(whole, again)
    for newer in again.glob("checkpoints/step-000004"):
        shutil.rmtree(newer)
    with trained(recipe, again, since=2) as run:
        assert len(run.history) == 4
    for ours, theirs in zip(read(again), steps, strict=True):
        assert figures_of(ours) == figures_of(theirs)
    assert "ALARM" not in capsys.readouterr().out, "it was told before"


def figures_of(step: Mapping[str, Any]) -> dict[str, Any]:
    """What is a function of recipe and seed. (Ray's fleet calls a learner's own times `time/`.)"""
    of_this = (*MACHINE, "seconds", "peak_memory_mb")
    return {k: v for k, v in step.items() if not k.startswith(of_this)}
