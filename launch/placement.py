"""Which process gets what, and where: (stage, cluster) -> seats, bundles, groups. Pure functions.

Learner ranks sit on the fewest nodes that hold them, all on one kind of GPU. Engines are spread
evenly over what ranks leave, an engine of several GPUs on one node; where ranks leave nothing,
engines share their GPUs and take turns. Reward workers are spread over what CPUs are left.

Each role gets a Ray placement group per node, tied to the node by its id: Ray puts every process
on the node of its seat or nowhere. Which GPU of that node it takes is Ray's choice: each rank one
that no other rank has, and engines on one GPU no more than here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import accumulate, groupby
from typing import Literal

from launch.hardware import KIND, Cluster, Node
from samplers.engines import vllm
from trainer import staleness
from trainer.config import Stage
from trainer.faults import Role
from trainer.preflight import generates

Place = tuple[int, int]
"""A GPU: its node, and its number there."""
LITTLE = 0.001
"""Of that 1: enough to ask for the kind."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one process sits: on this node, and as drawn on these of its GPUs."""

    node: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Processes of one role on one node that ask for the same: a Ray placement group."""

    node: Node
    indices: tuple[int, ...]
    bundles: tuple[dict[str, float], ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """One bundle, as Ray names resources, and one seat per process, by role."""

    bundles: Mapping[Role, tuple[dict[str, float], ...]]
    seats: Mapping[Role, tuple[Seat, ...]]
    cluster: Cluster

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.cluster.total else "cpu"

    @property
    def totals(self) -> dict[str, float]:
        """What all bundles ask for together."""
        out: dict[str, float] = {}
        for bundles in self.bundles.values():
            for bundle in bundles:
                for resource, amount in bundle.items():
                    out[resource] = out.get(resource, 0) + amount
        return out

    @property
    def colocated(self) -> tuple[int, ...]:
        """Engines that sit on a learner's GPU."""
        taken = {(seat.node, gpu) for seat in self.seats["learner"] for gpu in seat.gpus}
        engines = enumerate(self.seats["rollout"])
        return tuple(i for i, s in engines if any((s.node, gpu) in taken for gpu in s.gpus))

    @property
    def shared(self) -> bool:
        """Some engine sits on a learner's GPU: they take turns."""
        return bool(self.colocated)

    def groups(self, role: Role) -> list[Group]:
        """Node by node. Equal shares of GPUs fill each before the next, and leave no gaps."""

        def alike(index: int) -> tuple[int, list[tuple[str, float]]]:
            return self.seats[role][index].node, sorted(self.bundles[role][index].items())

        out = []
        for (node, _), some in groupby(sorted(range(len(self.seats[role])), key=alike), alike):
            mine = tuple(some)
            bundles = tuple(self.bundles[role][index] for index in mine)
            out.append(Group(self.cluster.nodes[node], mine, bundles))
        return out


def place(stage: Stage, cluster: Cluster | float) -> Placement:
    """Where every process of a stage sits. A number of GPUs is one node of so many.

    Raises:
        ValueError: they do not fit: what is missing, and which node has what; or engines are to
            generate while the learners train on their GPUs.
    """
    if not isinstance(cluster, Cluster):
        cluster = Cluster.of(int(cluster))
    first: ValueError | None = None
    for mine in _kinds(stage, cluster):
        try:
            return _placed(stage, cluster, mine)
        except ValueError as error:
            first = first or error
    assert first is not None
    raise first


def width(stage: Stage) -> int:
    """GPUs of one engine."""
    config = stage.rollout.engine
    return config.tensor_parallel if isinstance(config, vllm.Config) else 1


def _placed(stage: Stage, cluster: Cluster, mine: Sequence[int]) -> Placement:
    """With learner ranks on some of the nodes `mine`."""
    counts = _pack(stage, cluster, mine)
    learners = tuple(
        Seat(node, (gpu,) if cluster.total else ())
        for node, count in enumerate(counts)
        for gpu in range(count)
    )
    engines = _engines(stage, cluster, counts)
    seats: dict[Role, tuple[Seat, ...]] = {"learner": learners, "rollout": engines}
    seats["grader"] = _graders(stage, cluster, (*learners, *engines)) if engines else ()
    placement = Placement(_bundles(stage, cluster, seats), seats, cluster)
    if placement.shared and stage.kind == "rl" and staleness.depth(stage):
        why = f"the {cluster.total} GPUs are all taken by learner.ranks={len(learners)}"
        if cluster.total > len(learners):
            why = "sync.transport=ipc puts them on the same GPUs"
        raise ValueError(
            f"max_staleness={stage.max_staleness}: engines generate while learners train, and "
            f"{why}; add GPUs, lower learner.ranks, or set max_staleness=0 to take turns"
        )
    return placement


def _cpus(stage: Stage) -> dict[Role, float]:
    """Logical CPUs of one process."""
    engine = float(stage.rollout.engine.threads or 1)
    return {"learner": float(stage.learner.threads), "rollout": engine, "grader": 1.0}


def _left(stage: Stage, cluster: Cluster, seats: Sequence[Seat], learners: int) -> list[float]:
    """CPUs of each node beside these seats, so many of learners first, and then of engines."""
    left, each = [node.cpus for node in cluster.nodes], _cpus(stage)
    for index, seat in enumerate(seats):
        left[seat.node] -= each["learner" if index < learners else "rollout"]
    return left


def _whole(amount: float, each: float) -> float:
    return amount if amount == math.inf else amount // each


# Learners


def _room(stage: Stage, cluster: Cluster, node: int) -> int:
    """Learner ranks that fit on a node."""
    has = cluster.nodes[node]
    by_cpu = int(min(stage.learner.ranks, _whole(has.cpus, stage.learner.threads)))
    return min(has.gpus, by_cpu) if cluster.total else by_cpu


def _kinds(stage: Stage, cluster: Cluster) -> list[list[int]]:
    """Sets of nodes with GPUs of one kind that hold all learner ranks: those of which fewest do
    first, and then those with most GPUs.

    Raises:
        ValueError: there is none.
    """
    ranks = stage.learner.ranks
    kinds: dict[str | None, list[int]] = {}
    for index, node in enumerate(cluster.nodes):
        if node.gpus or not cluster.total:
            kinds.setdefault(node.kind if cluster.total else None, []).append(index)
    assert kinds, "a cluster has a node"
    has = {kind: sum(cluster.gpus[node] for node in some) for kind, some in kinds.items()}
    most, each = max(has.values()), cluster.told(lambda node: f"has {cluster.gpus[node]}")
    if 0 < cluster.total < ranks:
        raise ValueError(
            f"learner.ranks={ranks} need a GPU each (two ranks cannot share one), and the cluster "
            f"has {cluster.total}; set learner.ranks={cluster.total} or less, add "
            f"GPUs ({ranks - cluster.total} missing: {each}), or hide the GPUs "
            "(CUDA_VISIBLE_DEVICES='') to run on CPU"
        )
    if 0 < most < ranks:
        found = ", ".join(
            f"{has[kind]} {kind or 'unnamed'} ({cluster.named(some)})"
            for kind, some in kinds.items()
        )
        raise ValueError(
            f"learner.ranks={ranks} need GPUs of one kind (all wait for the slowest), and there "
            f"are {found}; set learner.ranks={most} or less, or add {ranks - most} of a kind"
        )
    rooms = {kind: sum(_room(stage, cluster, n) for n in some) for kind, some in kinds.items()}
    fits = [kind for kind in kinds if rooms[kind] >= ranks]
    if not fits:
        some = max(kinds, key=lambda kind: rooms[kind])
        raise ValueError(
            _few_cpus(stage, cluster, "learner", [n.cpus for n in cluster.nodes], rooms[some])
        )

    def order(kind: str | None) -> tuple[int, int]:
        held = accumulate(sorted((_room(stage, cluster, n) for n in kinds[kind]), reverse=True))
        return sum(seats < ranks for seats in held), -has[kind]

    return [kinds[kind] for kind in sorted(fits, key=order)]


def _pack(stage: Stage, cluster: Cluster, mine: Sequence[int]) -> list[int]:
    """Ranks of each node: on the fewest nodes, the largest first; or of all ways to be on so few
    the one that leaves room for most engines, where the largest leave too little."""
    ranks, workers = stage.learner.ranks, stage.rollout.workers if generates(stage) else 0
    room = [_room(stage, cluster, n) if n in mine else 0 for n in range(len(cluster.nodes))]
    order = sorted(mine, key=lambda node: -room[node])
    counts, left = [0] * len(room), ranks
    for node in order:
        counts[node] = min(left, room[node])
        left -= counts[node]
    takes = _takes(stage, cluster)
    if sum(min(workers, takes(node, count)) for node, count in enumerate(counts)) >= workers:
        return counts
    node_price = 2 * workers * len(room) + 1  # above all that engines weigh
    best: list[float] = [0, *[math.inf] * ranks]  # by ranks that have a seat
    chosen: list[list[int]] = []
    for node in order:
        prices, taken = best[:], [0] * (ranks + 1)
        alone = min(workers, takes(node, 0))
        for count in range(1, room[node] + 1):
            price = node_price + alone - min(workers, takes(node, count))
            for seated in range(count, ranks + 1):
                if best[seated - count] + price < prices[seated]:
                    prices[seated], taken[seated] = best[seated - count] + price, count
        best = prices
        chosen.append(taken)
    counts, left = [0] * len(room), ranks
    for node, taken in zip(reversed(order), reversed(chosen), strict=True):
        counts[node] = taken[left]
        left -= taken[left]
    return counts


# Engines and reward workers


def _shares(stage: Stage, cluster: Cluster) -> bool:
    """Whether engines sit on the learners' GPUs: no others are left, or weights are to come through
    the memory of the GPU itself. One of several GPUs never does: Ray gives parts of one only."""
    ipc = stage.sync.transport == "ipc" and width(stage) == 1
    return ipc or cluster.total == stage.learner.ranks


def _units(stage: Stage, cluster: Cluster, node: int, ranks: int) -> list[tuple[int, ...]]:
    """The GPUs of each engine that a node may take beside so many ranks; () where there are none
    at all."""
    if not cluster.total:
        return [()]
    span, gpus = width(stage), range(ranks, cluster.gpus[node])
    if _shares(stage, cluster):
        gpus = range(ranks if span == 1 else 0)
    return [tuple(gpus[i : i + span]) for i in range(0, len(gpus) - span + 1, span)]


def _takes(stage: Stage, cluster: Cluster) -> Callable[[int, int], float]:
    """How many engines a node takes beside so many ranks."""
    each = _cpus(stage)

    def takes(node: int, ranks: int) -> float:
        units = len(_units(stage, cluster, node, ranks))
        by_cpu = _whole(cluster.nodes[node].cpus - ranks * each["learner"], each["rollout"])
        crowded = units and (width(stage) == 1 or not cluster.total)
        return by_cpu if crowded else min(units, by_cpu)

    return takes


def _engines(stage: Stage, cluster: Cluster, counts: Sequence[int]) -> tuple[Seat, ...]:
    """Engines beside `counts` ranks on each node, level over their GPUs and over nodes."""
    if not generates(stage):
        return ()
    workers, span, ranks = stage.rollout.workers, width(stage), stage.learner.ranks
    most = max(cluster.gpus)
    if cluster.total and span > most:
        raise ValueError(
            f"rollout.engine.tensor_parallel={span} does not fit on a node of {most} GPUs, and an "
            f"engine cannot span nodes; set it to {most} or less"
        )
    units = [_units(stage, cluster, node, count) for node, count in enumerate(counts)]
    room = list(map(_takes(stage, cluster), range(len(units)), counts))
    spread = _level(workers, list(map(len, units)), room)
    if sum(spread) < workers and span > 1 and cluster.total and sum(map(len, units)) < workers:
        free = [gpus - count for gpus, count in zip(cluster.gpus, counts, strict=True)]
        raise ValueError(
            f"rollout.workers={workers} engines of tensor_parallel={span} need {workers * span} "
            f"GPUs of their own, and beside learner.ranks={ranks} there is room for "
            f"{sum(map(len, units))} on what is left: "
            f"{cluster.told(lambda node: f'{free[node]} of {cluster.gpus[node]} GPUs')}; lower "
            "rollout.workers, rollout.engine.tensor_parallel or learner.ranks, or add GPUs"
        )
    if sum(spread) < workers:
        seats = [Seat(node) for node, count in enumerate(counts) for _ in range(count)]
        left = _left(stage, cluster, seats, len(seats))
        raise ValueError(_few_cpus(stage, cluster, "rollout", left, sum(spread)))
    return tuple(
        Seat(node, gpus)
        for node, count in enumerate(spread)
        for gpus in sorted(units[node][index % len(units[node])] for index in range(count))
    )


def _graders(stage: Stage, cluster: Cluster, seats: Sequence[Seat]) -> tuple[Seat, ...]:
    workers, left = stage.grader.workers, _left(stage, cluster, seats, stage.learner.ranks)
    spread = _level(workers, [1] * len(left), [_whole(cpus, 1.0) for cpus in left])
    if sum(spread) < workers:
        raise ValueError(_few_cpus(stage, cluster, "grader", left, sum(spread)))
    return tuple(Seat(node) for node, count in enumerate(spread) for _ in range(count))


def _level(count: int, units: Sequence[int], most: Sequence[float]) -> list[int]:
    """`count` processes over nodes (fewer where `most` are too few): the next one goes to where
    its unit has fewest, and then to the node that has fewest."""
    out = [0] * len(units)
    queue = [(0, 0, node) for node in range(len(units)) if units[node] and most[node] >= 1]
    heapify(queue)
    while queue and count:
        *_, node = heappop(queue)
        out[node], count = out[node] + 1, count - 1
        if out[node] < most[node]:
            heappush(queue, (out[node] // units[node], out[node], node))
    return out


# What they ask Ray for


def _bundles(
    stage: Stage, cluster: Cluster, seats: Mapping[Role, tuple[Seat, ...]]
) -> dict[Role, tuple[dict[str, float], ...]]:
    """CPUs, and what of a GPU each asks for.

    Engines share the GPUs that ranks leave. On the ranks' own they take turns: several ranks then
    ask for so much that one more than a node has GPUs is more than the node. Two never fit on one
    GPU (NCCL refuses that), nor does Ray, which chooses nodes by their sum, ever choose one on
    which they do not fit. Ray gives what is less than a GPU from the fullest that has it.
    """
    crowd = Counter((seat.node, gpu) for seat in seats["rollout"] for gpu in seat.gpus)
    ranks, each = len(seats["learner"]), _cpus(stage)
    own, rest = 1.0, 1.0
    if any((seat.node, gpu) in crowd for seat in seats["learner"] for gpu in seat.gpus):
        own = 0.5 if ranks == 1 else _ten_thousandths(1 - 0.5 / (max(cluster.gpus) + 1))
        rest = 1.0 - own

    def asked(role: Role, seat: Seat) -> dict[str, float]:
        bundle = {"CPU": each[role]}
        if len(seat.gpus) > 1:
            bundle["GPU"] = float(len(seat.gpus))
        elif seat.gpus:
            share = rest / (crowd[seat.node, seat.gpus[0]] or 1)
            bundle["GPU"] = own if role == "learner" else _ten_thousandths(share)
        if role == "learner" and seat.gpus and (kind := cluster.nodes[seat.node].kind):
            bundle[KIND + kind] = LITTLE  # wherever a lost one is made anew
        return bundle

    return {role: tuple(asked(role, seat) for seat in some) for role, some in seats.items()}


def _ten_thousandths(share: float) -> float:
    """Ray counts in them."""
    return math.floor(1e4 * share + 1e-6) / 1e4


def _few_cpus(stage: Stage, cluster: Cluster, role: Role, left: Sequence[float], room: int) -> str:
    """Processes of a role do not find the CPUs they ask for."""
    field, count, threads = {
        "learner": ("learner.ranks", stage.learner.ranks, "learner.threads"),
        "rollout": ("rollout.workers", stage.rollout.workers, "rollout.engine.threads"),
        "grader": ("grader.workers", stage.grader.workers, ""),
    }[role]
    each = _cpus(stage)[role]
    told = cluster.told(lambda node: f"{left[node]:g} of {cluster.nodes[node].cpus:g}")
    ways = f"lower {field}" + (f" or {threads}" if each > 1 else "")
    return (
        f"{field}={count} need {each:g} logical CPU{'s' * (each > 1)} each, on one node, and there "
        f"is room for {room} (CPUs left: {told}); {ways}, or give Ray {(count - room) * each:g} "
        "more there"
    )
