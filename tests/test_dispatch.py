"""Several engines: groups whole as far as they fit, and more of them for whoever is faster."""

from __future__ import annotations

import gc
import heapq
import math
import os
import random
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch import fleet
from launch.cluster import cluster
from launch.dispatch import HELD, MANY, PARTS, SHARE, Dispatch, Done, held
from samplers import columns
from samplers.types import Answer, Job, Plan, Prompt, Rollout, Tokens
from tests.scripted import PROMPT
from trainer.config import load
from trainer.modelfolder import fetch


def job(group: int, index: int) -> Job:
    return Job(PROMPT, Plan(8), group, index, seed=group * 1000 + index)


def made(jobs: list[Job], tokens: int) -> dict[str, Any]:
    run = Tokens(np.arange(tokens, dtype=np.int32), np.zeros(tokens, np.float32), "stop")
    ids = np.array([1], np.int32)
    return columns.pack([
        Rollout(j.prompt.index, j.group, j.index, j.seed, j.plan, ids, run, True,
                ((Answer(tokens, Tokens(ids, np.zeros(1, np.float32), "stop"), "x"),),))
        for j in jobs
    ])  # fmt: skip


class Clocked:
    """Engines on a clock of their own: `slots` rollouts at a time, slower the more there are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, speeds: list[float], slots: int) -> None:
        self.now, self.speeds, self.slots = 0.0, speeds, slots
        self.free: list[list[float]] = [[0.0] * slots for _ in speeds]
        self.due: dict[int, tuple[float, dict[str, Any]]] = {}
        self.sent: list[tuple[int, list[Job]]] = []
        self.held, self.most = [0] * len(speeds), [0] * len(speeds)
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        self.dispatch = Dispatch(len(speeds), slots, self.send, self.take)

    def send(self, engine: int, jobs: list[Job], _: object = None) -> int:
        self.held[engine] += len(jobs)
        busy = min(self.held[engine], self.slots)
        ends = []
        for _ in jobs:
            began = max(self.now, heapq.heappop(self.free[engine]))
            ends.append(began + (1 + busy / 16) / self.speeds[engine])
            heapq.heappush(self.free[engine], ends[-1])
        self.sent.append((engine, jobs))
        self.most[engine] = max(self.most[engine], self.held[engine])
        self.due[len(self.sent)] = max(ends), made(jobs, 10)
        return len(self.sent)

    def take(self, _: object = None) -> tuple[int, Any]:
        first = min(self.due, key=lambda ref: self.due[ref][0])
        self.now = max(self.now, self.due[first][0])
        engine, jobs = self.sent[first - 1]
        self.held[engine] -= len(jobs)
        return first, self.due.pop(first)[1]

    def share(self, since: int = 0) -> list[int]:
        out = [0] * len(self.speeds)
        for engine, jobs in self.sent[since:]:
            out[engine] += len(jobs)
        return out


@pytest.mark.parametrize("seed", range(20))
def test_every_rollout_comes_once_in_order_and_groups_that_fit_a_call_stay_whole(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    speeds = [rng.choice([1.0, 1.0, 3.0]) for _ in range(rng.randint(1, 5))]
    engines = Clocked(monkeypatch, speeds, rng.choice([4, 32, 256]))
    for _ in range(3):
        sizes = [rng.choice([*range(1, 13), 300]) for _ in range(rng.randint(0, 60))]
        jobs = [job(g, i) for g, size in enumerate(sizes) for i in range(size)]
        if rng.random() < 0.5:
            rng.shuffle(jobs)
        since, engines.most = len(engines.sent), [0] * len(speeds)
        got = engines.dispatch.run(jobs)
        assert [(r.group, r.index, r.seed) for r in got] == [
            (j.group, j.index, j.seed) for j in jobs
        ]
        calls = [Counter(one.group for one in sent) for _, sent in engines.sent[since:]]
        fits = size_of_a_call(len(jobs), len(speeds), engines.slots)
        assert all(call.total() <= fits for call in calls)
        for g, size in enumerate(sizes):
            pieces = [call[g] for call in calls if g in call]
            assert sum(pieces) == size
            assert len(pieces) == math.ceil(size / fits), "no more pieces than it takes"
            assert max(pieces) - min(pieces) <= 1
        assert all(most <= max(HELD * engines.slots, fits) for most in engines.most)


def size_of_a_call(jobs: int, engines: int, slots: int) -> int:
    """As it is written above `dispatch.PARTS` and `dispatch.SHARE`."""
    if jobs / engines <= HELD * slots:
        return math.ceil(jobs / engines / SHARE)
    return math.ceil(slots / PARTS)


def test_the_rollouts_of_a_large_group_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt with nearly all of a step: its engine would be the last by far."""
    engines = Clocked(monkeypatch, [1.0] * 8, 32)
    sizes = [2000, *[8] * 31]
    engines.dispatch.run([job(g, i) for g, size in enumerate(sizes) for i in range(size)])
    assert sum(engines.share()) == sum(sizes)
    assert max(engines.share()) <= sum(sizes) / 8 + 2 * 32 / PARTS
    assert max(len(jobs) for _, jobs in engines.sent) == 32 / PARTS
    assert all(len(calls(engines.sent, g)) == 1 for g in range(1, 32))


def calls(sent: list[tuple[int, list[Job]]], group: int) -> list[int]:
    """Rollouts of a group in each call that has some."""
    found = (sum(one.group == group for one in jobs) for _, jobs in sent)
    return [n for n in found if n]


def test_a_step_is_a_few_calls_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Clocked(monkeypatch, [1.0, 1.0], 256)
    engines.dispatch.run([job(g, i) for g in range(32) for i in range(8)])
    assert engines.share() == [128, 128]
    assert len(engines.sent) == 2 * SHARE


@pytest.mark.parametrize("slots", [16, 256])
def test_work_moves_to_the_faster_engine(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few slots already in the first step; where all fits at once, from the second on."""
    engines = Clocked(monkeypatch, [1.0, 4.0], slots)
    jobs = [job(g, i) for g in range(64) for i in range(4)]
    for step in range(5):
        since = len(engines.sent)
        engines.dispatch.run(jobs)
        slow, fast = engines.share(since)
        assert (step == 0 and slots == 256) or fast > slow
    assert fast > 2 * slow > 0
    engines.speeds = [4.0, 1.0]  # and back again
    for _ in range(8):
        since = len(engines.sent)
        engines.dispatch.run(jobs)
    slow, fast = engines.share(since)
    assert slow > 2 * fast > 0


class Lanes:
    """`launch.dispatch.Streams` to engines on a clock."""

    def __init__(self, engines: Clocked) -> None:
        self.engines, self.numbers = engines, dict[int, int]()

    def send(self, engine: int, number: int, jobs: list[Job]) -> None:
        self.numbers[self.engines.send(engine, jobs)] = number

    def take(self) -> list[tuple[int, Any]]:
        ref, packed = self.engines.take()
        return [(self.numbers.pop(ref), packed)]

    def close(self) -> None:
        self.numbers.clear()
        self.engines.due.clear()


@pytest.mark.parametrize("seed", range(20))
def test_lots_come_once_in_one_piece_and_parts_wait_only_where_nobody_has_room(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    speeds = [rng.choice([1.0, 1.0, 3.0]) for _ in range(rng.randint(1, 5))]
    engines = Clocked(monkeypatch, speeds, rng.choice([4, 32]))
    sizes = [rng.choice([0, *range(1, 20), 200]) for _ in range(rng.randint(0, 60))]
    lots = [[job(g, i) for i in range(size)] for g, size in enumerate(sizes)]
    came: dict[int, list[Rollout]] = {}
    with engines.dispatch.flow(Lanes(engines)) as flow:
        left = list(lots)
        while left or len(flow):
            for _ in range(rng.randint(0, len(left))):
                flow.add(left.pop())
            if flow._waiting:
                size, room = len(flow._waiting[0][1]), HELD * engines.slots
                assert all(held and held + size > room for held in engines.held)
            for rollouts in flow.take():
                assert rollouts[0].group not in came
                came[rollouts[0].group] = rollouts
        assert flow.take() == []
    for g, jobs in enumerate(lots):
        assert [(r.group, r.index, r.seed) for r in came.get(g, [])] == [
            (j.group, j.index, j.seed) for j in jobs
        ]
    part = engines.slots // PARTS
    assert len(engines.sent) == sum(math.ceil(size / part) for size in sizes)
    assert all(len(jobs) <= part for _, jobs in engines.sent)
    assert all(most <= HELD * engines.slots for most in engines.most)


def test_parts_of_a_lot_travel_apart_and_it_comes_when_the_last_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = Clocked(monkeypatch, [1.0, 3.0], 32)
    with engines.dispatch.flow(Lanes(engines)) as flow:
        flow.add([job(0, i) for i in range(100)])
        flow.add([job(1, i) for i in range(8)])
        assert len(flow) == 2
        assert {engine for engine, _ in engines.sent} == {0, 1}
        (small,) = flow.take()
        assert [(r.group, r.index) for r in small] == [(1, i) for i in range(8)]
        assert len(flow) == 1
        (large,) = flow.take()
        assert [(r.group, r.index) for r in large] == [(0, i) for i in range(100)]
        assert not engines.due, "nothing of it was still being made"
        assert len(flow) == 0


def test_lots_asked_for_meanwhile_go_to_who_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rounds of each prompt on a slow and a fast engine: who is done asks again at once."""
    lots = [[[job(g, 8 * n + i) for i in range(8)] for n in range(4)] for g in range(24)]
    rounds = Clocked(monkeypatch, [1.0, 4.0], 16)
    for n in range(4):
        rounds.dispatch.run([j for rest in lots for j in rest[n]])

    flowing = Clocked(monkeypatch, [1.0, 4.0], 16)
    asked = dict.fromkeys(range(24), 1)
    with flowing.dispatch.flow(Lanes(flowing)) as flow:
        for rest in lots:
            flow.add(rest[0])
        while len(flow):
            for rollouts in flow.take():
                g = rollouts[0].group
                if asked[g] < 4:
                    flow.add(lots[g][asked[g]])
                    asked[g] += 1
    slow, fast = flowing.share()
    assert slow + fast == sum(rounds.share()) == 24 * 4 * 8
    assert fast > 2 * slow > 0
    assert flowing.now < rounds.now


def test_where_all_fits_a_flow_learns_from_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Clocked(monkeypatch, [1.0, 4.0], 256)
    for step in range(6):
        since = len(engines.sent)
        with engines.dispatch.flow(Lanes(engines)) as flow:
            for g in range(64):
                flow.add([job(g, i) for i in range(4)])
            while len(flow):
                flow.take()
        slow, fast = engines.share(since)
        assert step or slow == fast
    assert fast > 2 * slow > 0
    with engines.dispatch.flow(Lanes(engines)) as flow:
        speeds = engines.dispatch.speeds.tolist()
        for g in range(2):
            flow.add([job(g, 0)])
        flow.take()
    assert engines.dispatch.speeds.tolist() == speeds  # an end in the middle says nothing of them


@pytest.mark.slow
def test_a_really_slow_engine_gets_less(tmp_path: Path) -> None:
    model = str(fetch("base/find"))
    settings = (
        "deterministic=false", "rollout.workers=2", "rollout.max_tokens=12",
        f"rollout.engine={{name: tests.slow_engine, slots: 4, folder: {tmp_path}}}",
    )  # fmt: skip
    stage = load("grpo/find", (*settings, "evaluation=null")).stages[0]
    prompt = Prompt(0, "p", ({"role": "user", "content": "A1+1?"},), "", "A", "exact")
    jobs = [Job(prompt, Plan(12), g, i, seed=g * 8 + i) for g in range(24) for i in range(4)]
    with cluster(cpus=4), fleet.Fleet(stage, model, deterministic=False) as world:
        import ray

        pids = ray.get([a.__ray_call__.remote(_pid) for a in world.engines.team.actors])
        slow = pids.index(int((tmp_path / "slow").read_text()))
        sent: list[tuple[int, int]] = []
        send = world.engines.dispatch._send

        def noted(engine: int, jobs: list[Job], done: Done) -> Any:
            sent.append((engine, len(jobs)))
            return send(engine, jobs, done)

        world.engines.dispatch._send = noted
        rollouts = world.rollout(jobs)
        assert [(r.group, r.index) for r in rollouts] == [(j.group, j.index) for j in jobs]
        share = sum(n for engine, n in sent if engine == slow)
        assert 0 < share < len(jobs) / 3


def _pid(_: Any) -> int:
    return os.getpid()


def test_what_was_held_back_from_the_collector_is_collected_in_the_end() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

    def made() -> list[weakref.ref[Cycle]]:
        return [weakref.ref(Cycle()) for _ in range(10)]

    gc.collect()
    with held() as keep:
        lost = made()
        keep(MANY)
        gc.collect()
        assert all(ref() for ref in lost), "frozen"
    assert not any(ref() for ref in lost)
    assert gc.get_freeze_count() == 0
