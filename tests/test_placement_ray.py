"""Where Ray puts processes: what it says of its nodes, and what it does with the groups."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from launch.hardware import KIND, Cluster, Node
from launch.placement import place
from tests.test_placement import stage_of
from trainer.config import Stage
from trainer.faults import Role


def _raw(name: str, resources: dict[str, float], alive: bool = True) -> dict[str, Any]:
    """As Ray 2.60 describes a node."""
    return {
        "NodeID": f"id-{name}",
        "Alive": alive,
        "NodeManagerAddress": "10.0.0.1",
        "NodeManagerHostname": name,
        "NodeName": "10.0.0.1",
        "Resources": {"node:10.0.0.1": 1.0, "object_store_memory": 1e9} | resources,
        "Labels": {"ray.io/node-id": f"id-{name}"},
    }


def test_a_cluster_is_what_ray_says_of_nodes_that_live() -> None:
    gpus = {"CPU": 32.0, "GPU": 8.0, "memory": 2e11, f"{KIND}H100": 1.0}
    head = {"node:__internal_head__": 1.0, "CPU": 4.0}
    found = Cluster.of_ray(
        [_raw("b", gpus), _raw("z", head), _raw("c", gpus, alive=False), _raw("a", {"GPU": 1.0})]
    )
    assert found.nodes == (
        Node(cpus=4.0, name="z", id="id-z"),
        Node(1, cpus=0.0, name="a", id="id-a"),
        Node(8, "H100", cpus=32.0, host_bytes=2e11, name="b", id="id-b"),
    )


@pytest.mark.slow
def test_ray_seats_them_as_planned() -> None:
    """A Ray of three uneven nodes with logical GPUs: every process is on the node of its seat."""
    code = "from tests.test_placement_ray import on_three_nodes; on_three_nodes()"
    env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith('{"seats"'))
    out = json.loads(line)  # Ray prints what it thinks of a raylet that dies
    for drawn, found in out["seats"]:
        assert [node for node, _ in found] == [node for node, _ in drawn]
        gpus = [sorted(Counter((n, tuple(g)) for n, g in rows).values()) for rows in (drawn, found)]
        assert gpus[0] == gpus[1], "as many to a GPU"
    before, after = out["moved"]
    assert before != after, "the node is gone, and its worker somewhere else"
    assert out["busy"].startswith("rollout: 1 x ")
    assert "others hold the rest" in out["busy"]


class Process:
    """A light actor."""

    def seat(self) -> tuple[str, list[int]]:
        import ray

        return ray.get_runtime_context().get_node_id(), [int(i) for i in ray.get_gpu_ids()]


def on_three_nodes() -> None:
    """Print node and GPUs of every rank and engine, as drawn and as Ray put them; and what becomes
    of them when a node is lost or busy."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from launch import team

    nodes = Nodes()
    for gpus, kind, cpus in ((2, "H100", 8), (4, "A100", 8), (0, "none", 4)):
        more = {f"{KIND}{kind}": 1.0} if gpus else {}
        last = nodes.add_node(num_cpus=cpus, num_gpus=gpus, resources=more, include_dashboard=False)
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        roles: tuple[Role, ...] = ("learner", "rollout", "grader")
        cases = [
            (roles, stage_of(2, 3, 0, "grader.workers=3")),
            (roles[:2], stage_of(4, 1, 2)),
            (roles[:2], stage_of(3, 5)),
            (roles[:2], stage_of(2, 3, 1, "sync.transport=ipc")),
        ]
        out: dict[str, Any] = {"seats": [seats for case in cases for seats in _seated(*case)]}
        placement = place(stage_of(1, 1, 0, "grader.workers=3"), Cluster.of_ray(ray.nodes()))
        graders = team.Team("grader", Process, placement)
        seats = placement.seats["grader"]
        (lone,) = (i for i in range(3) if placement.cluster.nodes[seats[i].node].id == last.node_id)
        first = ray.get(graders.actors[lone].seat.remote())
        nodes.remove_node(last, allow_graceful=False)
        graders.replace(lone)
        out["moved"] = (first[0], ray.get(graders.actors[lone].seat.remote())[0])
        graders.close()
        team.SCHEDULE_S = 2.0
        whole = place(stage_of(1, 1, 4), Cluster.of_ray(ray.nodes()))
        holder = team.Team("rollout", Process, whole)
        try:
            team.Team("rollout", Process, whole)
        except ValueError as error:
            out["busy"] = str(error)
        holder.close()
        print(json.dumps(out))
    finally:
        ray.shutdown()
        nodes.shutdown()


def _seated(roles: Sequence[Role], stage: Stage) -> list[Any]:
    """Of each role: (as drawn, as found)."""
    import ray

    from launch.team import Team

    placement = place(stage, Cluster.of_ray(ray.nodes()))
    teams = [Team(role, Process, placement) for role in roles]
    out = []
    for team in teams:
        seats = placement.seats[team.role]
        drawn = [(placement.cluster.nodes[seat.node].id, seat.gpus) for seat in seats]
        out.append((drawn, ray.get([actor.seat.remote() for actor in team.actors])))
    for team in teams:
        team.close()
    return out
