"""Lots through real Ray actors: they come while others are made, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch import fleet
from launch.cluster import cluster
from samplers.types import Job, Plan, Prompt
from tests.test_flow import rest, tokens, versions
from trainer.config import load
from trainer.modelfolder import fetch

FIND = Prompt(0, "p", ({"role": "user", "content": "A1+1?"},), "", "A", "exact")


def asked(group: int, size: int, cap: int = 12) -> list[Job]:
    return [Job(FIND, Plan(cap), group, i, seed=group * 100 + i) for i in range(size)]


@pytest.mark.slow
def test_lots_come_from_real_actors_while_others_are_made(tmp_path: Path) -> None:
    """Two engines, one slow; lots of a later ask come before those of the first. Then a close in
    the middle, errors, and the death of an engine."""
    settings = (
        "deterministic=false", "rollout.workers=2", "rollout.max_tokens=120",
        f"rollout.engine={{name: tests.slow_engine, slots: 4, folder: {tmp_path}, seconds: 0.05}}",
    )  # fmt: skip
    stage = load("grpo/find", (*settings, "evaluation=null")).stages[0]
    model = str(fetch("base/find"))
    with cluster(cpus=4), fleet.Fleet(stage, model, deterministic=False) as world:
        _shares_out_and_keeps_nothing(world)
        _syncs_meanwhile(world)
        _wakes_engines_that_sleep(world)
        _ends_what_is_being_made(world)
        _names_mistakes_and_the_dead(world)


def _shares_out_and_keeps_nothing(world: fleet.Fleet) -> None:
    references = _references()
    engines: dict[int, int] = {}
    with world.flow() as flow:
        for group in range(12):
            flow.add(asked(group, 4))
        more, came, early = 12, {}, 0
        for rollouts in rest(flow):
            came[rollouts[0].group] = rollouts
            early += bool(flow._at)
            engines |= {job.group: e for e, jobs in flow._at.values() for job in jobs}
            if more < 24:
                flow.add(asked(more, 4))
                more += 1
    assert sorted(came) == list(range(24))
    assert list(came) != sorted(came)
    assert early > 12
    assert set(engines.values()) == {0, 1}
    jobs = [job for group in range(24) for job in asked(group, 4)]
    made = world.rollout(jobs)
    assert [tokens(r) for group in range(24) for r in came[group]] == list(map(tokens, made))
    del came, made, rollouts
    assert _references() <= references


def _references() -> int:
    """Objects of Ray that this process holds: rollouts in shared memory among them."""
    import gc

    from ray._private.worker import global_worker

    gc.collect()
    return len(global_worker.core_worker.get_all_reference_counts())


def _syncs_meanwhile(world: fleet.Fleet) -> None:
    """Drained: what was asked for before has the old weights only, what comes later the new."""
    import ray

    with world.flow() as flow:
        for group in range(4):
            flow.add(asked(group, 4))
        ray.get(list(flow._streams._sent))  # both engines have them
        world.sync()
        flow.add(asked(4, 4))
        came = {r[0].group: {v for one in r for v in versions(one)} for r in rest(flow)}
    assert [came[group] for group in range(5)] == [{0}] * 4 + [{1}]


def _wakes_engines_that_sleep(world: fleet.Fleet) -> None:
    """As on the learners' own GPU, in the middle of a step too: what is held ends first."""
    with pytest.MonkeyPatch.context() as patch, world.flow() as flow:
        patch.setattr(type(world.placement), "shared", True)
        for group in range(16):
            flow.add(asked(group, 4))
        assert flow._waiting
        world._take_turns("sleep")
        flow.add(asked(16, 4))
        came = {rollouts[0].group for rollouts in rest(flow)}
    assert came == set(range(17))


def _ends_what_is_being_made(world: fleet.Fleet) -> None:
    with world.flow() as flow:
        for group in range(40):
            flow.add(asked(group, 4, 120))
        flow.take()
        assert len(flow) > 20
    assert _held(world) == [(0, 0, 0)] * 2


def _held(world: fleet.Fleet) -> list[tuple[int, int, int]]:
    """Of each engine: flows, requests, lots."""
    import ray

    actors = world.engines.team.actors
    return ray.get([actor.__ray_call__.remote(_holds) for actor in actors])


def _holds(actor: Any) -> tuple[int, int, int]:
    return len(actor.flows), actor.worker.engine.pending, len(actor.worker._calls)


def _names_mistakes_and_the_dead(world: fleet.Fleet) -> None:
    import ray

    with world.flow() as flow:
        flow.add(asked(0, 4))
        flow.add(asked(1, 4, 10**6))
        with pytest.raises(ValueError, match="context"):
            list(rest(flow))
    with world.flow() as flow:
        for group in range(30):
            flow.add(asked(group, 4, 120))
        came = {rollouts[0].group for rollouts in flow.take()}
        ray.kill(world.engines.team.actors[1])
        came |= {rollouts[0].group for rollouts in rest(flow)}
    assert came == set(range(30)), "what was lost with its engine is made by the next"
    assert [fault.index for fault in world.faults()] == [1]
    world.abort()
    with world.flow() as flow:
        flow.add(asked(0, 4))
        with pytest.raises(RuntimeError, match="aborted"):
            flow.take()
