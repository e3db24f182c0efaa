"""Processes that stand still, or are cut off: they never say so, and nobody waits for ever."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import fleet
from launch.cluster import cluster
from launch.team import Team
from tests.test_fleet_sync import same_weights
from trainer.config import load
from trainer.faults import FaultConfig, Lost
from trainer.modelfolder import fetch

ITEMS = [("A", "A", {}), ("B", "A", {}), (None, "A", {}), ("C", "C", {})]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fleet.Fleet]:
    output = tmp_path_factory.mktemp("output")
    given = ("rollout.workers=1", "learner.ranks=2", "grader.workers=2", "evaluation=null")
    stage = load("grpo/find", (f"output={output}", *given)).stages[0]
    faults = FaultConfig(heartbeat=3.0)
    with cluster(cpus=8), fleet.Fleet(stage, str(fetch("base/find")), faults=faults) as world:
        world.sync()
        yield world


def stop(team: Team, index: int) -> None:
    team.know(index)
    os.kill(team._processes[index][1], signal.SIGSTOP)


@pytest.mark.slow
def test_what_a_silent_reward_worker_had_is_graded_by_another(world: fleet.Fleet) -> None:
    want = world.grade(ITEMS)
    assert [verdict.correct for verdict in want] == [True, False, False, True]
    stop(world.graders.team, 1)
    assert world.grade(ITEMS) == want
    (fault,) = world.faults()
    assert (fault.role, fault.index) == ("grader", 1)
    assert "said nothing for 3 s and was killed" in fault.what
    assert world.grade(ITEMS) == want
    assert world.faults() == []


@pytest.mark.slow
def test_a_silent_learner_is_lost_and_learners_start_anew(
    world: fleet.Fleet, tmp_path: Path
) -> None:
    stop(world.learners.team, 1)
    with pytest.raises(Lost, match=r"learner rank 1 said nothing for 3 s and was killed") as lost:
        world.save(tmp_path)
    world.restart(lost.value)
    (fault,) = world.faults()
    assert (fault.role, fault.index) == ("learner", 1)
    world.save(tmp_path)
    assert same_weights(world)
