"""Nodes that leave a cluster, and nodes that join: what was at work there is done elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch import fleet
from samplers.types import Rollout
from tests import killing
from tests.raylets import Raylets, raylets
from tests.test_fleet_sync import same_weights
from tests.test_flow import rest
from tests.test_lost_engines import bits, jobs
from trainer.config import load
from trainer.modelfolder import fetch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is the tests' own, by processes that start in the folder of their node."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@contextmanager
def started(tmp_path: Path) -> Iterator[tuple[fleet.Fleet, Raylets]]:
    """The learner, a reward worker and an engine beside the driver, an engine on a node of its
    own."""
    slow = "rollout.engine={name: tests.slow_engine, seconds: 0.02, slots: 32}"
    given = ("rollout.workers=2", "learner.ranks=1", "grader.workers=1", "evaluation=null", slow)
    stage = load("grpo/find", (f"output={tmp_path}", "rollout.max_tokens=120", *given)).stages[0]
    with (
        raylets({"num_cpus": 3}, {"num_cpus": 1}) as nodes,
        fleet.Fleet(stage, str(fetch("base/find"))) as world,
    ):
        assert [seat.node for seat in world.placement.seats["rollout"]] == [0, 1]
        yield world, nodes


@pytest.mark.slow
def test_others_do_the_work_of_a_lost_node_until_another_joins(tmp_path: Path) -> None:
    with started(tmp_path) as (world, nodes), ThreadPoolExecutor(1) as beside:
        world.sync()
        want = made(world)
        got = beside.submit(world.rollout, jobs())
        assert _until(lambda: world.engines._sent)
        nodes.kill(nodes.nodes[1])
        began = time.monotonic()
        assert tokens(got.result()) == want
        print(f"made elsewhere in {time.monotonic() - began:.1f} s")
        (fault,) = world.faults()
        assert (fault.role, fault.index) == ("rollout", 1)
        assert "there is no place for another: its work goes to others" in fault.what
        assert world.engines.present == [0]
        world.sync()
        assert made(world) == want
        _in_a_flow(world)

        nodes.add(num_cpus=1)
        began = time.monotonic()
        while world.engines.away:
            world.sync()
            time.sleep(0.2)
        print(f"there again in {time.monotonic() - began:.1f} s")
        (fault,) = world.faults()
        assert fault.what == "engine 1 is there again"
        assert same_weights(world)
        assert made(world) == want


def made(world: fleet.Fleet) -> list[tuple[object, ...]]:
    return tokens(world.rollout(jobs()))


def tokens(rollouts: list[Rollout]) -> list[tuple[object, ...]]:
    """The same bits, of whatever version: nobody has learned anything meanwhile."""
    return [(place, *(run[:3] for run in runs)) for place, *runs in map(bits, rollouts)]


def _in_a_flow(world: fleet.Fleet) -> None:
    with world.flow() as flow:
        for group in range(6):
            flow.add([job for job in jobs() if job.group == group])
        assert len([rollout for lot in rest(flow) for rollout in lot]) == len(jobs())


def _until(true: object, seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():  # type: ignore[operator]
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
def test_a_run_outlives_its_learners_node_and_goes_on_elsewhere_after_its_heads_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is, at its end, the one that nothing has happened to."""
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "8")  # 60, across a network
    settings = ("rollout.workers=1", "learner.ranks=2", "checkpoint.every=1", "evaluation=null")
    (tmp_path / "lost").mkdir()
    words, folder = (
        killing.words("plain", tmp_path / "lost", "steps=500", *settings),
        tmp_path / "lost/run-seed0",
    )
    each = ({"num_cpus": 1}, {"num_cpus": 2}, {"num_cpus": 1})
    with raylets(*each, driver=False) as nodes:
        run = killing.Running(["train", *words, "--address", nodes.cluster.address], folder)
        try:
            assert run.wait(lambda: run.reached("step", 2)), run.text()
            nodes.add(num_cpus=2)
            nodes.kill(nodes.nodes[1])
            faults = folder / "faults.jsonl"
            assert run.wait(lambda: faults.exists() and faults.read_text(), 240), run.text()
            nodes.nodes[0].kill_gcs_server()
            assert run.end() == 1, run.text()
            assert "laconic resume" in run.text().splitlines()[-1], run.text()
            assert "Traceback" not in run.text()
        finally:
            print(run.text())
            killing.stop(run.process)
    (fault,) = killing.faults(folder)
    assert (fault["role"], "learners were started anew" in fault["what"]) == ("learner", True)
    assert "system/" in (folder / "metrics.jsonl").read_text()  # of every node
    steps = f"steps={killing.steps(folder)[-1] + 1}"
    run = killing.Running(["resume", str(folder), steps], folder)
    assert run.end() == 0, run.text()
    whole = killing.undisturbed("plain", tmp_path / "whole", *settings, steps)
    found = killing.differences(whole.folder, folder)
    assert [line for line in found if ": steps [" not in line] == []
    assert killing.steps(folder) == killing.steps(whole.folder)
