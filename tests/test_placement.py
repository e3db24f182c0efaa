"""Where processes sit: a pure function of stage and cluster, over many shapes of clusters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.placement import Cluster, Placement, place
from trainer.config import Stage, load

NODES = st.lists(st.integers(0, 8), min_size=1, max_size=4).map(tuple)


def _stage(ranks: int = 1, workers: int = 1, tensor: int = 0, *more: str) -> Stage:
    """`tensor` above 0: vLLM engines of that tensor-parallel width."""
    engine = ["rollout.engine.name=vllm", f"rollout.engine.tensor_parallel={tensor}"]
    sizes = [f"learner.ranks={ranks}", f"rollout.workers={workers}"]
    return load("grpo/find", [*sizes, *(engine if tensor else []), *more]).stages[0]


def _room(cluster: Cluster, ranks: int, tensor: int) -> int:
    """Engines of that width beside so many packed ranks, by counting."""
    room, left = 0, ranks
    for gpus in sorted(cluster.gpus, reverse=True):
        taken = min(left, gpus)
        left -= taken
        room += (gpus - taken) // tensor
    return room


@settings(max_examples=300, deadline=None)
@given(NODES, st.integers(1, 12), st.integers(1, 12), st.sampled_from([0, 1, 2, 4, 8]))
def test_every_process_gets_a_place_or_the_reason(
    gpus: tuple[int, ...], ranks: int, workers: int, tensor: int
) -> None:
    cluster, stage = Cluster(gpus), _stage(ranks, workers, tensor)
    span = max(1, tensor)
    if 0 < cluster.total < ranks:
        with pytest.raises(ValueError, match=f"learner.ranks={ranks} need a GPU each"):
            place(stage, cluster)
    elif cluster.total and span > max(gpus):
        with pytest.raises(ValueError, match=f"tensor_parallel={span} does not fit on a node"):
            place(stage, cluster)
    elif cluster.total and span > 1 and _room(cluster, ranks, span) < workers:
        with pytest.raises(ValueError, match=f"room for {_room(cluster, ranks, span)} on"):
            place(stage, cluster)
    else:
        placement = place(stage, cluster)
        assert placement == place(stage, cluster), "the same again"
        _check(placement, cluster, ranks, workers, span)


def _check(placement: Placement, cluster: Cluster, ranks: int, workers: int, span: int) -> None:
    learners, engines = placement.seats["learner"], placement.seats["rollout"]
    assert (len(learners), len(engines)) == (ranks, workers)
    assert {role: len(b) for role, b in placement.bundles.items()} == {
        role: len(s) for role, s in placement.seats.items()
    }
    assert placement.device == ("cuda" if cluster.total else "cpu")
    if not cluster.total:
        assert not any(seat.gpus for seat in (*learners, *engines))
        return
    taken = [(seat.node, gpu) for seat in learners for gpu in seat.gpus]
    assert len(set(taken)) == ranks, "two ranks never share a GPU"
    fewest, left = 0, ranks
    for gpus in sorted(cluster.gpus, reverse=True):
        fewest += left > 0
        left -= gpus
    assert len({seat.node for seat in learners}) == fewest, "ranks are packed"
    used: dict[tuple[int, int], float] = dict.fromkeys(
        taken, placement.bundles["learner"][0]["GPU"]
    )
    for seat in engines:
        assert len(set(seat.gpus)) == span
        for gpu in seat.gpus:
            assert gpu < cluster.gpus[seat.node]
            share = placement.bundles["rollout"][0]["GPU"] / span
            used[seat.node, gpu] = used.get((seat.node, gpu), 0) + share
    assert max(used.values()) <= 1 + 1e-9
    apart = cluster.total > ranks
    assert placement.shared == (not apart)
    if apart and span == 1:  # evenly over what ranks leave
        loads = [sum((s.node, g) in {(e.node, x) for x in e.gpus} for e in engines)
                 for s in engines for g in s.gpus]  # fmt: skip
        assert max(loads) == -(-workers // (cluster.total - ranks))


def test_engines_are_spread_over_nodes() -> None:
    placement = place(_stage(2, 4), Cluster((4, 4)))
    assert [s.node for s in placement.seats["learner"]] == [0, 0]
    assert sorted(s.node for s in placement.seats["rollout"]) == [0, 1, 1, 1]
    whole = place(_stage(4, 2, 2), Cluster((4, 4)))
    assert [(s.node, s.gpus) for s in whole.seats["rollout"]] == [(1, (0, 1)), (1, (2, 3))]
    assert whole.bundles["rollout"] == ({"CPU": 1.0, "GPU": 2.0},) * 2


def test_learners_take_the_largest_nodes() -> None:
    placement = place(_stage(8, 1), Cluster((2, 8)))
    assert {s.node for s in placement.seats["learner"]} == {1}
    assert placement.seats["rollout"][0].node == 0


@pytest.mark.parametrize(("gpus", "workers"), product(range(1, 7), range(1, 6)))
def test_ray_can_place_the_shares(gpus: int, workers: int) -> None:
    """First fit places every bundle; two ranks never fit on one GPU where there are several."""
    for ranks in range(1, gpus + 1):
        placement = place(_stage(ranks, workers), gpus)
        shares = [b["GPU"] for role in ("learner", "rollout") for b in placement.bundles[role]]
        assert len(shares) == ranks + workers
        assert ranks == 1 or shares[0] > 0.5
        assert gpus < ranks + workers or set(shares) == {1.0}
        free = [10_000] * gpus
        for share in shares:
            asked = round(share * 10_000)
            assert asked > 0
            assert asked == pytest.approx(share * 10_000, abs=1e-6), "Ray's resolution"
            free[next(i for i, left in enumerate(free) if left >= asked)] -= asked


@pytest.mark.slow
def test_ray_seats_them_as_planned() -> None:
    """A Ray of two nodes of two logical GPUs: processes sit as it was drawn."""
    code = "from tests.test_placement import place_on_two_nodes; place_on_two_nodes()"
    env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    for learners, engines in found[:2]:
        assert len({node for node, _ in learners}) == 1, "ranks are packed on one node"
        assert sorted(gpu for _, (gpu,) in learners) == [0, 1]
        assert {node for node, _ in engines}.isdisjoint(node for node, _ in learners)
    (_, apart), (_, tensor), (learners, shared) = found
    assert sorted(gpus for _, gpus in apart) == [[0], [1]]
    assert sorted(tensor[0][1]) == [0, 1]
    assert len({(node, gpu) for node, (gpu,) in learners}) == 4
    engines = [(node, gpu) for node, (gpu,) in shared]
    assert max(engines.count(one) for one in engines) <= 2


def place_on_two_nodes() -> None:
    """Print node and GPUs of every rank and engine: one GPU each, an engine of two, all shared."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes()
    for _ in range(2):
        nodes.add_node(num_cpus=8, num_gpus=2, include_dashboard=False)
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        cases = [_stage(2, 2), _stage(2, 1, 2), _stage(4, 6)]
        print(json.dumps([_seats(place(stage, Cluster((2, 2)))) for stage in cases]))
    finally:
        ray.shutdown()
        nodes.shutdown()


def _seats(placement: Placement) -> list[list[tuple[str, list[int]]]]:
    import ray
    from ray.util import remove_placement_group
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    class Process:
        def seat(self) -> tuple[str, list[int]]:
            node = ray.get_runtime_context().get_node_id()
            return node, [int(i) for i in ray.get_gpu_ids()]

    found, groups, actors = [], [], []
    for role in ("learner", "rollout"):
        bundles = placement.bundles[role]
        group = placement_group(list(bundles), strategy=placement.strategies[role])
        groups.append(group)
        assert group.wait(30), f"{role} was not placed"
        some = [
            ray.remote(Process)
            .options(
                num_cpus=1,
                num_gpus=bundle["GPU"],
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, i),
            )
            .remote()
            for i, bundle in enumerate(bundles)
        ]
        actors += some
        found.append(ray.get([actor.seat.remote() for actor in some]))
    for actor in actors:
        ray.kill(actor)
    for group in groups:
        remove_placement_group(group)
    return found


def test_engines_ahead_need_gpus_of_their_own() -> None:
    ahead = ("deterministic=false", "max_staleness=1")
    with pytest.raises(ValueError, match=r"max_staleness=1: .* add GPUs, lower learner.ranks"):
        place(_stage(2, 1, 0, *ahead), 2)
    assert not place(_stage(2, 1, 0, *ahead), 3).shared


def test_a_supervised_stage_starts_engines_only_where_it_samples() -> None:
    made = "supervised.traces=shortest_correct"
    for said, engines in ((("evaluation.every=0",), 0), ((), 1), (("evaluation=null", made), 1)):
        stage = _stage(1, 1, 0, "kind=sft", *said)
        assert len(place(stage, 0).bundles["rollout"]) == engines
        assert len(place(stage, 4).seats["grader"]) == engines
