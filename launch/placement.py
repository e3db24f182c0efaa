"""Which process gets what, and where: (stage, cluster) -> bundles and seats. A pure function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

from samplers.engines import vllm
from trainer import staleness
from trainer.config import Stage
from trainer.faults import Role
from trainer.preflight import generates

Place = tuple[int, int]
"""A GPU: its node, and its number there."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is to place on."""

    gpus: tuple[int, ...] = (0,)
    """GPUs of each node."""

    @property
    def total(self) -> int:
        return sum(self.gpus)


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one process is expected: Ray decides, by the bundles and strategies."""

    node: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """One Ray bundle and one seat per process, by role; strategies as Ray names them."""

    bundles: Mapping[Role, tuple[dict[str, float], ...]]
    strategies: Mapping[Role, str]
    device: Literal["cpu", "cuda"]
    seats: Mapping[Role, tuple[Seat, ...]]

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
    def shared(self) -> bool:
        """Some engine sits on a learner's GPU: they take turns."""
        taken = {(seat.node, gpu) for seat in self.seats["learner"] for gpu in seat.gpus}
        return any((s.node, gpu) in taken for s in self.seats["rollout"] for gpu in s.gpus)


def place(stage: Stage, cluster: Cluster | float) -> Placement:
    """Learner ranks packed by node, engines spread over the GPUs that ranks leave.

    One GPU each where there are enough, and as many as its tensor-parallel width for an engine.
    Where ranks leave none, engines share the ranks' own. A number of GPUs is one node of so many.

    Raises:
        ValueError: fewer GPUs than learner ranks, or no room for tensor-parallel engines, or
            for engines that are to generate while learners train.
    """
    if not isinstance(cluster, Cluster):
        cluster = Cluster((int(cluster),))
    ranks, workers = stage.learner.ranks, stage.rollout.workers if generates(stage) else 0
    places = _gpus(cluster)
    if 0 < len(places) < ranks:
        raise ValueError(
            f"learner.ranks={ranks} need a GPU each (two ranks cannot share one), and the cluster "
            f"has {len(places)}; set learner.ranks={len(places)} or less, add GPUs, or hide the "
            "GPUs (CUDA_VISIBLE_DEVICES='') to run on CPU"
        )
    nodes = islice(cycle(range(len(cluster.gpus))), max(workers, stage.grader.workers))
    spread = tuple(Seat(node) for node in nodes)
    learner: dict[str, float] = {}
    rollout: dict[str, float] = {}
    learners, engines = (Seat(0),) * ranks, spread[:workers]
    if places:
        learner, rollout = _shares(ranks, workers, cluster, width(stage))
        learners = tuple(Seat(node, (gpu,)) for node, gpu in places[:ranks])
        engines = _engines(stage, workers, places, cluster)
    graders = spread[: stage.grader.workers if workers else 0]
    placement = Placement(
        bundles={
            "learner": ({"CPU": float(stage.learner.threads), **learner},) * ranks,
            "rollout": ({"CPU": float(stage.rollout.engine.threads or 1), **rollout},) * workers,
            "grader": ({"CPU": 1.0},) * len(graders),
        },
        strategies={"learner": "PACK", "rollout": "SPREAD", "grader": "SPREAD"},
        device="cuda" if places else "cpu",
        seats={"learner": learners, "rollout": engines, "grader": graders},
    )
    if placement.shared and stage.kind == "rl" and staleness.depth(stage):
        raise ValueError(
            f"max_staleness={stage.max_staleness}: engines generate while learners train, and the "
            f"{len(places)} GPUs are all taken by learner.ranks={ranks}; add GPUs, lower "
            "learner.ranks, or set max_staleness=0 to take turns"
        )
    return placement


def _gpus(cluster: Cluster) -> list[Place]:
    """Node by node, those with most GPUs first: learners then sit on as few nodes as can be."""
    nodes = sorted(range(len(cluster.gpus)), key=lambda node: -cluster.gpus[node])
    return [(node, gpu) for node in nodes for gpu in range(cluster.gpus[node])]


def _shares(
    ranks: int, workers: int, cluster: Cluster, width: int
) -> tuple[dict[str, float], dict[str, float]]:
    """What of a GPU a rank and an engine ask for.

    Engines share the GPUs that ranks leave. Where they leave none, engines are spread over the
    ranks' own: they take turns. Several ranks then ask for so much that one more than a node has
    GPUs is more than the node: two never fit on one GPU (NCCL refuses that), nor does Ray, which
    chooses nodes by their sum, ever choose one on which they do not fit.
    """
    gpus, most = cluster.total, max(cluster.gpus)
    free = gpus - ranks
    learner = 1.0 if free or not workers else 0.5 if ranks == 1 else 1 - 0.5 / (most + 1)
    learner = math.floor(1e4 * learner) / 1e4  # Ray counts in 1/10000
    if width > 1:
        return {"GPU": learner}, {"GPU": float(width)}
    places, left = (free, 1.0) if free else (gpus, 1.0 - learner)
    crowd = max(1, math.ceil(workers / places))  # engines on one GPU
    rollout = math.floor(1e4 * left / crowd + 1e-6) / 1e4
    return {"GPU": learner}, {"GPU": rollout}


def _engines(stage: Stage, workers: int, places: list[Place], cluster: Cluster) -> tuple[Seat, ...]:
    """Engines by turns over the nodes' units: a GPU, or as many of one node as an engine spans."""
    ranks, span = stage.learner.ranks, width(stage)
    if not workers:
        return ()
    if span > max(cluster.gpus):
        raise ValueError(
            f"rollout.engine.tensor_parallel={span} does not fit on a node of "
            f"{max(cluster.gpus)} GPUs, and an engine cannot span nodes; set it to "
            f"{max(cluster.gpus)} or less"
        )
    free = places[ranks:] or (places if span == 1 else [])
    units: dict[int, list[Seat]] = {}
    for node in dict.fromkeys(node for node, _ in free):
        mine = [gpu for n, gpu in free if n == node]
        units[node] = [
            Seat(node, tuple(mine[i : i + span])) for i in range(0, len(mine) - span + 1, span)
        ]
    order: list[Seat] = []
    while any(units.values()):  # the node with most units left is next
        order.append(units[max(units, key=lambda node: len(units[node]))].pop(0))
    if span > 1 and len(order) < workers:
        raise ValueError(
            f"rollout.workers={workers} engines of tensor_parallel={span} need "
            f"{workers * span} GPUs of their own, and beside learner.ranks={ranks} there is room "
            f"for {len(order)} on nodes of {', '.join(map(str, cluster.gpus))} GPUs; lower "
            "rollout.workers, rollout.engine.tensor_parallel or learner.ranks, or add GPUs"
        )
    return tuple(islice(cycle(order), workers))


def width(stage: Stage) -> int:
    """GPUs of one engine."""
    config = stage.rollout.engine
    return config.tensor_parallel if isinstance(config, vllm.Config) else 1
