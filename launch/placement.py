"""Which process gets what: (stage, cluster resources) -> bundles. A pure function."""

from __future__ import annotations

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
    """Learner ranks packed together, engines spread; one GPU each where there are any.

    Raises:
        ValueError: there are GPUs, and fewer than the processes that need one.
    """
    workers = stage.rollout.workers if needs_engines(stage) else 0
    needed = stage.learner.ranks + workers
    if 0 < gpus < needed:
        raise ValueError(
            f"learner.ranks={stage.learner.ranks} and rollout.workers={workers} need {needed} "
            f"GPUs, one each; the cluster has {gpus:g}. Lower them, add GPUs, or hide the GPUs "
            "(CUDA_VISIBLE_DEVICES='') to run on CPU"
        )
    own: dict[str, float] = {"CPU": 1.0} if not gpus else {"CPU": 1.0, "GPU": 1.0}
    return Placement(
        bundles={
            "learner": (own,) * stage.learner.ranks,
            "rollout": (own,) * workers,
            "grader": ({"CPU": 1.0},) * (stage.grader.workers if workers else 0),
        },
        strategies={"learner": "PACK", "rollout": "SPREAD", "grader": "SPREAD"},
        device="cuda" if gpus else "cpu",
    )


def needs_engines(stage: Stage) -> bool:
    """A supervised stage generates only when it is evaluated."""
    return stage.kind == "rl" or stage.evaluation is not None
