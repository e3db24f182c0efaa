"""An engine and a verifier in this process, for `laconic eval` and `laconic generate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import yaml

from rewards.service.pool import VerifierPool
from rewards.verdict import Verdict
from samplers import render, seam
from samplers.engines import base
from samplers.render import Renderer, ThinkingConfig
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
        ValueError: no such model, its markers are not in the vocabulary, or no such engine.
    """
    config = engine_of(getattr(args, "engine", None) or "torch", getattr(args, "dtype", None))
    model, renderer = prepare(args)
    return start(model, renderer, config), model


def prepare(args: argparse.Namespace) -> tuple[ModelFolder, Renderer]:
    """The model's folder and what renders its prompts: no weights are loaded.

    Raises:
        ValueError: no such model, or its markers are not in the vocabulary.
    """
    model = ModelFolder(fetch(args.model))
    first, last = args.markers
    thinking = None if args.no_thinking else ThinkingConfig(start=first, end=last)
    if thinking is not None:
        check_markers(model, thinking)
    return model, render.load(str(model.path), thinking)


def start(model: ModelFolder, renderer: Renderer, config: base.Config) -> RolloutWorker:
    """Load the weights."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading, on top of which the answer would stand
    return RolloutWorker(base.start(str(model.path), config), renderer)


def engine_of(text: str, dtype: str | None = None) -> base.Config:
    """The settings that --engine and --dtype give.

    Raises:
        ValueError: no YAML, no such engine, or settings that it does not take.
    """
    try:
        spec: Any = yaml.safe_load(text)
        config: base.Config = seam.told("samplers.engines", spec)[1]
    except yaml.YAMLError:
        raise ValueError(f"--engine: {text!r} is no YAML; write torch, vllm or a map") from None
    except (ValueError, TypeError) as error:
        why = str(error).removeprefix("engine: ")
        raise ValueError(f"--engine: {why}; write torch, vllm or '{{name: vllm}}'") from None
    return config if dtype is None else config.model_copy(update={"dtype": dtype})
