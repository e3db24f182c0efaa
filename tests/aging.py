"""A World whose engines are scripted and whose weights are a number: runs of milliseconds.

Every wait is random, so that threads meet in all orders. Tokens carry the version of their weights.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np

from launch.dispatch import Dispatch, Lots
from rewards.verdict import Verdict
from samplers import columns
from samplers.flow import Flow
from samplers.rollout import RolloutWorker
from samplers.types import Completion, Group, Job, Rollout
from tests.scripted import RENDERER, ScriptedEngine
from trainer.config import Stage, resolve
from trainer.faults import Fault
from trainer.stage import StageRun
from trainer.tracking import Tracker, TrackingConfig
from trainer.types import Batch, Floats


class AgingEngine(ScriptedEngine):
    """Stamps each token with the version it was made by."""

    def __init__(self, wait: Any) -> None:
        super().__init__()
        self.version, self.wait = 0, wait
        self.stamps: dict[int, list[int]] = {}

    def step(self) -> list[Completion]:
        self.wait()
        before = {id(row): len(row[2]) for row in self.queue}
        live = list(self.queue[:3])
        done = super().step()
        for row in live:
            if len(row[2]) > before[id(row)]:
                self.stamps.setdefault(row[0].id, []).append(self.version)
        return [self._stamped(completion) for completion in done]

    def _stamped(self, done: Completion) -> Completion:
        versions = self.stamps.pop(done.id, [])
        assert len(versions) == len(done.ids_T)
        firsts = [t for t, v in enumerate(versions) if t == 0 or versions[t - 1] != v]
        spans = tuple((t, versions[t]) for t in firsts)
        return Completion(done.id, done.ids_T, done.logprobs_T, done.finish, spans, done.handle)

    def load_weights(self, weights: Iterable[Any], version: int | None = None) -> None:
        assert version is not None
        self.version = version


class Lanes:
    """`launch.dispatch.Streams` to the workers of `world`, with a thread that takes from each."""

    def __init__(self, world: Aging) -> None:
        self.world, self.flows = world, [worker.flow() for worker in world.workers]
        self.done: Queue[tuple[int, dict[str, Any]] | Exception] = Queue()
        self.taking = [world.pool.submit(self.forward, flow) for flow in self.flows]
        self.making = 0

    def forward(self, flow: Flow) -> None:
        try:
            while flow.awaits():
                for number, rollouts in flow.finished():
                    self.world.wait(20)
                    self.done.put((number, columns.pack(rollouts)))
        except Exception as error:
            self.done.put(error)

    def send(self, engine: int, number: int, jobs: list[Job]) -> None:
        self.world.wait(5)
        self.count(len(jobs))
        self.flows[engine].add(jobs, number)

    def take(self) -> list[tuple[int, dict[str, Any]]]:
        lot = self.done.get()
        if isinstance(lot, Exception):
            raise lot
        self.count(-len(lot[1]["rows"]))
        return [lot]

    def count(self, more: int) -> None:
        self.making += more
        self.world.making += more

    def close(self) -> None:
        for flow in self.flows:
            flow.close()
        for taking in self.taking:
            taking.result()
        self.count(-self.making)


class Aging:
    """`trainer.world.World`; learners learn nothing and take their time."""

    def __init__(
        self, stage: Stage, seed: int, engines: int = 2, pace: float = 2e-4, learning: float = 200
    ) -> None:
        self.stage, self.version, self.pace, self.learning = stage, 0, pace, learning
        self.left_out = set[tuple[str, ...]]()
        self.random = random.Random(seed)
        self.workers = [
            RolloutWorker(AgingEngine(lambda: self.wait(1)), RENDERER) for _ in range(engines)
        ]
        self.dispatch = Dispatch(engines, 3, *[lambda *_: None] * 2)
        self.pool = ThreadPoolExecutor(16)
        self.ended = threading.Event()
        self.making = 0  # one thread's: an evaluation comes between syncs

    def wait(self, most: float) -> None:
        time.sleep(self.random.random() * most * self.pace)

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
        self.wait(20)
        lists = [
            [j for j in jobs if (j.group + j.index) % len(self.workers) == e]
            for e in range(len(self.workers))
        ]
        self.making += len(jobs)
        futures = [
            self.pool.submit(w.generate, js) for w, js in zip(self.workers, lists, strict=True)
        ]
        made = {(r.group, r.index): r for future in futures for r in future.result()}
        self.making -= len(jobs)
        return [made[j.group, j.index] for j in jobs]

    def flow(self) -> Lots:
        return self.dispatch.flow(Lanes(self))

    def abort(self) -> None:
        self.ended.set()
        for worker in self.workers:
            worker.abort()

    def grading(self) -> dict[str, float]:
        return {}

    def faults(self) -> list[Fault]:
        return []

    def grade(self, items: Sequence[Any]) -> list[Verdict]:
        self.wait(20)
        return [Verdict(i % 2 == 0, float(i % 2 == 0), "ok") for i in range(len(items))]

    def decode(self, ids: Sequence[Any]) -> list[str]:
        return ["" for _ in ids]

    def probe(self, ids: Sequence[Any]) -> list[Floats]:
        return [np.zeros(len(row) - 1, np.float32) for row in ids]

    def score(self, batch: Batch, which: str) -> list[Floats]:
        micros = [micro for update in batch.updates for rank in update for micro in rank]
        return [np.zeros(len(micro.targets_N), np.float32) for micro in micros]

    def norms(self, batch: Batch, scope: str) -> list[Floats]:
        micros = [micro for update in batch.updates for rank in update for micro in rank]
        return [np.ones(len(micro.rows_B), np.float32) for micro in micros]

    def variance(self, shares: Any) -> tuple[float, float]:
        return 2.0, 1.0

    def step(self, batch: Batch) -> dict[str, Any]:
        self.wait(self.learning)
        return {"engine_gap": 7.0 if self.stage.max_staleness else 0.0}  # drift is no gap

    def sync(self) -> None:
        self.version += 1
        in_flight = self.stage.rollout.in_flight_updates
        assert in_flight or not self.making, "a sync's deadline is not for rollouts to end"
        loads = [
            self.pool.submit(w.load_weights, (), self.version, in_flight=in_flight)
            for w in self.workers
        ]
        for load in loads:
            load.result()
            self.wait(20)
        assert in_flight or not self.making, "none begins meanwhile"

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    def load(self, folder: Path) -> None: ...

    def export(self, folder: Path) -> None: ...

    def profile(self, folder: Path | None) -> None: ...


class Watched(StageRun):
    """Remembers what each step trained: groups, and the version of the weights that learned."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.trained: list[tuple[int, list[Group]]] = []

    def credit(self, groups: list[Group]) -> Any:
        self.trained.append((self.world.version, groups))
        return super().credit(groups)


def recipe(output: Path, **fields: Any) -> Any:
    base = {
        "name": "aging",
        "output": str(output),
        "deterministic": False,
        "steps": 6,
        "model": {"path": "base/find"},
        "data": {"task": "find"},
        "prompts_per_step": 3,
        "rollouts_per_prompt": 2,
        "rollout": {"max_tokens": 24},
        "guard": {"truncated": 1.0},
    }
    return resolve({**base, **fields})


def watched(recipe: Any, world: Any, folder: Path) -> Watched:
    tracker = Tracker(folder, TrackingConfig(samples=0), None)
    return Watched(recipe, 0, 0, "unused", world, tracker, folder)
