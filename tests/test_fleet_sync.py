"""Weight sync through real Ray actors: a far side that hangs, dies or refuses is named in time."""

from __future__ import annotations

import hashlib
import os
import signal
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from launch import fleet
from launch.cluster import cluster
from launch.transport import Seat, choose, names, ways
from samplers.ring import SyncError
from tests.raylets import raylets
from trainer.config import load
from trainer.faults import Lost
from trainer.sync import SyncConfig

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


# Between nodes


def holds(actor) -> dict[str, str]:
    """A digest of every weight of an engine or a learner."""
    import ray

    def digests(actor) -> dict[str, str]:
        model = actor.worker.engine.model if hasattr(actor, "worker") else actor.learner.model
        return {
            name: hashlib.sha256(p.detach().numpy().tobytes()).hexdigest()
            for name, p in model.named_parameters()
        }

    return ray.get(actor.__ray_call__.remote(digests))


def ways_of(world: fleet.Fleet) -> dict[int, str]:
    return {index: source.kind for index, source in world._sources.items()}


def lines(actor) -> list[str]:
    """What the engine's kept readers read from."""
    import ray

    def kinds(_) -> list[str]:
        from samplers import ring

        return [type(reader._line).__name__ for reader in ring._kept.values()]

    return ray.get(actor.__ray_call__.remote(kinds))


def die_in_the_middle(actor) -> None:
    """The engine ends itself at the third weight of the next sync."""
    import ray

    def prepare(actor) -> None:
        engine = actor.worker.engine
        load = engine.load_weights

        def third(weights):
            for number, pair in enumerate(weights):
                if number == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield pair

        engine.load_weights = lambda weights, version: load(third(weights), version)

    ray.get(actor.__ray_call__.remote(prepare))


@pytest.mark.slow
def test_weights_cross_nodes_and_a_lost_far_engine_is_named(tmp_path: Path) -> None:
    """The learner and one engine on a node, one engine on another: it gets them by TCP; with
    checksums, too. Killed in the middle of it, it is named with its host, and made anew."""
    import ray

    from trainer.modelfolder import fetch

    settings = ["rollout.workers=2", "learner.ranks=1", "grader.workers=1", "sync.checksum=true"]
    settings += [f"output={tmp_path}", f"sync.deadline={DEADLINE}"]
    stage = load("grpo/find", settings).stages[0]
    nodes = ({"num_cpus": 3}, {"num_cpus": 1, "node_ip_address": "127.0.0.2"})
    with raylets(*nodes), fleet.Fleet(stage, str(fetch(stage.model.path))) as world:
        (learner,), engines = world.learners.team.actors, world.engines.team.actors
        at = [ray.get(actor.process.remote())[0] for actor in (learner, *engines)]
        (far,) = (index for index in (0, 1) if at[1 + index] != at[0])
        assert ways_of(world) == {far: "tcp", 1 - far: "shm"}
        for _ in range(2):
            world.sync()
            assert same_weights(world)
        assert holds(engines[far]) == holds(engines[1 - far]) == holds(learner)
        assert (lines(engines[far]), lines(engines[1 - far])) == (["Far"], ["Near"])
        told, mend = [], world._mend

        def hear(*lost):
            broken = learner.__ray_call__.remote(lambda actor: actor.publisher._writer._broken)
            told.append(ray.get(broken))
            return mend(*lost)

        world._mend = hear  # type: ignore[method-assign]
        die_in_the_middle(engines[far])
        world.sync()
        assert told == [f"weight sync: engine {far} on 127.0.0.2 died"]
        assert [(f.role, f.index) for f in world.faults()] == [("rollout", far)]
        assert ways_of(world) == {far: "tcp", 1 - far: "shm"}
        assert same_weights(world)


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
        ("auto", "torch", [seats("a")], [seats("a"), seats("b")], "tcp"),
        ("auto", "torch", [seats("a", "0")], [seats("b", "0")], "tcp"),
        ("auto", "vllm", [seats("a")], [seats("b")], "tcp"),
        ("auto", "vllm", [seats("a", "0")], [seats("b", "0")] * 2, "tcp"),  # share a GPU
        ("tcp", "torch", [seats("a")], [seats("a")], "tcp"),
        ("tcp", "vllm", [seats("a", "0")], [seats("b", "0")], "tcp"),
    ],
)
def test_transport_follows_where_everyone_sits(asked, engine, learners, engines, expected) -> None:
    assert choose(SyncConfig(transport=asked), engine, learners, engines) == expected


@pytest.mark.parametrize(
    ("asked", "chosen", "expected"),
    [
        ("auto", "tcp", ["shm", "tcp", "shm"]),
        ("auto", "shm", ["shm", "tcp", "shm"]),  # one was made anew elsewhere since
        ("tcp", "tcp", ["tcp", "tcp", "tcp"]),
        ("auto", "nccl", ["nccl", "nccl", "nccl"]),
        ("ipc", "ipc", ["ipc", "ipc", "ipc"]),
    ],
)
def test_engines_beside_the_learner_read_its_memory(asked, chosen, expected) -> None:
    engines = [seats("a"), seats("b"), seats("a")]
    assert ways(chosen, SyncConfig(transport=asked), seats("a"), engines) == expected


def test_shared_memory_alone_does_not_follow_an_engine_to_another_node() -> None:
    with pytest.raises(
        ValueError, match=r"transport=shm: engines \[1\] .* set sync.transport: auto"
    ):
        ways("shm", SyncConfig(transport="shm"), seats("a"), [seats("a"), seats("b")])


@pytest.mark.parametrize(
    ("asked", "engine", "learners", "engines", "message"),
    [
        ("shm", "torch", [seats("a")], [seats("a"), seats("b")], r"engines \[1\] sit on another"),
        ("shm", "torch", [seats("a")], [seats("b")], "use sync.transport: tcp, or lower rollout"),
        ("nccl", "torch", [seats("a", "0")], [seats("a", "1")], "this is torch; use vllm"),
        ("nccl", "vllm", [seats("a")], [seats("a")], "run where there are GPUs"),
        ("nccl", "vllm", [seats("a", "0")], [seats("a", "0")], "GPU 0 is shared"),
        ("ipc", "vllm", [seats("a", "0")], [seats("a", "1")], "share no GPU with a learner"),
        ("ipc", "vllm", [seats("a", "0")], [seats("b", "0")], "sit on another node"),
    ],
)
def test_what_cannot_work_is_refused(asked, engine, learners, engines, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        choose(SyncConfig(transport=asked), engine, learners, engines)
    assert "\n" not in str(error.value)


def test_a_checksum_that_is_not_made_is_told() -> None:
    """vLLM's own transfers have none."""
    checked, gpus = SyncConfig(checksum=True), [seats("a", "0")]
    with pytest.warns(UserWarning, match="checksum has no effect where weights travel by nccl"):
        assert choose(checked, "vllm", gpus, [seats("b", "0")]) == "nccl"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(checked, "torch", gpus, [seats("b", "0")])
        choose(SyncConfig(), "vllm", gpus, [seats("b", "0")])


def test_readers_are_named_engine_by_engine() -> None:
    """And where they are, if not on the learner's node."""
    far = Seat("b", readers=1, address="10.0.0.7")
    engines = [seats("a", readers=1), seats("a", "1", "2", readers=2), far]
    told = ["engine 0", "engine 1 (process 0)", "engine 1 (process 1)", "engine 2 on 10.0.0.7"]
    assert names(engines, seats("a")) == told
    assert names([far], seats("a"), [7]) == ["engine 7 on 10.0.0.7"]
