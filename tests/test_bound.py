"""Risk: advice that is wrong, refused, without effect, or more than the machine has."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.placement import place
from trainer.bound import PHASES, Adviser, Bound, Machine, bound
from trainer.config import Recipe, load, resolve
from trainer.console import Console
from trainer.settings import override


def figures(step: float = 10.0, **seconds: float) -> dict[str, float]:
    """Metrics of a step whose phases took so long."""
    wait = seconds.pop("wait", 0.0)
    other = max(0.0, 1 - sum(seconds.values()) / step)
    times = {f"time/{name}": s for name, s in seconds.items()}
    return {"time/step": step, "time/wait": wait, "time/other_share": other, **times}


def found(recipe: Recipe, machine: Machine, index: int = 0, **seconds: float) -> Bound:
    result = bound(figures(**seconds), recipe, index, machine)
    assert result is not None
    return result


def changes(result: Bound) -> list[str]:
    return [" ".join(change.settings) for change in result.changes if change.settings]


def recipe(*assignments: str, name: str = "grpo/find") -> Recipe:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(name, assignments)


def test_the_line() -> None:
    said = str(found(recipe(), Machine(2), generate=7.1, train=2.5))
    assert said == (
        "bound by generation: 71% of the step; rollout.workers=2 could halve it, or "
        "max_staleness=1 with deterministic=false overlaps it with training"
    )
    alone = str(found(recipe(), Machine(1), generate=7.1, train=2.5))
    assert alone == "bound by generation: 71% of the step; no setting shortens it on this machine"


@pytest.mark.parametrize(
    ("seconds", "phase"),
    [
        ({"generate": 5, "train": 4}, "generation"),
        ({"generate": 4, "train": 5}, "training"),
        ({"generate": 4, "train": 3, "score": 2}, "training"),  # scoring passes are the learners'
        ({"generate": 2, "train": 2, "verify": 5}, "verification"),
        ({"generate": 2, "train": 2, "sync": 5}, "weight sync"),
        ({"generate": 2, "train": 2, "evaluate": 5}, "evaluation"),
        ({"generate": 2, "train": 2, "checkpoint": 5}, "checkpoints"),
        ({"generate": 2, "train": 2}, "the driver"),
    ],
)
def test_the_longest_phase_bounds_a_step_without_overlap(
    seconds: dict[str, float], phase: str
) -> None:
    result = found(recipe(), Machine(4), **seconds)
    assert result.phase == phase
    assert result.share == pytest.approx(0.6 if phase == "the driver" else 0.5, abs=0.01)


AHEAD = ("max_staleness=1", "deterministic=false")


def test_with_overlap_the_side_that_is_awaited_bounds_the_step() -> None:
    """Both are busy nearly all the time; who waits tells them apart."""
    waiting = found(recipe(*AHEAD), Machine(8), generate=9.5, train=6, wait=3.5)
    assert (waiting.phase, waiting.share) == ("generation", pytest.approx(0.95))
    assert changes(waiting) == ["rollout.workers=2"]
    full = found(recipe(*AHEAD), Machine(8), generate=9.7, train=9.5, wait=0.1)
    assert full.phase == "training"
    assert changes(full) == ["learner.ranks=2"]


def test_processes_that_take_turns_share_the_cores_and_those_that_overlap_do_not() -> None:
    assert changes(found(recipe(), Machine(2), generate=9))[0] == "rollout.workers=2"
    assert changes(found(recipe(*AHEAD), Machine(2), generate=9, wait=5)) == []
    booked = Machine(3, booked=True)  # a learner, an engine and a grader
    assert "rollout.workers=2" not in changes(found(recipe(), booked, generate=9))
    two = recipe("rollout.workers=2", "rollout.engine.threads=2")
    assert "rollout.workers=3" in changes(found(two, Machine(6), generate=9))
    assert "rollout.workers=4" in changes(found(two, Machine(9), generate=9))
    assert not changes(found(two, Machine(5), generate=9))
    assert not changes(found(recipe("rollout.engine.threads=0"), Machine(8), generate=9))


def test_overlap_is_advised_where_it_hides_something_and_is_allowed() -> None:
    offer = "max_staleness=1 deterministic=false"
    assert offer in changes(found(recipe(), Machine(2), generate=6, train=3.9))
    assert offer not in changes(found(recipe(), Machine(2), generate=9.5, train=0.4))
    assert offer not in changes(found(recipe(), Machine(1), generate=6, train=3.9))
    free = recipe("deterministic=false")
    assert "max_staleness=1" in changes(found(free, Machine(2), train=6, generate=3.9))
    # a correction that was turned off has to be turned on again
    off = recipe("loss.importance=none")
    wanted = f"{offer} loss.importance=token"
    assert wanted in changes(found(off, Machine(2), train=6, generate=3.9))
    crowded = Machine(16, gpus=1)  # learner and engine on one GPU can only take turns
    assert offer not in changes(found(recipe(), crowded, train=6, generate=3.9))
    assert offer in changes(found(recipe(), Machine(16, gpus=2), train=6, generate=3.9))


def test_a_group_has_one_engine() -> None:
    small = recipe("prompts_per_step=3", "rollout.workers=2")
    assert "rollout.workers=3" in changes(found(small, Machine(16), generate=9))
    assert not changes(found(recipe("prompts_per_step=1"), Machine(16), generate=9))


def test_rows_are_those_that_an_allocator_has_at_once() -> None:
    """More slots help who samples many of a prompt together, not who tries one after another."""
    more = "rollout.engine.slots=512"

    def advised(*assignments: str) -> bool:
        mine = recipe("rollout.engine.slots=256", *assignments)
        return more in changes(found(mine, Machine(32, gpus=4), generate=9))

    assert not advised()
    assert not advised("data.limit=64", "allocation=knapsack")
    assert not advised("allocation=dynamic", "max_staleness=1")
    assert advised("allocation={name: oversample, samples: 32}")
    assert not advised("allocation={name: reinforce_ada, rounds: 4, per_round: 8}")
    assert advised("allocation={name: reinforce_ada, rounds: 2, per_round: 16}")
    assert advised("allocation={name: gvm, pilot: 8}")


def test_training_on_gpus() -> None:
    slow = recipe("learner.gradient_checkpointing=true")
    told = bound(figures(train=9, generate=0.5) | {"tokens": 10**6}, slow, 0, Machine(32, gpus=4))
    assert told is not None
    assert changes(told) == [
        "learner.ranks=2", "learner.gradient_checkpointing=false", "tokens_per_micro_batch=8192",
    ]  # fmt: skip
    assert not changes(found(recipe(), Machine(32, gpus=2), train=9, generate=0.5))


def test_verifiers_in_processes_and_in_the_worker() -> None:
    quick = found(recipe("verifier=exact"), Machine(4), verify=9)
    assert changes(quick) == ["grader.workers=2"]
    hang = found(recipe("verifier=math"), Machine(4), verify=9)
    assert changes(hang) == ["grader.processes=4"]
    full = recipe("verifier=math", "grader.processes=4")
    assert not changes(found(full, Machine(4), verify=9))


def test_what_happens_every_so_often() -> None:
    often = recipe("evaluation.every=5", "evaluation.problems=64", "steps=100")
    assert changes(found(often, Machine(2), evaluate=9)) == [
        "evaluation.every=10", "evaluation.problems=32",
    ]  # fmt: skip
    last = recipe("evaluation.every=60", "evaluation.problems=64", "steps=100")
    assert changes(found(last, Machine(2), evaluate=9)) == ["evaluation.problems=32"]
    saved = recipe("checkpoint.every=5", "steps=100")
    assert changes(found(saved, Machine(2), checkpoint=9)) == ["checkpoint.every=10"]
    assert not changes(found(recipe("checkpoint.every=0"), Machine(2), checkpoint=9))


def test_a_stage_of_several_is_named() -> None:
    whole = recipe().model_dump(mode="json", exclude_unset=True)
    warm = {"kind": "sft", "loss": {"name": "ce"}, "supervised": {"pool": 8}}
    two = resolve({**whole, "stages": [{**whole["stages"][0], **warm}, whole["stages"][0]]})
    assert changes(found(two, Machine(2), index=1, generate=6, train=3.9)) == [
        "stages.1.rollout.workers=2", "stages.1.max_staleness=1 deterministic=false",
    ]  # fmt: skip
    taught = found(two, Machine(2), index=0, train=9)
    assert changes(taught) == ["stages.0.learner.ranks=2"], "nothing is generated beside it"


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "max_staleness": st.sampled_from([1, 2]),
        "deterministic": st.booleans(),
        "rollout.workers": st.integers(1, 5),
        "rollout.engine.threads": st.integers(0, 3),
        "learner.ranks": st.integers(1, 4),
        "learner.threads": st.integers(1, 3),
        "learner.zero": st.sampled_from([0, 1, 3]),
        "learner.gradient_checkpointing": st.booleans(),
        "grader.workers": st.integers(1, 3),
        "prompts_per_step": st.integers(1, 8),
        "loss.importance": st.sampled_from(["none", "token", "sequence"]),
        "verifier": st.sampled_from(["exact", "math"]),
        "model.dtype": st.sampled_from(["float32", "bfloat16"]),
        "checkpoint.every": st.integers(0, 9),
        "sync.transport": st.sampled_from(["auto", "shm"]),
    },
)
SECONDS = st.fixed_dictionaries(
    {phase: st.floats(0, 10) for phases in PHASES.values() for phase in phases}
    | {"wait": st.floats(0, 3)}
)


@settings(max_examples=150, deadline=None)
@given(SETTINGS, SECONDS, st.integers(1, 16), st.integers(0, 8))
def test_whatever_is_advised_is_taken_and_fits(
    chosen: dict[str, Any], seconds: dict[str, float], cores: int, gpus: int
) -> None:
    """Resolved again with each change: no refusal, no new warning, and processes have room."""
    with warnings.catch_warnings(record=True) as before:
        warnings.simplefilter("always")
        try:
            mine = load("grpo/find", [f"{k}={str(v).lower()}" for k, v in chosen.items()])
            place(mine.stages[0], gpus)
        except ValueError:
            return
    result = bound(figures(sum(seconds.values()) + 1, **seconds), mine, 0, Machine(cores, gpus))
    assert result is not None
    for change in result.changes:
        top = ("deterministic", "checkpoint")
        settings = [s if s.startswith(top) else f"stages.0.{s}" for s in change.settings]
        raw = mine.model_dump(mode="json", exclude_unset=True)
        with warnings.catch_warnings(record=True) as after:
            warnings.simplefilter("always")
            better = resolve(override(raw, settings))
        assert {str(w.message) for w in after} <= {str(w.message) for w in before}
        assert not change.settings or better != mine
        stage = better.stages[0]
        placed = place(stage, gpus)
        engines = stage.rollout.workers * (stage.rollout.engine.threads or 1)
        learners = stage.learner.ranks * stage.learner.threads
        if "max_staleness" in str(settings):
            assert not placed.shared
            assert gpus or engines + learners <= cores
        elif not gpus and "workers" in str(settings) and result.phase == "generation":
            assert engines <= cores
        elif not gpus and "ranks" in str(settings):
            assert learners <= cores


def record(step: int, **seconds: float) -> dict[str, Any]:
    return {"step": step, "loss": None, **figures(**seconds)}


def test_the_adviser_speaks_at_the_third_step_when_it_changes_and_at_the_end() -> None:
    adviser = Adviser(recipe(), 0, Machine(2))
    slow, quick = {"generate": 7.0, "train": 2.0}, {"generate": 1.0, "train": 8.0}
    assert adviser.step({"step": 0, "time/evaluate": 5.0, "time/step": 5.0}) is None
    said = [adviser.step(record(i, **slow)) for i in range(1, 7)]
    assert [bool(s) for s in said] == [False, False, True, False, False, False]
    assert adviser.now.startswith("bound by generation: 70% of the step")
    said = [adviser.step(record(i, **quick)) for i in range(7, 14)]
    (change,) = [s for s in said if s]
    assert change.startswith("bound by training: 80% of the step")
    assert said.index(change) >= 2, "one step that differs is none"
    end = adviser.end()
    assert end is not None
    assert end.startswith("bound by training: ")
    assert f"{(6 * 2 + 7 * 8) / 130:.0%}" in end, "the end tells of all steps"


def test_the_wait_for_the_first_batch_ahead_says_nothing() -> None:
    """It is there whichever side is the longer one."""
    first, later = {"generate": 5, "train": 4, "wait": 4}, {"generate": 5, "train": 9, "wait": 0.1}
    adviser = Adviser(recipe(*AHEAD), 0, Machine(8))
    said = [adviser.step(figures(**seconds)) for seconds in (first, later, later)]
    assert said[:2] == [None, None]
    assert said[2] is not None
    assert said[2].startswith("bound by training")
    assert str(adviser.end()).startswith("bound by training")
    adviser = Adviser(recipe(*AHEAD), 0, Machine(8))
    for _ in range(3):
        told = adviser.step(figures(generate=9, train=4, wait=4))
    assert str(told).startswith("bound by generation")


def test_one_slow_step_is_no_change() -> None:
    adviser = Adviser(recipe(), 0, Machine(2))
    said = [
        adviser.step(record(i, **({"train": 9.0} if i == 5 else {"generate": 6.0, "train": 3.0})))
        for i in range(1, 12)
    ]
    assert [i for i, s in enumerate(said, 1) if s] == [3]
    assert Adviser(recipe(), 0, Machine(2)).end() is None


@pytest.mark.parametrize("live", [False, True])
def test_the_console_says_it_once_and_at_the_end(live: bool) -> None:
    from rich.console import Console as Terminal

    stream = io.StringIO()
    terminal = Terminal(file=stream, force_terminal=live, width=150)
    console = Console(5, "run", terminal=terminal)
    console.advise(Adviser(recipe(), 0, Machine(2)))
    for i in range(1, 5):
        console.step(record(i, generate=7.0, train=2.0))
    if live:
        console._live.refresh()
    console.advise(None)
    console.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n")
    lines = [line for line in text.splitlines() if "bound by" in line]
    stays = [line for line in lines if line.startswith("run  bound by generation: 70%")]
    if live:  # below its bar, and once above it when the stage ends
        assert len(lines) > len(stays) == 1
    else:
        assert len(lines) == len(stays) == 2
