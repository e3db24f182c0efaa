"""A World without Ray: engine, learner and verifiers in this process. Runs of seconds."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from launch.inprocess import Workers
from rewards.service.pool import VerifierPool
from samplers.flow import Flow
from samplers.rollout import RolloutWorker
from samplers.types import Ids
from trainer import preflight
from trainer.config import Recipe, Stage
from trainer.faults import Fault
from trainer.fresh import start_model
from trainer.learner import Learner
from trainer.loop import LOOPS
from trainer.modelfolder import fetch
from trainer.profile import Profile, Watches
from trainer.stage import StageRun
from trainer.traces import base as traces
from trainer.tracking import Tracker, read
from trainer.types import Batch, Floats


class Here(Workers):
    """`trainer.world.World` of one learner rank, one engine and one verifier pool."""

    def __init__(self, stage: Stage, model: str, seed: int = 0) -> None:
        self.stage, self.version, dtype = stage, 0, stage.model.dtype
        worker = RolloutWorker.from_pretrained(
            model, stage.rollout.engine, stage.markers, dtype=dtype
        )
        super().__init__(worker, VerifierPool(stage.verifier, workers=stage.grader.processes))
        self.watches = Watches()
        self.learning = threading.Lock()
        self.left_out = set[tuple[str, ...]]()
        self.learner = Learner(
            model,
            stage.learner,
            stage.optim,
            stage.loss,
            total_steps=stage.steps * stage.updates_per_batch * stage.epochs,
            temperature=1.0 if stage.kind == "sft" else stage.rollout.temperature,
            dtype=dtype,
            lora=stage.model.lora,
            seed=seed,
        )

    def score(self, batch: Batch, which: Any) -> list[Floats]:
        with self.learning:
            return [s for (micro,) in batch.updates for s, _ in self.learner.score(micro, which)]

    def norms(self, batch: Batch, scope: Any) -> list[Floats]:
        with self.learning:
            return [n for (micro,) in batch.updates for n in self.learner.norms(micro, scope)]

    def variance(self, shares: Sequence[Any]) -> tuple[float, float]:
        with self.learning:
            return self.learner.variance(shares[0])

    def step(self, batch: Batch) -> dict[str, float]:
        with self.learning:
            return self.learner.step(batch.share(0), self.stage.epochs)

    def sync(self) -> None:
        self.version += 1
        in_flight = self.stage.rollout.in_flight_updates
        weights = chain.from_iterable(self.learner.buckets())
        self.worker.load_weights(weights, self.version, in_flight=in_flight)

    def flow(self) -> Flow:
        return self.worker.flow()

    def abort(self) -> None:
        self.worker.abort()

    def faults(self) -> list[Fault]:
        return []

    def probe(self, ids: Sequence[Ids]) -> list[Floats]:
        return self.worker.score(ids, self.stage.rollout.temperature)

    def save(self, folder: Path) -> None:
        self.learner.save(folder / "learner")
        self.export(folder / "model")

    def load(self, folder: Path) -> None:
        self.learner.load(folder / "learner")

    def export(self, folder: Path) -> None:
        self.learner.export(folder)

    def profile(self, folder: Path | None) -> None:
        works = {"learner-0": self.learner, "rollout-0": self.worker, "grader-0": self.pool}
        self.watches.profile(folder, {name: [thing] for name, thing in works.items()})

    def close(self) -> None:
        self.watches.profile(None, {})
        self.pool.close()
        self.learner.close()


def run(recipe: Recipe, profile: int = 0) -> list[dict[str, Any]]:
    """Train the recipe's only stage as `launch.run` does, and return its metrics by step."""
    preflight.check_all(recipe)
    folder, (stage,) = recipe.folder, recipe.stages
    folder.mkdir(parents=True)
    model = str(start_model(fetch(stage.model.path), folder / "start", stage, recipe.seed))
    world = Here(stage, model, recipe.seed)
    try:
        with (
            Tracker(folder, recipe.tracking, recipe) as tracker,
            Profile(folder, profile) as profiled,
            StageRun(recipe, 0, 0, model, world, tracker, folder) as stage_run,
        ):
            traces.supply(stage_run, model)
            profiled.watch(stage_run)
            LOOPS[stage.kind](stage_run)
    finally:
        world.close()
    return read(folder)
