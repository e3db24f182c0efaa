"""What runs in each process of a run: plain classes; launch/fleet.py makes Ray actors of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.verdict import Verdict
from samplers import columns
from samplers.types import Job
from trainer.config import Stage
from trainer.ports import free_port
from trainer.world import Item

BUCKET_BYTES = 64 * 2**20


def _environment(device: str, threads: int) -> None:
    """Set before torch is imported in an actor."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray's own; 0 leaves it to torch
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if device == "cpu":
        os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")


class LearnerActor:
    """One data-parallel rank."""

    def address(self) -> tuple[str, int]:
        """Where rank 0 will listen: asked of its own machine."""
        import ray

        return ray.util.get_node_ip_address(), free_port()

    def build(
        self, stage: Stage, model: str, rank: int, master: tuple[str, int], device: str
    ) -> None:
        _environment(device, threads=stage.learner.threads)
        from trainer.learner import Learner

        self.rank = rank
        sft = stage.kind == "sft"
        self.learner = Learner(
            model,
            stage.learner,
            stage.optim,
            stage.loss,
            total_steps=stage.steps * stage.updates_per_batch * stage.epochs,
            rank=rank,
            address=master[0],
            port=master[1],
            temperature=1.0 if sft else stage.rollout.temperature,
            dtype=stage.model.dtype,
            attention=stage.model.attention,
            trust_remote_code=stage.model.trust_remote_code,
            max_bad_steps=stage.guard.bad_steps,
        )

    def step(self, updates: Any, epochs: int) -> dict[str, float]:
        return self.learner.step(updates, epochs)

    def score(self, micro_batches: Any, which: Any) -> Any:
        return self.learner.score(micro_batches, which)

    def publish(self) -> list[Any]:
        """Weights in bounded buckets, in the object store; every rank takes part, rank 0 gives."""
        import ray

        out = []
        for bucket in self.learner.buckets(BUCKET_BYTES):
            if self.rank == 0:
                pairs = [(name, _host(tensor)) for name, tensor in bucket]
                out += [ray.put(pairs)]  # one object a bucket, whatever it holds
        return out

    def save(self, folder: str) -> None:
        self.learner.save(Path(folder))

    def load(self, folder: str) -> None:
        self.learner.load(Path(folder))

    def export(self, folder: str) -> None:
        self.learner.export(Path(folder))

    def close(self) -> None:
        self.learner.close()


class RolloutActor:
    """One engine and the rollout worker beside it."""

    def build(self, stage: Stage, model: str, device: str) -> bool:
        """Whether the chat template opens the thought."""
        _environment(device, threads=stage.rollout.engine.threads)
        from samplers.rollout import RolloutWorker

        self.worker = RolloutWorker.from_pretrained(
            model,
            stage.rollout.engine,
            stage.markers,
            dtype=stage.model.dtype,
            trust_remote_code=stage.model.trust_remote_code,
        )

        markers = self.worker.renderer.thinking
        return markers is not None and markers.opened

    def rollout(self, jobs: Sequence[Job]) -> dict[str, Any]:
        return columns.pack(self.worker.generate(jobs))

    def load(self, buckets: Sequence[Any], version: int) -> None:
        import ray

        self.worker.load_weights((pair for ref in buckets for pair in ray.get(ref)), version)

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return [self.worker.renderer.decode(row) for row in ids]


class GraderActor:
    """One verifier pool."""

    def build(self, stage: Stage, path: Sequence[str]) -> None:
        """`path`: the driver's sys.path, on which a user's verifier may lie."""
        sys.path += [folder for folder in path if folder not in sys.path]
        from rewards.pool import VerifierPool

        grader = stage.grader
        self.pool = VerifierPool(stage.verifier, workers=grader.processes, deadline=grader.deadline)

    def grade(self, items: Sequence[Item]) -> list[Verdict]:
        return self.pool.grade(items)

    def close(self) -> None:
        self.pool.close()


def _host(tensor: Any) -> Any:
    """numpy where numpy has the type (zero-copy in the object store); bf16 stays a tensor."""
    import torch

    tensor = tensor.cpu()
    return tensor if tensor.dtype is torch.bfloat16 else tensor.numpy()
