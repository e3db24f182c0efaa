"""A World that outlives its stages: one engine, one learner and one pool for many short runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from launch.inprocess import Workers
from rewards.service.pool import VerifierPool
from samplers.flow import Flow
from samplers.rollout import RolloutWorker
from samplers.types import Ids
from trainer.config import Recipe, Stage
from trainer.faults import Fault
from trainer.learner import Learner
from trainer.loop import LOOPS
from trainer.modelfolder import fetch
from trainer.stage import StageRun
from trainer.traces import base as traces
from trainer.tracking import Tracker, read
from trainer.types import Batch, Floats


class Reused(Workers):
    """`trainer.world.World` of a stage that changes; its weights train on from run to run.

    Args:
        stage: the first one; later ones may differ in all but model, engine and verifier.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage, self.version, self.left_out = stage, 0, set[tuple[str, ...]]()
        self.model = str(fetch(stage.model.path))
        worker = RolloutWorker.from_pretrained(self.model, stage.rollout.engine, stage.markers)
        super().__init__(worker, VerifierPool(stage.verifier, workers=0))
        self.learner = Learner(
            self.model, stage.learner, stage.optim, stage.loss, total_steps=stage.steps
        )

    def run(self, recipe: Recipe, folder: Path) -> list[dict[str, Any]]:
        """Train the recipe's stages, one after the other, and return their metrics by step."""
        folder.mkdir(parents=True)
        first = 0
        with Tracker(folder, recipe.tracking, recipe) as tracker:
            for index, self.stage in enumerate(recipe.stages):
                self.learner.loss, self.learner.updates, self.version = self.stage.loss, 0, -1
                self.sync()  # the engine may hold weights, and a version, of the run before
                with StageRun(recipe, index, first, self.model, self, tracker, folder) as run:
                    traces.supply(run, self.model)
                    LOOPS[self.stage.kind](run)
                first += self.stage.steps
        return read(folder)

    def score(self, batch: Batch, which: Any) -> list[Floats]:
        return [s for (micro,) in batch.updates for s, _ in self.learner.score(micro, which)]

    def norms(self, batch: Batch, scope: Any) -> list[Floats]:
        return [n for (micro,) in batch.updates for n in self.learner.norms(micro, scope)]

    def variance(self, shares: Sequence[Any]) -> tuple[float, float]:
        return self.learner.variance(shares[0])

    def step(self, batch: Batch) -> dict[str, Any]:
        return self.learner.step(batch.share(0), self.stage.epochs)

    def sync(self) -> None:
        self.version += 1
        self.worker.load_weights(chain.from_iterable(self.learner.buckets()), self.version)

    def flow(self) -> Flow:
        return self.worker.flow()

    def abort(self) -> None:
        self.worker.abort()

    def faults(self) -> list[Fault]:
        return []

    def probe(self, ids: Sequence[Ids]) -> list[Floats]:
        return self.worker.score(ids, self.stage.rollout.temperature)

    def save(self, folder: Path) -> None:
        """Nobody goes on from these runs."""

    def load(self, folder: Path) -> None:
        raise NotImplementedError

    def export(self, folder: Path) -> None:
        raise NotImplementedError

    def profile(self, folder: Path | None) -> None: ...

    def close(self) -> None:
        self.pool.close()
        self.learner.close()
