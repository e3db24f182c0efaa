"""Where processes sit: a pure function of stage and cluster, over many shapes of clusters."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.hardware import KIND, Cluster, Node
from launch.placement import Placement, place
from trainer.config import Stage, load

NODES = st.lists(
    st.builds(
        Node,
        gpus=st.integers(0, 4),
        kind=st.sampled_from(["H100", "H100", "A100"]),
        cpus=st.sampled_from([math.inf, 2, 5, 8, 16]),
    ),
    min_size=1,
    max_size=3,
).map(tuple)


AHEAD = ("deterministic=false", "max_staleness=1")


@cache
def stage_of(ranks: int = 1, workers: int = 1, tensor: int = 0, *more: str) -> Stage:
    """`tensor` above 0: vLLM engines of that tensor-parallel width."""
    engine = ["rollout.engine.name=vllm", f"rollout.engine.tensor_parallel={tensor}"]
    sizes = [f"learner.ranks={ranks}", f"rollout.workers={workers}"]
    return load("grpo/find", [*sizes, *(engine if tensor else []), *more]).stages[0]


def _sized(ranks: int, workers: int, tensor: int, threads: int, each: int, graders: int) -> Stage:
    more = [f"learner.threads={threads}", f"rollout.engine.threads={each}"]
    return stage_of(ranks, workers, tensor, *more, f"grader.workers={graders}")


def _packed(nodes: tuple[Node, ...], ranks: int, threads: int) -> list[tuple[int, ...]]:
    """All ways to seat ranks on GPUs of one kind and the fewest nodes: how many on each."""
    gpus = any(node.gpus for node in nodes)
    out = []
    for kind in {node.kind if gpus else None for node in nodes}:
        room = [
            min(node.gpus if gpus else ranks, ranks, node.cpus // threads if node.cpus < 99 else 99)
            if node.kind == kind or not gpus
            else 0
            for node in nodes
        ]
        ways = [w for w in product(*(range(int(n) + 1) for n in room)) if sum(w) == ranks]
        fewest = min((len(w) - w.count(0) for w in ways), default=0)
        out += [way for way in ways if len(way) - way.count(0) == fewest]
    return out


def _fits(nodes: tuple[Node, ...], stage: Stage, span: int) -> bool:
    """By trying everything."""
    ranks, workers = stage.learner.ranks, stage.rollout.workers
    threads, each = stage.learner.threads, stage.rollout.engine.threads
    assert each is not None
    total = sum(node.gpus for node in nodes)
    for way in _packed(nodes, ranks, threads):
        room = 0.0
        for node, taken in zip(nodes, way, strict=True):
            cpus = node.cpus - taken * threads
            by_cpu = 999 if cpus == math.inf else cpus // each
            free = taken if total == ranks else node.gpus - taken
            if total and span > 1:
                by_cpu = min(by_cpu, 0 if total == ranks else free // span)
            room += by_cpu if free or not total else 0
        spare = sum(node.cpus for node in nodes) - ranks * threads - workers * each
        if room >= workers and spare >= stage.grader.workers:
            return True
    return False


SIZES = st.tuples(
    *(st.integers(1, 6), st.integers(1, 6), st.sampled_from([0, 2, 3, 4])),
    *(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3)),
)


@settings(max_examples=400, deadline=None)
@given(NODES, SIZES)
def test_what_fits_is_placed_and_nothing_else(nodes: tuple[Node, ...], sizes: Any) -> None:
    stage, span = _sized(*sizes), sizes[2] or 1
    if _fits(nodes, stage, span):
        placement = place(stage, Cluster(nodes))
        assert placement == place(stage, Cluster(nodes)), "the same again"
        _check(placement, stage, span)
    else:
        with pytest.raises(ValueError, match=r"^(learner|rollout|grader)\.\S+=\d+ .*node") as told:
            place(stage, Cluster(nodes))
        assert "\n" not in str(told.value)


def _check(placement: Placement, stage: Stage, span: int) -> None:
    nodes, seats = placement.cluster.nodes, placement.seats
    wanted: dict[str, int] = {
        "learner": stage.learner.ranks,
        "rollout": stage.rollout.workers,
        "grader": stage.grader.workers,
    }
    for role in seats:
        count = wanted[role]
        assert len(seats[role]) == len(placement.bundles[role]) == count
        covered = [index for group in placement.groups(role) for index in group.indices]
        assert sorted(covered) == list(range(count))
        for group in placement.groups(role):
            assert {nodes[seats[role][index].node] for index in group.indices} == {group.node}
            assert all(bundle == group.bundles[0] for bundle in group.bundles)
    asked: list[Counter[str]] = [Counter() for _ in nodes]
    for role in seats:
        for seat, bundle in zip(seats[role], placement.bundles[role], strict=True):
            asked[seat.node].update(bundle)
            assert all(gpu < nodes[seat.node].gpus for gpu in seat.gpus)
    for node, sums in zip(nodes, asked, strict=True):
        assert sums["CPU"] <= node.cpus
        assert sums["GPU"] <= node.gpus + 1e-9
        assert all(sums[key] <= (key == KIND + str(node.kind)) for key in sums if KIND in key)
    ways = _packed(nodes, stage.learner.ranks, stage.learner.threads)
    counts = Counter(seat.node for seat in seats["learner"])
    assert tuple(counts[n] for n in range(len(nodes))) in ways
    if placement.device == "cuda":
        _check_gpus(placement, span)
    _check_level(placement, stage, span)


def _check_gpus(placement: Placement, span: int) -> None:
    """No GPU twice, unless it is shared by design."""
    nodes, seats = placement.cluster.nodes, placement.seats
    taken = {(seat.node, gpu) for seat in seats["learner"] for gpu in seat.gpus}
    assert len(taken) == len(seats["learner"]), "two ranks never share a GPU"
    assert len({nodes[node].kind for node, _ in taken}) == 1
    assert placement.shared == (len(taken) == placement.cluster.total)
    on = [(seat.node, gpu) for seat in seats["rollout"] for gpu in seat.gpus]
    assert all(len(seat.gpus) == span for seat in seats["rollout"])
    assert set(on) <= taken if placement.shared else set(on).isdisjoint(taken)
    assert span == 1 or len(set(on)) == len(on), "an engine of several GPUs has them alone"


def _check_level(placement: Placement, stage: Stage, span: int) -> None:
    """The last engine of a node would have done no better on another that takes one more."""
    nodes, seats = placement.cluster.nodes, placement.seats
    counts = Counter(seat.node for seat in seats["rollout"])
    ranks = Counter(seat.node for seat in seats["learner"])
    units, most = {}, {}
    for index, node in enumerate(nodes):
        own = ranks[index] if placement.shared else (node.gpus - ranks[index]) // span
        units[index] = own if placement.cluster.total else 1
        left = node.cpus - ranks[index] * stage.learner.threads
        fits = 999 if left == math.inf else left // (stage.rollout.engine.threads or 1)
        alone = span > 1 and placement.cluster.total
        most[index] = min(fits, units[index]) if alone else fits
    for one, other in product(counts, [n for n in units if units[n] and counts[n] < most[n]]):
        last, next_ = counts[one] - 1, counts[other]
        assert (last // units[one], last) <= (next_ // units[other], next_)


def _greedy(placement: Placement) -> dict[tuple[int, int], list[str]]:
    """Roles on each GPU if every node gives its GPUs away as Ray does: whole ones, and of those
    that can give a part the fullest."""
    free = {
        (n, g): 10_000 for n, node in enumerate(placement.cluster.nodes) for g in range(node.gpus)
    }
    on: dict[tuple[int, int], list[str]] = {gpu: [] for gpu in free}
    for role in ("learner", "rollout"):
        for group in placement.groups(role):
            node = placement.seats[role][group.indices[0]].node
            for bundle in group.bundles:
                left = round(bundle["GPU"] * 10_000)
                assert left == pytest.approx(bundle["GPU"] * 10_000, abs=1e-6), "Ray's resolution"
                assert left > 0
                while left > 0:
                    part = min(left, 10_000)
                    at = min(
                        (g for g in free if g[0] == node and free[g] >= part), key=free.__getitem__
                    )
                    free[at] -= part
                    on[at].append(role)
                    left -= part
    return on


@pytest.mark.parametrize(("gpus", "workers"), product(range(1, 7), range(1, 12)))
def test_ray_can_give_the_shares_only_as_drawn(gpus: int, workers: int) -> None:
    for ranks in range(1, gpus + 1):
        for cluster in (Cluster.of(gpus), Cluster.of(gpus, 3)):
            placement = place(stage_of(ranks, workers), cluster)
            drawn: dict[tuple[int, int], list[str]] = {gpu: [] for gpu in _greedy(placement)}
            for role in ("learner", "rollout"):
                for seat in placement.seats[role]:
                    drawn[seat.node, seat.gpus[0]].append(role)
            for node in range(len(cluster.nodes)):
                found, there = (
                    sorted(some for (n, _), some in rows.items() if n == node)
                    for rows in (_greedy(placement), drawn)
                )
                assert found == there
            share = placement.bundles["learner"][0]["GPU"]
            assert ranks == 1 or share > 0.5
            if ranks + workers <= cluster.total:
                assert {b["GPU"] for role in ("learner", "rollout")
                        for b in placement.bundles[role]} == {1.0}  # fmt: skip


def _told(stage: Stage, *nodes: Node) -> str:
    with pytest.raises(ValueError, match="=") as told:
        place(stage, Cluster(nodes))
    return str(told.value)


def test_refusals_say_what_is_missing_where() -> None:
    h100, a100 = Node(4, "H100", name="one"), Node(2, "A100")
    assert _told(stage_of(8), h100, a100, Node(1)) == (
        "learner.ranks=8 need a GPU each (two ranks cannot share one), and the cluster has 7; set "
        "learner.ranks=7 or less, add GPUs (1 missing: node 0 (one) has 4, node 1 has 2, node 2 "
        "has 1), or hide the GPUs (CUDA_VISIBLE_DEVICES='') to run on CPU"
    )
    assert _told(stage_of(5), h100, a100, a100) == (
        "learner.ranks=5 need GPUs of one kind (all wait for the slowest), and there are 4 H100 "
        "(node 0 (one)), 4 A100 (node 1-2); set learner.ranks=4 or less, or add 1 of a kind"
    )
    assert "room for 1 on what is left: node 0 2 of 4 GPUs, node 1-2 1 of 1 GPUs; lower" in _told(
        stage_of(2, 2, 2), Node(4), Node(1), Node(1)
    )
    assert "tensor_parallel=8 does not fit on a node of 4 GPUs" in _told(stage_of(2, 2, 8), h100)
    assert _told(_sized(3, 1, 0, 4, 1, 1), Node(cpus=8), Node(cpus=3)) == (
        "learner.ranks=3 need 4 logical CPUs each, on one node, and there is room for 2 (CPUs "
        "left: node 0 8 of 8, node 1 3 of 3); lower learner.ranks or learner.threads, or give Ray "
        "4 more there"
    )
    assert "rollout.workers=3 need 2 logical CPUs each, on one node, and there is room for 2 (" in (
        _told(_sized(1, 3, 0, 1, 2, 1), Node(cpus=3), Node(cpus=3))
    )
    assert "grader.workers=3 need 1 logical CPU each" in _told(
        _sized(1, 1, 0, 1, 1, 3), Node(8, cpus=2), Node(cpus=2)
    )
    many = _told(stage_of(65), *(Node(1, name=f"n{i}", cpus=i) for i in range(64)))
    assert len(many) < 400


def test_learners_take_one_kind_the_one_with_most_gpus_first() -> None:
    nodes = (Node(4, "A100"), Node(8, "H100"), Node(2, "A100"))
    for ranks in (2, 8):
        placement = place(stage_of(ranks, 4), Cluster(nodes))
        assert {seat.node for seat in placement.seats["learner"]} == {1}
        assert all(bundle[KIND + "H100"] > 0 for bundle in placement.bundles["learner"])
        assert not any(KIND in key for b in placement.bundles["rollout"] for key in b)
    whole = place(stage_of(4, 1, 8), Cluster(nodes))
    assert {seat.node for seat in whole.seats["learner"]} == {0}, "the engine needs the other node"


def test_learners_leave_room_for_engines_where_the_largest_nodes_would_not() -> None:
    placement = place(stage_of(4, 1, 8), Cluster.of(8, 4))
    assert {seat.node for seat in placement.seats["learner"]} == {1}
    three = place(stage_of(9, 5, 4), Cluster.of(8, 8, 8, 5))
    assert Counter(s.node for s in three.seats["learner"]) == {0: 8, 3: 1}
    stage = _sized(1, 3, 0, 1, 2, 1)
    tight = place(stage, Cluster((Node(cpus=4), Node(cpus=3), Node(cpus=1))))
    assert [seat.node for seat in tight.seats["learner"]] == [1]


def test_engines_are_level_over_nodes() -> None:
    placement = place(stage_of(2, 4), Cluster.of(4, 4))
    assert [s.node for s in placement.seats["learner"]] == [0, 0]
    assert [(s.node, s.gpus) for s in placement.seats["rollout"]] == [
        (0, (2,)), (0, (3,)), (1, (0,)), (1, (1,))
    ]  # fmt: skip
    whole = place(stage_of(4, 2, 2), Cluster.of(4, 4))
    assert [(s.node, s.gpus) for s in whole.seats["rollout"]] == [(1, (0, 1)), (1, (2, 3))]
    assert whole.bundles["rollout"] == ({"CPU": 1.0, "GPU": 2.0},) * 2
    crowded = place(stage_of(1, 5), Cluster.of(3, 1))
    assert [(s.node, s.gpus[0]) for s in crowded.seats["rollout"]] == [
        (0, 1), (0, 1), (0, 2), (1, 0), (1, 0)
    ]  # fmt: skip


def test_ipc_is_asked_for_engines_sit_on_the_learners_gpus() -> None:
    ipc = stage_of(2, 4, 1, "sync.transport=ipc")
    placement = place(ipc, Cluster.of(8))
    assert placement.colocated == (0, 1, 2, 3)
    assert {seat.gpus for seat in placement.seats["rollout"]} == {(0,), (1,)}
    on = [some for some in _greedy(placement).values() if some]
    assert on == [["learner", "rollout", "rollout"]] * 2
    assert place(stage_of(2, 2, 2, "sync.transport=ipc"), Cluster.of(8)).colocated == ()
    with pytest.raises(
        ValueError, match=r"max_staleness=1: .* sync.transport=ipc puts them on the"
    ):
        place(stage_of(2, 4, 1, "sync.transport=ipc", *AHEAD), Cluster.of(8))


def test_a_thousand_engines_are_placed_in_no_time() -> None:
    placement = place(stage_of(512, 1000), Cluster.of(*[8] * 192))
    assert len({seat.node for seat in placement.seats["learner"]}) == 64
    assert max(Counter(seat.node for seat in placement.seats["rollout"]).values()) == 8


def test_engines_ahead_need_gpus_of_their_own() -> None:
    with pytest.raises(ValueError, match=r"max_staleness=1: .* add GPUs, lower learner.ranks"):
        place(stage_of(2, 1, 0, *AHEAD), 2)
    assert not place(stage_of(2, 1, 0, *AHEAD), 3).shared


def test_a_supervised_stage_starts_engines_only_where_it_samples() -> None:
    made = "supervised.traces=shortest_correct"
    for said, engines in ((("evaluation.every=0",), 0), ((), 1), (("evaluation=null", made), 1)):
        stage = stage_of(1, 1, 0, "kind=sft", *said)
        assert len(place(stage, 0).bundles["rollout"]) == engines
        assert len(place(stage, 4).seats["grader"]) == engines
