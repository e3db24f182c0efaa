"""Weight sync through real Ray actors: a far side that hangs, dies or refuses is named in time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from launch import fleet
from launch.cluster import cluster
from launch.transport import Seat, choose, names
from samplers.ring import SyncError
from trainer.config import load
from trainer.faults import Lost

DEADLINE = 5.0
"""Seconds; ten thousand times what this model's sync takes."""


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still, as one that hangs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def pid(actor) -> int:
    import ray

    return ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))


def same_weights(world: fleet.Fleet) -> bool:
    """Whether all engines give the learner's logprobs (by one prompt's)."""
    ids = [[7, 8, 9, 10, 11, 12]]
    import numpy as np
    import ray

    arrays = [np.asarray(row, np.int32) for row in ids]
    scores = ray.get([a.score.remote(arrays) for a in world.engines.team.actors])
    versions = ray.get(
        [
            a.__ray_call__.remote(lambda actor: actor.worker.engine.version)
            for a in world.engines.team.actors
        ]
    )
    return versions == [world.version] * len(versions) and all(
        np.array_equal(scores[0][0], s[0]) for s in scores
    )


@pytest.mark.slow
def test_faults_of_either_side_are_named(tmp_path: Path) -> None:
    """One fleet, one fault after the other; after each it is connected anew and syncs again."""
    import ray

    from trainer.modelfolder import fetch

    settings = ["rollout.workers=2", "learner.ranks=2", f"sync.deadline={DEADLINE}"]
    settings += ["verifier=tests.graders:by_text", "grader.deadline=5"]
    stage = load("grpo/find", (f"output={tmp_path}", *settings)).stages[0]
    files = set(os.listdir("/dev/shm"))
    with cluster(cpus=8), fleet.Fleet(stage, str(fetch(stage.model.path))) as world:
        learner, (first, second) = world.learners.team.actors[0], world.engines.team.actors

        def healthy() -> None:
            world.connect()
            world.sync()
            assert same_weights(world)

        healthy()
        with ThreadPoolExecutor(1) as beside:  # a call whose item hangs stops no other call
            sick = beside.submit(world.grade, [("hang", "yes", {})])
            time.sleep(0.3)
            assert world.grade([("a yes", "yes", {})])[0].correct
            assert "latency_p99" in world.grading()
            assert not sick.done()
        assert sick.result()[0].status == "timeout"
        ray.get(second.__ray_call__.remote(lambda actor: actor.worker.engine.sleep()))
        with pytest.raises((ValueError, SyncError), match=r"cannot load.* asleep; call wake\(\)"):
            world.sync()
        ray.get(second.__ray_call__.remote(lambda actor: actor.worker.engine.wake()))
        healthy()
        with stopped(pid(second)):
            world.sync()  # by the one in its place
        assert [(f.role, f.index) for f in world.faults()] == [("rollout", 1)]
        assert same_weights(world)
        with stopped(pid(learner)), pytest.raises(Lost, match="learner rank 0 did not answer"):
            world.sync()
        world.restart(Lost("learner", 0, "hung"))
        assert [(f.role, f.index) for f in world.faults()] == [("learner", 0)]
        healthy()
        psutil.Process(pid(first)).kill()
        world.sync()
        assert [(f.role, f.index) for f in world.faults()] == [("rollout", 0)]
        assert same_weights(world)
    rings = [name for name in set(os.listdir("/dev/shm")) - files if "laconic" in name]
    assert rings == []


# Which way weights go


def seats(node: str, *gpus: str, readers: int = 0) -> Seat:
    return Seat(node, gpus, readers)


@pytest.mark.parametrize(
    ("asked", "engine", "learners", "engines", "expected"),
    [
        ("auto", "torch", [seats("a")], [seats("a")] * 2, "shm"),
        ("auto", "vllm", [seats("a")], [seats("a")], "shm"),
        ("auto", "vllm", [seats("a", "0")], [seats("a", "1")], "shm"),
        ("auto", "vllm", [seats("a", "0")], [seats("a", "0")], "ipc"),
        ("auto", "vllm", [seats("a", "0")], [seats("a", "0"), seats("a", "1")], "shm"),
        ("auto", "vllm", [seats("a", "0")], [seats("b", "0"), seats("a", "1")], "nccl"),
        ("nccl", "vllm", [seats("a", "0")], [seats("a", "1", "2")], "nccl"),
        ("auto", "vllm", [seats("a", "0"), seats("b", "0")], [seats("b", "0")], "nccl"),
    ],
)
def test_transport_follows_where_everyone_sits(asked, engine, learners, engines, expected) -> None:
    assert choose(asked, engine, learners, engines) == expected


@pytest.mark.parametrize(
    ("asked", "engine", "learners", "engines", "message"),
    [
        ("auto", "torch", [seats("a")], [seats("a"), seats("b")], r"engines \[1\] sit on another"),
        ("shm", "torch", [seats("a")], [seats("b")], "lower rollout.workers"),
        ("nccl", "torch", [seats("a", "0")], [seats("a", "1")], "this is torch; use vllm"),
        ("nccl", "vllm", [seats("a")], [seats("a")], "run where there are GPUs"),
        ("nccl", "vllm", [seats("a", "0")], [seats("a", "0")], "GPU 0 is shared"),
        ("ipc", "vllm", [seats("a", "0")], [seats("a", "1")], "share no GPU with a learner"),
        ("ipc", "vllm", [seats("a", "0")], [seats("b", "0")], "sit on another node"),
    ],
)
def test_what_cannot_work_is_refused(asked, engine, learners, engines, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        choose(asked, engine, learners, engines)
    assert "\n" not in str(error.value)


def test_readers_are_named_engine_by_engine() -> None:
    engines = [seats("a", readers=1), seats("a", "1", "2", readers=2)]
    assert names(engines) == ["engine 0", "engine 1 (process 0)", "engine 1 (process 1)"]
