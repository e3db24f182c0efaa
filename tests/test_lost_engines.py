"""Engines that are killed or hang: what they were at comes back, the same bit for bit."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from launch import fleet
from launch.cluster import cluster
from samplers.types import Job, Plan, Prompt, Rollout
from tests.test_fleet_sync import pid, same_weights
from tests.test_flow import rest
from trainer import checkpoint, golds, train
from trainer.config import load
from trainer.faults import Fault, FaultConfig
from trainer.modelfolder import fetch

FIND = Prompt(0, "p", ({"role": "user", "content": "A1+1?"},), "", "A", "exact")
HEARTBEAT = 3.0
Disturb = Callable[[fleet.Fleet], None]


def jobs(groups: int = 6, cap: int = 100) -> list[Job]:
    return [Job(FIND, Plan(cap), g, i, seed=g * 100 + i) for g in range(groups) for i in range(4)]


def bits(rollout: Rollout) -> tuple[object, ...]:
    runs = (rollout.thought, *(a.tokens for cut in rollout.answers for a in cut))
    place = rollout.group, rollout.index
    return place, *((r.ids_T.tobytes(), r.logprobs_T.tobytes(), r.finish, r.spans) for r in runs)


def engines() -> set[int]:
    """Process ids of the engines of this process's Ray."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::RolloutActor"):
                found.add(process.pid)
    return found


def kill(world: fleet.Fleet, index: int = 0, number: int = signal.SIGKILL) -> None:
    os.kill(world.engines.team._processes[index][1], number)


def kill_twice(world: fleet.Fleet) -> None:
    """And then the one in its place, as soon as it is there."""
    known = engines()
    kill(world)
    until = time.monotonic() + 60
    while not (new := engines() - known):
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(new.pop(), signal.SIGKILL)


def kill_both(world: fleet.Fleet) -> None:
    kill(world, 0)
    kill(world, 1)


def stop(world: fleet.Fleet) -> None:
    kill(world, 1, signal.SIGSTOP)


@contextmanager
def started(tmp_path: Path, *settings: str) -> Iterator[fleet.Fleet]:
    slow = "rollout.engine={name: tests.slow_engine, seconds: 0.02, slots: 32}"
    given = ("rollout.workers=2", "evaluation=null", "rollout.max_tokens=120", slow, *settings)
    stage = load("grpo/find", (f"output={tmp_path}", *given)).stages[0]
    faults = FaultConfig(heartbeat=HEARTBEAT)
    with (
        cluster(cpus=8),
        fleet.Fleet(stage, str(fetch("base/find")), faults=faults) as world,
    ):
        yield world


@pytest.mark.slow
def test_rollouts_equal_those_of_engines_that_nothing_happens_to(tmp_path: Path) -> None:
    with started(tmp_path) as world, ThreadPoolExecutor(1) as beside:
        world.sync()
        want = [bits(rollout) for rollout in world.rollout(jobs())]
        cases: list[tuple[Disturb, list[int]]] = [
            (stop, [1]), (kill_twice, [0]), (kill_both, [0, 1])
        ]  # fmt: skip
        for disturb, whose in cases:
            got = beside.submit(world.rollout, jobs())
            time.sleep(0.3)
            disturb(world)
            assert [bits(rollout) for rollout in got.result()] == want, disturb.__name__
            faults = world.faults()
            assert sorted(fault.index for fault in faults) == whose, disturb.__name__
            assert same_weights(world)
            print(disturb.__name__, [round(fault.seconds, 1) for fault in faults])
        assert not world.engines.suspects._seen
        _in_a_sync(world)
        _in_a_flow(world)


def _in_a_sync(world: fleet.Fleet) -> None:
    """Who does not answer is found by the heartbeat and not only by the sync's own deadline."""
    kill(world, 0, signal.SIGSTOP)
    began = time.monotonic()
    world.sync()
    assert time.monotonic() - began < world.stage.sync.deadline / 5
    (fault,) = world.faults()
    assert fault.index == 0
    assert "was killed" in fault.what
    assert same_weights(world)
    with ThreadPoolExecutor(1) as beside:
        told = beside.submit(_syncs_until_told, world)
        time.sleep(0.1)
        kill(world, 1)
        assert [fault.index for fault in told.result()] == [1]
    assert same_weights(world)


def _syncs_until_told(world: fleet.Fleet) -> list[Fault]:
    until = time.monotonic() + 120
    while not (faults := world.faults()):
        assert time.monotonic() < until
        world.sync()
    return faults


def _in_a_flow(world: fleet.Fleet) -> None:
    with world.flow() as flow:
        for group in range(20):
            flow.add([job for job in jobs(20) if job.group == group])
        came = [rollouts[0].group for rollouts in flow.take()]
        kill(world)
        came += [rollouts[0].group for rollouts in rest(flow)]
    assert sorted(came) == list(range(20))
    assert [fault.index for fault in world.faults()] == [0]


@pytest.mark.slow
def test_an_engine_dead_while_it_is_tied_to_the_learner_costs_no_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has said where it sits, and never comes for the weights."""
    with started(tmp_path, "sync.deadline=30") as world:
        learner, connect, killed = pid(world.learners.team.actors[0]), world.connect, list[int]()

        def connected(engines: Sequence[int] | None = None) -> None:
            connect(engines)
            if not killed:
                kill(world, 1)
                killed.append(1)

        monkeypatch.setattr(world, "connect", connected)
        world._tied = []
        began = time.monotonic()
        world.sync()
        assert time.monotonic() - began < 20
        assert [fault.index for fault in world.faults()] == killed
        assert pid(world.learners.team.actors[0]) == learner
        assert same_weights(world)


@pytest.mark.slow
def test_a_poison_prompt_is_named_and_the_others_are_trained(tmp_path: Path) -> None:
    recipe = load("grpo/find", (f"output={tmp_path}",))
    settings = ["data={task: find, limit: 5}", "evaluation=null", "steps=4"]
    settings += ["prompts_per_step=2", "rollouts_per_prompt=4", "rollout.max_tokens=48"]
    stage = load("grpo/find", (f"output={tmp_path}", *settings)).stages[0]
    prompts = [golds.load(stage, "train", recipe.seed)[i] for i in range(5)]
    poison = prompts[3]
    question = json.dumps(poison.messages[-1]["content"])
    engine = f"rollout.engine={{name: tests.poison_engine, question: {question}}}"
    folder = train(
        "grpo/find", f"output={tmp_path}", *settings, engine, "faults.kills=2", "checkpoint.every=1"
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert sum(line["unknown/error"] for line in lines) == 4, "one group, once"
    assert all(line["rollouts"] == 8 for line in lines)
    named = [
        json.loads(line)["what"]
        for line in (folder / "faults.jsonl").read_text().splitlines()
        if "left out" in line
    ]
    assert len(named) == 1
    assert f"'{poison.id}'" in named[0]
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    assert checkpoint.driver_state(newest)["stream"]["excluded"] == [poison.index]
    assert sum(line["tokens/kept"] > 0 for line in lines) >= 3
