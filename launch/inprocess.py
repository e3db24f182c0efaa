"""An engine and a verifier in this process, for `laconic eval` and `laconic generate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from samplers.engines.torch import Config as EngineConfig
from samplers.render import ThinkingConfig
from samplers.rollout import RolloutWorker
from samplers.types import Job, Rollout
from trainer.modelfolder import ModelFolder, fetch
from trainer.preflight import check_markers
from trainer.world import Item


class Workers:
    """What `trainer.eval` needs of the machines."""

    def __init__(self, worker: RolloutWorker, pool: VerifierPool) -> None:
        self.worker, self.pool = worker, pool

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
        return self.worker.generate(jobs)

    def grade(self, items: Sequence[Item]) -> list[Verdict]:
        return self.pool.grade(items)

    def grading(self) -> dict[str, float]:
        return self.pool.stats()

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return [self.worker.renderer.decode(row) for row in ids]


def worker(args: argparse.Namespace) -> tuple[RolloutWorker, ModelFolder]:
    """The rollout worker that the model arguments of the command line describe.

    Raises:
        ValueError: no such model, or its markers are not in the vocabulary.
    """
    model = ModelFolder(fetch(args.model))
    start, end = args.markers
    thinking = None if args.no_thinking else ThinkingConfig(start=start, end=end)
    if thinking is not None:
        check_markers(model, thinking)
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading, on top of which the answer would stand
    return RolloutWorker.from_pretrained(str(model.path), EngineConfig(), thinking), model
