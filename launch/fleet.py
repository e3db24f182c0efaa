"""Where Ray comes in: plain classes become actors, and together they are a World.

Nothing here waits for ever: what cannot be scheduled is told within `SCHEDULE_S` seconds with
the numbers asked for and available, and an actor that dies is an error that names it.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain, count
from pathlib import Path
from typing import Any

from launch.actors import GraderActor, LearnerActor, RolloutActor
from launch.cluster import cluster as cluster
from launch.dispatch import CALLS, Dispatch, Lots, outbound
from launch.placement import Cluster, Placement, Role, place
from launch.streams import Streams, result
from launch.transport import choose, names
from rewards.verdict import Verdict
from samplers import columns
from samplers.engines.base import environment
from samplers.ring import Source, SyncError
from samplers.types import Ids, Job, Rollout
from trainer.config import Stage
from trainer.types import Batch, Floats, MicroBatch
from trainer.world import Item

SCHEDULE_S = 30.0
THREADS = {"rollout": 2 * CALLS, "flow": 1, "abort": 1}
"""Of an engine's actor, beside the main one: rollouts go on beside each other and beside weights;
lots are added in the order of asking, and none between an engine's falling asleep and waking."""
GRADES = 8
"""Calls that a grader serves at once (training ahead, evaluation, figures): an item that hangs is
waited for by who asked, and by nobody else."""


class Fleet:
    """A World of Ray actors for one stage."""

    def __init__(self, stage: Stage, model: str, seed: int = 0, deterministic: bool = True) -> None:
        self.stage, self.seed, self.version = stage, seed, 0
        self.actors: dict[Role, list[Any]] = {"learner": [], "rollout": [], "grader": []}
        self._turn = "wake"
        self._groups: list[Any] = []
        self._sources: list[Source] = []
        self._order, self._ended = threading.Lock(), threading.Event()
        self._by_turns, self._flows = deterministic, count()
        self.opened: bool | None = None
        """Whether the chat template opens the thought; None where nothing is generated."""
        try:
            self.placement = place(stage, _gpus())
            self._spawn(self.placement)
            self._build(model)
            self.connect()
            engines, slots = len(self.actors["rollout"]), stage.rollout.engine.slots
            self._dispatch = Dispatch(engines, slots, self._send, self._take)
        except BaseException:
            self.close()
            raise

    def _spawn(self, placement: Placement) -> None:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        classes = {"learner": LearnerActor, "rollout": RolloutActor, "grader": GraderActor}
        for role, bundles in placement.bundles.items():
            if not bundles:
                continue
            group = placement_group(list(bundles), strategy=placement.strategies[role])
            self._groups.append(group)
            if not group.wait(SCHEDULE_S):
                raise ValueError(
                    f"{role}: {len(bundles)} x {bundles[0]} could not be placed within "
                    f"{SCHEDULE_S:.0f} s. Asked in all: {placement.totals}; cluster: "
                    f"{_numbers(ray.cluster_resources())}; free: "
                    f"{_numbers(ray.available_resources())}; ask for fewer, or give Ray more"
                )
            for i, bundle in enumerate(bundles):
                groups = THREADS if role == "rollout" else None
                variables = environment(self.stage.rollout.engine) if role == "rollout" else {}
                remote = ray.remote(concurrency_groups=groups)(classes[role])
                strategy = PlacementGroupSchedulingStrategy(group, i)
                self.actors[role].append(
                    remote.options(
                        num_cpus=bundle["CPU"],
                        num_gpus=bundle.get("GPU", 0),
                        max_concurrency=GRADES if role == "grader" else None,
                        scheduling_strategy=strategy,
                        runtime_env={"env_vars": variables} if variables else None,
                    ).remote()
                )

    def _build(self, model: str) -> None:
        learners, device = self.actors["learner"], self.placement.device
        master = _wait([learners[0].address.remote()])[0]
        building = [
            actor.build.remote(self.stage, model, rank, master, device, self.seed)
            for rank, actor in enumerate(learners)
        ]
        if self.placement.shared:  # vLLM measures what it finds free while it starts
            _wait(building)
        engines = [a.build.remote(self.stage, model, device) for a in self.actors["rollout"]]
        graders = [a.build.remote(self.stage, sys.path) for a in self.actors["grader"]]
        opened = _wait([*engines, *building, *graders])[: len(engines)]
        self.opened = opened[0] if opened else None

    def connect(self) -> None:
        """Settle how weights travel, and tell everyone; again after a sync that failed.

        Raises:
            ValueError: they cannot travel as asked, or at all, from where everyone sits.
        """
        learners, engines = self.actors["learner"], self.actors["rollout"]
        if not engines:
            return
        seats = _wait([actor.where.remote() for actor in (*learners, *engines)])
        theirs = seats[len(learners) :]
        engine = self.stage.rollout.engine.name
        kind = choose(self.stage.sync.transport, engine, seats[: len(learners)], theirs)
        host, port = _wait([learners[0].address.remote()])[0]
        source, *_ = _wait([a.connect.remote(kind, names(theirs), port, host) for a in learners])
        firsts = accumulate((seat.readers for seat in theirs), initial=0)
        self._sources = [source.of(first) for first, _ in zip(firsts, theirs, strict=False)]

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
        """Whole groups go to engines by turns, one ordered list each; or to who has room."""
        self._take_turns("wake")
        if not self._by_turns:
            return self._dispatch.run(jobs)
        engines = self.actors["rollout"]
        turn = {
            group: i % len(engines) for i, group in enumerate(dict.fromkeys(j.group for j in jobs))
        }
        lists = [[j for j in jobs if turn[j.group] == e] for e in range(len(engines))]
        busy = [(a, js) for a, js in zip(engines, lists, strict=True) if js]
        packed = _wait([actor.rollout.remote(*outbound(js)) for actor, js in busy])
        made = {
            (r.group, r.index): r
            for (_, js), got in zip(busy, packed, strict=True)
            for r in columns.unpack(got, js)
        }
        return [made[j.group, j.index] for j in jobs]

    def flow(self) -> Lots:
        """Lots go to who has room, whatever the number of engines; asleep ones wake for them."""
        wake = partial(self._take_turns, "wake")
        return self._dispatch.flow(
            Streams(self.actors["rollout"], next(self._flows), wake, self._ended)
        )

    def _send(self, engine: int, jobs: list[Job]) -> Any:
        actor = self.actors["rollout"][engine]
        return actor.rollout.options(concurrency_group="rollout").remote(*outbound(jobs))

    def _take(self, refs: list[Any]) -> tuple[Any, Any]:
        import ray

        while not self._ended.is_set():
            done, _ = ray.wait(refs, num_returns=1, timeout=0.5)
            if done:
                return done[0], _wait(done)[0]
        raise RuntimeError("rollouts were aborted")

    def abort(self) -> None:
        """For a run that ends: what is being made is of no use to anybody."""
        self._ended.set()
        for actor in self.actors["rollout"]:
            actor.abort.options(concurrency_group="abort").remote()

    def probe(self, ids: Sequence[Ids]) -> list[Floats]:
        """By another engine at each version."""
        self._take_turns("wake")
        engines = self.actors["rollout"]
        actor = engines[self.version % len(engines)]
        scores: list[Floats] = _wait([actor.score.remote(ids)])[0]
        return scores

    def grade(self, items: Sequence[Item]) -> list[Verdict]:
        """By stretches: a group's answers, equal ones among them, meet in one cache."""
        graders = self.actors["grader"]
        each = -(-len(items) // len(graders))
        shares = [items[i * each : (i + 1) * each] for i in range(len(graders))]
        graded = _wait([a.grade.remote(s) for a, s in zip(graders, shares, strict=True) if s])
        return [verdict for verdicts in graded for verdict in verdicts]

    def grading(self) -> dict[str, float]:
        """The worst of the graders."""
        stats = _wait([actor.stats.remote() for actor in self.actors["grader"]])
        return {
            name: max(s[name] for s in stats if name in s) for name in {n for s in stats for n in s}
        }

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        text: list[str] = _wait([self.actors["rollout"][0].decode.remote(ids)])[0]
        return text

    def score(self, batch: Batch, which: str) -> list[Floats]:
        """Logprobs of each micro-batch's scored tokens."""
        scored = self._of_each(batch, lambda actor, share: actor.score.remote(share, which))
        return [logprobs_N for logprobs_N, _ in scored]

    def norms(self, batch: Batch, scope: str) -> list[Floats]:
        return self._of_each(batch, lambda actor, share: actor.norms.remote(share, scope))

    def _of_each(self, batch: Batch, ask: Callable[[Any, Any], Any]) -> list[Any]:
        """The learners' answers to each micro-batch: updates, then ranks, then micro-batches."""
        self._take_turns("sleep")
        out: list[Any] = []
        for shares in batch.updates:
            answers = _wait(self._learners(partial(_asked, ask, shares)))
            out += chain.from_iterable(answers)
        return out

    def variance(self, shares: Sequence[Sequence[Sequence[MicroBatch]]]) -> tuple[float, float]:
        self._take_turns("sleep")
        sums: tuple[float, float] = _wait(
            self._learners(lambda rank, actor: actor.variance.remote(shares[rank]))
        )[0]
        return sums

    def step(self, batch: Batch) -> dict[str, Any]:
        epochs = self.stage.epochs
        self._take_turns("sleep")
        results = _wait(self._learners(lambda r, a: a.step.remote(batch.share(r), epochs)))
        metrics: dict[str, Any] = dict(results[0])
        metrics["time/learner"] = max(r["seconds"] for r in results)
        metrics["memory/learner_mb"] = max(r["peak_memory_mb"] for r in results)
        return {k: v for k, v in metrics.items() if k not in ("seconds", "peak_memory_mb")}

    def sync(self) -> None:
        """Every rank takes part in publishing; every engine loads the same buckets.

        Raises:
            SyncError: a learner or an engine failed, died or did not answer by the deadline.
        """
        self.version += 1
        learners, engines = self.actors["learner"], self.actors["rollout"]
        if not engines:
            return
        self._take_turns("wake")
        refs = self._learners(lambda _, actor: actor.publish.remote())
        refs += [
            actor.receive.remote(source, self.version)
            for actor, source in zip(engines, self._sources, strict=True)
        ]
        who = [f"learner rank {i}" for i in range(len(learners))]
        who += [f"engine {i}" for i in range(len(engines))]
        _wait(refs, dict(zip(refs, who, strict=True)), self.stage.sync.deadline)

    def _learners(self, call: Callable[[int, Any], Any]) -> list[Any]:
        """`call(rank, actor)` for all ranks: calls of two threads come to each in one order."""
        with self._order:
            return [call(rank, actor) for rank, actor in enumerate(self.actors["learner"])]

    def _take_turns(self, what: str) -> None:
        """Engines on the learners' own GPUs `sleep`, or `wake` when the learners make room."""
        sleeps = getattr(self.stage.rollout.engine, "sleep", True)  # vLLM's has to be asked for
        if not (self.placement.shared and sleeps) or what == self._turn:
            return
        if what == "wake":
            _wait(self._learners(lambda _, actor: actor.rest.remote()))
        turns = [getattr(actor, what) for actor in self.actors["rollout"]]
        _wait([turn.options(concurrency_group="flow").remote() for turn in turns])
        self._turn = what

    def save(self, folder: Path) -> None:
        _wait(self._learners(lambda _, actor: actor.save.remote(str(folder / "learner"))))
        self.export(folder / "model")

    def load(self, folder: Path) -> None:
        _wait(self._learners(lambda _, actor: actor.load.remote(str(folder / "learner"))))

    def export(self, folder: Path) -> None:
        _wait(self._learners(lambda _, actor: actor.export.remote(str(folder))))

    def profile(self, folder: Path | None) -> None:
        asked = [
            actor.profile.remote(str(folder) if folder else None, f"{role}-{i}")
            for role, actors in self.actors.items()
            for i, actor in enumerate(actors)
        ]
        _wait(asked)

    def close(self) -> None:
        """Learners leave their process group cleanly; then every actor is ended."""
        import ray
        from ray.util import remove_placement_group

        if not ray.is_initialized():
            return
        leaving = [a.close.remote() for role in ("learner", "grader") for a in self.actors[role]]
        with contextlib.suppress(Exception):  # whatever is already dead need not say goodbye
            ray.wait(leaving, num_returns=len(leaving), timeout=5) if leaving else None
        for actors in self.actors.values():
            for actor in actors:
                ray.kill(actor)
            actors.clear()
        for group in self._groups:
            remove_placement_group(group)
        self._groups.clear()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _wait(
    refs: list[Any], names: Mapping[Any, str] | None = None, deadline: float = math.inf
) -> list[Any]:
    """Results of all, or the first failure at once: a user's error as itself, a death by name.

    Args:
        names: whose answer each is, where it is worth saying.
        deadline: seconds after which those that did not answer are a SyncError.
    """
    import ray

    pending, until, names = list(refs), time.monotonic() + deadline, names or {}
    while pending:
        left = until - time.monotonic()
        if left <= 0:
            silent = ", ".join(names.get(ref, "a worker process") for ref in pending)
            raise SyncError(f"weight sync: {silent} did not answer within {deadline:g} s")
        done, pending = ray.wait(pending, num_returns=1, timeout=min(5, left))
        for ref in done:
            result(ref, names.get(ref, "a worker process"))
    return ray.get(refs)


def _asked(ask: Callable[[Any, Any], Any], shares: Sequence[Any], rank: int, actor: Any) -> Any:
    return ask(actor, shares[rank])


def _gpus() -> Cluster:
    """GPUs of every node that is there."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(tuple(int(resources.get("GPU", 0)) for resources in nodes))


def _numbers(resources: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in resources.items() if k in ("CPU", "GPU")}
