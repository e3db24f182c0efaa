"""Several threads on one engine: one running batch, and nobody gets what is another's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from samplers.rollout import RolloutWorker
from samplers.types import Job, Plan, Rollout
from tests.scripted import PROMPT, RENDERER, ScriptedEngine, by_hand

PLANS = (Plan(40), Plan(40, think=7), Plan(40, cuts=(1, 5), answers_per_cut=2), Plan(40, answer=3))


class Gated(ScriptedEngine):
    """Notes the most requests it ever held, stamps tokens with its version, steps when allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self.free = threading.Event()
        self.free.set()
        self.inside = threading.Lock()
        self.loads: list[tuple[int, int]] = []  # (version, requests pending)

    def step(self):
        assert self.inside.acquire(blocking=False), "two threads at one engine"
        try:
            self.free.wait(10)
            self.most = max(self.most, self.pending)
            return super().step()
        finally:
            self.inside.release()

    def load_weights(self, weights, version=None):
        assert self.inside.acquire(blocking=False), "loaded in the middle of a step"
        self.loads.append((version, self.pending))
        self.version = version
        self.inside.release()


def jobs(caller: int, n: int = 5) -> list[Job]:
    return [Job(PROMPT, PLANS[i % len(PLANS)], caller, i, seed=100 * caller + i) for i in range(n)]


def check(made: list[Rollout], asked: list[Job]) -> None:
    """Each rollout is the one its job would give alone."""
    for rollout, job in zip(made, asked, strict=True):
        expected = by_hand(job.plan, job.seed)
        assert (rollout.group, rollout.index) == (job.group, job.index)
        assert rollout.thought.ids_T.tolist() == expected["thought"]
        flat = [answer for cut in expected["answers"] for answer in cut]
        answers = [answer for cut in rollout.answers for answer in cut]
        assert [a.tokens.ids_T.tolist() for a in answers] == [ids for _, ids, *_ in flat]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_callers_share_one_batch_and_get_their_own(pool: ThreadPoolExecutor) -> None:
    engine = Gated()
    worker = RolloutWorker(engine, RENDERER)
    engine.free.clear()
    made = [pool.submit(worker.generate, jobs(caller)) for caller in range(8)]
    until(lambda: len(worker._line) + len(worker._calls) == 8)
    engine.free.set()
    for caller, future in enumerate(made):
        check(future.result(20), jobs(caller))
    assert engine.most > 5, "requests of several callers ran side by side"
    assert not any(engine.kept.values())
    assert not worker._owners
    assert not worker._calls


def test_callers_come_and_go(pool: ThreadPoolExecutor) -> None:
    worker = RolloutWorker(Gated(), RENDERER)

    def caller(number: int) -> None:
        rng = np.random.default_rng(number)
        for turn in range(15):
            asked = jobs(number * 100 + turn, int(rng.integers(0, 4)))
            check(worker.generate(asked), asked)

    for future in [pool.submit(caller, number) for number in range(8)]:
        future.result(60)


def test_weights_wait_until_nothing_is_in_flight_and_hold_up_what_comes_after(
    pool: ThreadPoolExecutor,
) -> None:
    engine = Gated()
    worker = RolloutWorker(engine, RENDERER)
    engine.free.clear()
    before = pool.submit(worker.generate, jobs(1))
    until(lambda: worker._calls)
    load = pool.submit(worker.load_weights, [], 9)
    until(lambda: len(worker._line) == 1)
    after = pool.submit(worker.generate, jobs(2))
    until(lambda: len(worker._line) == 2)
    engine.free.set()
    load.result(20)
    check(before.result(20), jobs(1))
    check(after.result(20), jobs(2))
    assert engine.loads == [(9, 0)]


def test_weights_in_flight_are_loaded_between_two_steps(pool: ThreadPoolExecutor) -> None:
    engine = Gated()
    worker = RolloutWorker(engine, RENDERER)
    engine.free.clear()
    made = pool.submit(worker.generate, jobs(1, 12))
    until(engine.inside.locked)
    load = pool.submit(lambda: worker.load_weights([], 9, in_flight=True))
    until(lambda: worker._line)
    engine.free.set()
    load.result(20)
    check(made.result(20), jobs(1, 12))
    ((version, pending),) = engine.loads
    assert version == 9
    assert pending


def test_an_abort_reaches_what_it_names_whoever_asked(pool: ThreadPoolExecutor) -> None:
    engine = Gated()
    worker = RolloutWorker(engine, RENDERER)
    long = [Job(PROMPT, Plan(200), 7, i, seed=i) for i in range(30)]
    engine.free.clear()
    mine, other = pool.submit(worker.generate, long), pool.submit(worker.generate, jobs(1))
    until(lambda: len(worker._line) + len(worker._calls) == 2)
    worker.abort((7, i) for i in range(30))
    engine.free.set()
    check(other.result(20), jobs(1))
    assert {r.thought.finish for r in mine.result(20)} == {"abort"}
    check(worker.generate(jobs(1)), jobs(1))  # an abort holds for what was there
    engine.free.clear()
    all_ = pool.submit(worker.generate, long)
    until(lambda: worker._calls)
    worker.abort()
    engine.free.set()
    assert {r.thought.finish for r in all_.result(20)} == {"abort"}


def test_an_error_of_the_engine_reaches_every_caller(pool: ThreadPoolExecutor) -> None:
    class Breaking(Gated):
        def step(self):
            self.free.wait(10)
            if self.broken:
                raise RuntimeError("the device is gone")
            return super().step()

    engine = Breaking()
    engine.broken = True
    worker = RolloutWorker(engine, RENDERER)
    engine.free.clear()
    made = [pool.submit(worker.generate, jobs(caller)) for caller in range(4)]
    made.append(pool.submit(worker.load_weights, [], 5))
    until(lambda: len(worker._line) + len(worker._calls) == 5)
    engine.free.set()
    for future in made:
        with pytest.raises(RuntimeError, match="the device is gone"):
            future.result(20)
    assert not engine.loads
    engine.broken = False
    check(worker.generate(jobs(3)), jobs(3))  # what was left behind is nobody's


def test_a_mistake_is_its_callers_alone(pool: ThreadPoolExecutor) -> None:
    engine = Gated()
    worker = RolloutWorker(engine, RENDERER)
    engine.free.clear()
    fine = pool.submit(worker.generate, jobs(1))
    until(engine.inside.locked)
    bad = pool.submit(worker.generate, [*jobs(2), Job(PROMPT, Plan(10, think=10), 2, 9, seed=1)])

    def broken():
        raise ValueError("no such weight")

    load = pool.submit(worker.between, broken)
    until(lambda: len(worker._line) == 2)
    engine.free.set()
    with pytest.raises(ValueError, match="max_tokens 10 leaves no token"):
        bad.result(20)
    with pytest.raises(ValueError, match="no such weight"):
        load.result(20)
    check(fine.result(20), jobs(1))
