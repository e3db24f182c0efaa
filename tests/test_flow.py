"""Rollouts in lots: all of them, once, while others are still being made; no slot waits idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.rollout import RolloutWorker
from samplers.types import Job, Plan, Rollout
from tests import rounds
from tests.aging import Aging, AgingEngine, recipe, watched
from tests.engines import small, torch_engine
from tests.scripted import PROMPT, RENDERER, ScriptedEngine
from tests.test_overlap import ages
from trainer.loop import train
from trainer.world import Flow

PLANS = (Plan(40), Plan(40, think=7), Plan(40, cuts=(1, 5), answers_per_cut=2), Plan(24))


def lot(group: int, size: int, first: int = 0, plan: Plan | None = None) -> list[Job]:
    plan = plan or PLANS[group % len(PLANS)]
    return [Job(PROMPT, plan, group, first + i, 1000 * group + first + i) for i in range(size)]


def tokens(rollout: Rollout) -> tuple[Any, ...]:
    runs = (rollout.thought, *(a.tokens for cut in rollout.answers for a in cut))
    place = rollout.group, rollout.index, rollout.seed
    return place, [(run.ids_T.tolist(), run.finish) for run in runs]


def rest(flow: Flow) -> Iterator[list[Rollout]]:
    while len(flow):
        yield from flow.take()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 6), max_size=12), st.integers(0, 12), st.data())
def test_every_rollout_comes_once_as_it_does_alone(sizes, at_first, data):
    """Whatever is added when: each lot in one piece, in job order, with the tokens of its seeds."""
    lots = [lot(group, size) for group, size in enumerate(sizes)]
    worker, came = RolloutWorker(ScriptedEngine(), RENDERER), {}
    with worker.flow() as flow:
        for jobs in lots[:at_first]:
            flow.add(jobs)
        left = lots[at_first:]
        while len(flow) or left:
            for _ in range(data.draw(st.integers(0 if len(flow) else 1, max(1, len(left))))):
                flow.add(left.pop() if left else [])
            for rollouts in flow.take():
                group = rollouts[0].group
                assert [(r.group, r.index) for r in rollouts] == [
                    (job.group, job.index) for job in lots[group]
                ]
                assert group not in came
                came[group] = rollouts
        assert flow.take() == []
    assert sorted(came) == list(range(len(lots)))
    alone = RolloutWorker(ScriptedEngine(), RENDERER)
    for group, jobs in enumerate(lots):
        assert list(map(tokens, came[group])) == list(map(tokens, alone.generate(jobs)))
    assert worker.stats() | {"seconds": 0, "steps": 0} == (
        alone.stats() | {"seconds": 0, "steps": 0}
    )
    assert not worker.engine.pending


def test_the_real_engine_gives_the_same_tokens_as_in_one_call():
    lots = [lot(group, 4) for group in range(16)]
    worker = RolloutWorker(torch_engine(small(), slots=8), RENDERER)
    came: dict[int, list[Rollout]] = {}
    with worker.flow() as flow:
        for jobs in lots[:6]:
            flow.add(jobs)
        waiting = lots[6:]
        for rollouts in rest(flow):
            came[rollouts[0].group] = rollouts
            if waiting:
                flow.add(waiting.pop(0))
    together = RolloutWorker(torch_engine(small(), slots=64), RENDERER)
    made = together.generate([job for jobs in lots for job in jobs])
    assert [tokens(r) for g in range(16) for r in came[g]] == [tokens(r) for r in made]


# Nothing idle

ROUNDS, PROMPTS, SIZE, SLOTS = 6, 16, 4, 8


class Counted:
    """Engine steps; slots that nothing was in, while requests waited and in all."""

    def __init__(self, engine: Any) -> None:
        self.steps = self.starved = self.idle = 0
        step = engine.step

        def counted() -> Any:
            done = step()
            live = len(engine._rows) + len(done)
            self.steps += 1
            self.idle += max(SLOTS - live, 0)
            self.starved += live < SLOTS and engine.pending > len(engine._rows)
            return done

        engine.step = counted


def worker_of(slots: int = SLOTS) -> tuple[RolloutWorker, Counted]:
    engine = torch_engine(small(), slots=slots)
    return RolloutWorker(engine, RENDERER), Counted(engine)


def test_slots_are_never_idle_while_lots_wait() -> None:
    """Six rounds of each prompt, as Reinforce-Ada asks for them: what is done asks again at once,
    against rounds in which all wait for the slowest."""
    plan = Plan(60)
    rounds, by_rounds = worker_of()
    for n in range(ROUNDS):
        rounds.generate([j for g in range(PROMPTS) for j in lot(g, SIZE, n * SIZE, plan)])

    worker, flowing = worker_of()
    asked = dict.fromkeys(range(PROMPTS), 1)
    until_last = None
    with worker.flow() as flow:
        for group in range(PROMPTS):
            flow.add(lot(group, SIZE, 0, plan))
        for rollouts in rest(flow):
            group = rollouts[0].group
            if asked[group] < ROUNDS:
                flow.add(lot(group, SIZE, asked[group] * SIZE, plan))
                asked[group] += 1
            if until_last is None and len(flow) * SIZE < 2 * SLOTS:
                until_last = flowing.idle  # from here on there is nothing more to ask for
    made = {w.stats()["rollouts"] for w in (rounds, worker)}
    assert made == {PROMPTS * ROUNDS * SIZE}
    assert flowing.starved == 0
    assert until_last == 0
    assert by_rounds.idle > 3 * flowing.idle > 0
    assert flowing.steps < by_rounds.steps


# Weights, errors, ends


class Loads(AgingEngine):
    """Loads new weights from another thread at its fifth step, and goes on in the meantime."""

    def __init__(self, in_flight: bool) -> None:
        super().__init__(lambda: None)
        self.in_flight, self.steps = in_flight, 0
        self.worker: Any = None
        self.loader = threading.Thread(target=self.load)
        self.pending_at_load = -1

    def load(self) -> None:
        self.worker.load_weights((), 1, in_flight=self.in_flight)

    def step(self) -> Any:
        self.steps += 1
        if self.steps == 5:
            self.loader.start()
            until = time.monotonic() + 10
            while not self.worker._line:
                assert time.monotonic() < until, "nobody asks to load"
                time.sleep(0.001)
        return super().step()

    def load_weights(self, weights: Any, version: int | None = None) -> None:
        self.pending_at_load = self.pending
        super().load_weights(weights, version)


@pytest.mark.parametrize("in_flight", [True, False])
def test_weights_come_by_the_same_rules_as_beside_one_call(in_flight: bool) -> None:
    engine = Loads(in_flight)
    worker = engine.worker = RolloutWorker(engine, RENDERER)
    came = {}
    with worker.flow() as flow:
        for group in range(3):
            flow.add(lot(group, 3, plan=Plan(30)))
        added = 3
        for rollouts in rest(flow):
            came[rollouts[0].group] = {v for r in rollouts for v in versions(r)}
            if added < 6:  # asked for after the load: behind it in the line
                flow.add(lot(added, 3, plan=Plan(30)))
                added += 1
    engine.loader.join()
    assert engine.version == 1
    assert {1} in came.values()
    if in_flight:
        assert {0, 1} in came.values()
        assert engine.pending_at_load > 0
    else:
        assert {0, 1} not in came.values()
        assert engine.pending_at_load == 0
        assert [came[group] for group in range(6)] == [{0}] * 3 + [{1}] * 3


def versions(rollout: Rollout) -> set[int]:
    runs = (rollout.thought, rollout.final.tokens)
    return {version for run in runs for _, version in run.spans}


def test_one_thread_adds_while_another_takes() -> None:
    """As in an actor: the taker waits for lots, and ends with the flow."""
    worker = RolloutWorker(ScriptedEngine(), RENDERER)
    flow, came = worker.flow(), []

    def taking() -> None:
        while flow.awaits():
            came.extend(flow.finished())

    thread = threading.Thread(target=taking)
    thread.start()
    for key in range(20):
        flow.add(lot(key, 2), key)
    until(lambda: len(came) == 20)
    assert {(key, rollouts[0].group) for key, rollouts in came} == {(k, k) for k in range(20)}
    flow.close()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(ValueError, match="flow: closed"):
        flow.add(lot(0, 1))


def until(done: Callable[[], bool]) -> None:
    for _ in range(2000):
        if done():
            return
        time.sleep(0.005)
    raise AssertionError("waited 10 s")


def test_closing_ends_what_is_being_made_and_nothing_else() -> None:
    worker = RolloutWorker(ScriptedEngine(), RENDERER)
    other = worker.flow()
    other.add(lot(9, 3))
    with worker.flow() as flow:
        for group in range(4):
            flow.add(lot(group, 3))
        flow.take()
        assert len(flow) > 0
    assert len(flow) == 0
    assert set(worker._calls.values()) <= {call for _, call in other._lots}
    (rollouts,) = rest(other)
    alone = RolloutWorker(ScriptedEngine(), RENDERER).generate(lot(9, 3))
    assert list(map(tokens, rollouts)) == list(map(tokens, alone))
    whole = RolloutWorker(ScriptedEngine(), RENDERER)
    whole.generate([job for group in range(4) for job in lot(group, 3)])
    assert worker.engine.counters["sampled"] < whole.engine.counters["sampled"]
    assert not worker.engine.pending
    assert not worker._calls
    assert not worker._owners
    assert not worker._line


def test_errors_reach_who_takes() -> None:
    """A plan that cannot be held is the lot's own; an engine's failure is everybody's."""
    worker = RolloutWorker(ScriptedEngine(context=100), RENDERER)
    with worker.flow() as flow:
        flow.add(lot(0, 2))
        flow.add(lot(1, 2, plan=Plan(10_000, think=9_000)))
        with pytest.raises(ValueError, match="context"):
            list(rest(flow))
    assert not worker.engine.pending

    def fails() -> Any:
        raise RuntimeError("the engine is on fire")

    with worker.flow() as flow:
        flow.add(lot(0, 2))
        flow.add(lot(1, 2))
        worker.engine.step = fails
        with pytest.raises(RuntimeError, match="on fire"):
            flow.take()
    assert not worker._calls


# Under the loop


@pytest.mark.parametrize("seed", range(20))
def test_rounds_in_flight_hold_the_staleness_bound(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An allocator that asks again with each group it receives, in a thread that samples ahead,
    on engines that wait at random: each group whole and in time, and no weights load while lots
    are made unless in flight."""
    monkeypatch.setattr(rounds.Allocator, "refills", True, raising=False)
    depth, in_flight = seed % 3, seed % 3 > 0 and seed % 2 == 0
    made = recipe(
        tmp_path,
        max_staleness=depth,
        allocation="tests.rounds",
        rollouts_per_prompt=3,
        rollout={"max_tokens": 24, "in_flight_updates": in_flight},
    )
    world, flows = Aging(made.stages[0], seed), []
    flow = world.flow
    monkeypatch.setattr(world, "flow", lambda: flows.append(flow()) or flows[-1])
    with watched(made, world, tmp_path) as run:
        train(run)
    assert len(flows) == 6
    groups = [group for _, trained in run.trained for group in trained]
    assert sorted(group.serial for group in groups) == list(range(18))
    assert all(len(group) == 3 + (group.serial % 3 == 0) for group in groups)
    assert all(0 <= age <= depth for age in ages(run.trained))
    assert not world.making
    for worker in world.workers:
        assert not worker._calls
        assert not worker._line
        assert not worker.engine.pending
