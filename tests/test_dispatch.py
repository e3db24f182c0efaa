"""Several engines: whole groups, in order, and more of them for whoever is faster."""

from __future__ import annotations

import heapq
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch import fleet
from launch.dispatch import HELD, SHARE, Dispatch
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

    def send(self, engine: int, jobs: list[Job]) -> int:
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

    def take(self, refs: list[int]) -> tuple[int, Any]:
        first = min(refs, key=lambda ref: self.due[ref][0])
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
def test_every_rollout_comes_once_in_order_and_groups_stay_whole(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    speeds = [rng.choice([1.0, 1.0, 3.0]) for _ in range(rng.randint(1, 5))]
    engines = Clocked(monkeypatch, speeds, rng.choice([4, 32, 256]))
    for _ in range(3):
        sizes = [rng.randint(1, 12) for _ in range(rng.randint(0, 60))]
        jobs = [job(g, i) for g, size in enumerate(sizes) for i in range(size)]
        if rng.random() < 0.5:
            rng.shuffle(jobs)
        since, engines.most = len(engines.sent), [0] * len(speeds)
        got = engines.dispatch.run(jobs)
        assert [(r.group, r.index, r.seed) for r in got] == [
            (j.group, j.index, j.seed) for j in jobs
        ]
        where: dict[int, set[int]] = {}
        for call, (_, sent) in enumerate(engines.sent[since:]):
            for one in sent:
                where.setdefault(one.group, set()).add(call)
        assert all(len(calls) == 1 for calls in where.values())
        biggest = max(sizes, default=0)
        assert all(most <= max(HELD * engines.slots, biggest) for most in engines.most)


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
        ref, packed = self.engines.take(list(self.numbers))
        return [(self.numbers.pop(ref), packed)]

    def close(self) -> None:
        self.numbers.clear()


@pytest.mark.parametrize("seed", range(20))
def test_lots_come_once_in_one_piece_and_wait_only_where_nobody_has_room(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    speeds = [rng.choice([1.0, 1.0, 3.0]) for _ in range(rng.randint(1, 5))]
    engines = Clocked(monkeypatch, speeds, rng.choice([4, 32]))
    sizes = [rng.choice([0, *range(1, 20)]) for _ in range(rng.randint(0, 60))]
    lots = [[job(g, i) for i in range(size)] for g, size in enumerate(sizes)]
    came: dict[int, list[Rollout]] = {}
    with engines.dispatch.flow(Lanes(engines)) as flow:
        left = list(lots)
        while left or len(flow):
            for _ in range(rng.randint(0, len(left))):
                flow.add(left.pop())
            if flow._waiting:
                size, room = len(flow._waiting[0]), HELD * engines.slots
                assert all(held and held + size > room for held in engines.held)
            for rollouts in flow.take():
                assert rollouts[0].group not in came
                came[rollouts[0].group] = rollouts
        assert flow.take() == []
    for g, jobs in enumerate(lots):
        assert [(r.group, r.index, r.seed) for r in came.get(g, [])] == [
            (j.group, j.index, j.seed) for j in jobs
        ]
    assert len(engines.sent) == sum(size > 0 for size in sizes)
    assert all(most <= max(HELD * engines.slots, 19) for most in engines.most)


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
        speeds = list(engines.dispatch.speeds)
        for g in range(2):
            flow.add([job(g, 0)])
        flow.take()
    assert engines.dispatch.speeds == speeds  # an end in the middle says nothing of them


def test_a_really_slow_engine_gets_less(tmp_path: Path) -> None:
    model = str(fetch("base/find"))
    settings = (
        "deterministic=false", "rollout.workers=2", "rollout.max_tokens=12",
        f"rollout.engine={{name: tests.slow_engine, slots: 4, folder: {tmp_path}}}",
    )  # fmt: skip
    stage = load("grpo/find", (*settings, "evaluation=null")).stages[0]
    prompt = Prompt(0, "p", ({"role": "user", "content": "A1+1?"},), "", "A", "exact")
    jobs = [Job(prompt, Plan(12), g, i, seed=g * 8 + i) for g in range(24) for i in range(4)]
    with fleet.cluster(cpus=4), fleet.Fleet(stage, model, deterministic=False) as world:
        import ray

        pids = ray.get([a.__ray_call__.remote(_pid) for a in world.actors["rollout"]])
        slow = pids.index(int((tmp_path / "slow").read_text()))
        sent: list[tuple[int, int]] = []
        send = world._dispatch._send

        def noted(engine: int, jobs: list[Job]) -> Any:
            sent.append((engine, len(jobs)))
            return send(engine, jobs)

        world._dispatch._send = noted
        rollouts = world.rollout(jobs)
        assert [(r.group, r.index) for r in rollouts] == [(j.group, j.index) for j in jobs]
        share = sum(n for engine, n in sent if engine == slow)
        assert 0 < share < len(jobs) / 3


def _pid(_: Any) -> int:
    return os.getpid()
