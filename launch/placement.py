"""Which process gets what: (stage, cluster resources) -> bundles. A pure function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trainer.config import Stage

Role = Literal["learner", "rollout", "grader"]


@dataclass(frozen=True, slots=True)
class Placement:
    """One Ray bundle per process, by role; strategies as Ray names them."""

    bundles: Mapping[Role, tuple[dict[str, float], ...]]
    strategies: Mapping[Role, str]
    device: Literal["cpu", "cuda"]

    @property
    def totals(self) -> dict[str, float]:
        """What all bundles ask for together."""
        out: dict[str, float] = {}
        for bundles in self.bundles.values():
            for bundle in bundles:
                for resource, amount in bundle.items():
                    out[resource] = out.get(resource, 0) + amount
        return out


def place(stage: Stage, gpus: float) -> Placement:
    """Learner ranks packed together, engines spread; one GPU each where there are enough.

    Raises:
        ValueError: there are GPUs, and fewer than learner ranks.
    """
    ranks = stage.learner.ranks
    workers = stage.rollout.workers if needs_engines(stage) else 0
    if 0 < gpus < ranks:
        raise ValueError(
            f"learner.ranks={ranks} need a GPU each (two ranks cannot share one), and the cluster "
            f"has {gpus:g}; set learner.ranks={int(gpus)} or less, add GPUs, or hide the GPUs "
            "(CUDA_VISIBLE_DEVICES='') to run on CPU"
        )
    learner, rollout = _shares(ranks, workers, int(gpus)) if gpus else ({}, {})
    return Placement(
        bundles={
            "learner": ({"CPU": float(stage.learner.threads), **learner},) * ranks,
            "rollout": ({"CPU": float(stage.rollout.engine.threads or 1), **rollout},) * workers,
            "grader": ({"CPU": 1.0},) * (stage.grader.workers if workers else 0),
        },
        strategies={"learner": "PACK", "rollout": "SPREAD", "grader": "SPREAD"},
        device="cuda" if gpus else "cpu",
    )


def _shares(ranks: int, workers: int, gpus: int) -> tuple[dict[str, float], dict[str, float]]:
    """What of a GPU a rank and an engine ask for.

    Engines share the GPUs that ranks leave. Where they leave none, engines are spread over the
    ranks' own: they take turns. Several ranks then ask for more than half, so that Ray cannot put
    two on one GPU (NCCL refuses that).
    """
    free = gpus - ranks
    learner = 1.0 if free or not workers else 0.5 if ranks == 1 else 0.6
    places, left = (free, 1.0) if free else (gpus, 1.0 - learner)
    crowd = max(1, math.ceil(workers / places))  # engines on one GPU
    rollout = math.floor(1e4 * left / crowd + 1e-6) / 1e4  # Ray counts in 1/10000
    return {"GPU": learner}, {"GPU": rollout}


def needs_engines(stage: Stage) -> bool:
    """A supervised stage generates only when it is evaluated."""
    return stage.kind == "rl" or bool(stage.evaluation and stage.evaluation.every)
