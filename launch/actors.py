"""What runs in each process of a run: plain classes; launch/fleet.py makes Ray actors of them."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.cluster import leavings
from launch.transport import Seat
from rewards.verdict import Verdict
from samplers import columns
from samplers.columns import Columns
from samplers.flow import Flow
from samplers.ring import Source
from samplers.types import Floats, Ids
from trainer.config import Stage
from trainer.ports import free_port
from trainer.profile import Watches
from trainer.sync import Publisher, Transport
from trainer.world import Item


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


class Actor:
    """What every process can do."""

    def __init__(self) -> None:
        self._watches = Watches()

    def process(self) -> tuple[str, int]:
        """Its node, and its number there."""
        return _seat().node, os.getpid()

    def pulse(self) -> int | None:
        """Who answers lives."""
        return None

    def profile(self, folder: str | None, name: str) -> None:
        """Record times into `folder` as the process `name`; None: no longer."""
        works = list(vars(self).values())
        self._watches.profile(Path(folder) if folder else None, {name: works})


class LearnerActor(Actor):
    """One data-parallel rank."""

    def address(self) -> tuple[str, int]:
        """Where rank 0 will listen: asked of its own machine."""
        import ray

        return ray.util.get_node_ip_address(), free_port()

    def build(
        self, stage: Stage, model: str, rank: int, master: tuple[str, int], device: str, seed: int
    ) -> None:
        _environment(device, threads=stage.learner.threads)
        from trainer.learner import Learner

        self.rank, self.sync = rank, stage.sync
        self.publisher: Publisher | None = None
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
            lora=stage.model.lora,
            seed=seed,
            max_bad_steps=stage.guard.bad_steps,
        )

    def step(self, updates: Any, epochs: int) -> dict[str, float]:
        return self.learner.step(updates, epochs)

    def score(self, micro_batches: Any, which: Any) -> Any:
        return self.learner.score(micro_batches, which)

    def norms(self, micro_batches: Any, scope: Any) -> Any:
        return self.learner.norms(micro_batches, scope)

    def variance(self, groups: Any) -> tuple[float, float]:
        return self.learner.variance(groups)

    def rest(self) -> None:
        """Give back what of a GPU's memory is only kept for the next step: engines wake."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def where(self) -> Seat:
        return _seat()

    def connect(self, kind: Transport, readers: Sequence[str], port: int, host: str) -> Source:
        """Make ready for syncs with these readers; rank 0's source is the one that counts."""
        if self.publisher is not None:
            self.publisher.close()
        self.publisher = Publisher(self.learner, self.sync, kind, readers, (host, port))
        return self.publisher.source()

    def publish(self) -> None:
        assert self.publisher is not None, "connected when the fleet was built"
        self.publisher.publish()

    def save(self, folder: str) -> None:
        self.learner.save(Path(folder))

    def load(self, folder: str) -> None:
        self.learner.load(Path(folder))

    def export(self, folder: str) -> None:
        self.learner.export(Path(folder))

    def close(self) -> None:
        if self.publisher is not None:
            self.publisher.close()
        self.learner.close()


class RolloutActor(Actor):
    """One engine and the rollout worker beside it."""

    def build(self, stage: Stage, model: str, device: str) -> bool:
        """Whether the chat template opens the thought."""
        _environment(device, threads=stage.rollout.engine.threads)
        from samplers.rollout import RolloutWorker

        with leavings():
            self.worker = RolloutWorker.from_pretrained(
                model,
                stage.rollout.engine,
                stage.markers,
                dtype=stage.model.dtype,
                trust_remote_code=stage.model.trust_remote_code,
            )
        gc.collect()  # what stays for good is not gone through again: 200 ms a full collection
        gc.freeze()
        self.flows: dict[int, Flow] = {}
        self.in_flight = stage.rollout.in_flight_updates
        self.temperature = stage.rollout.temperature
        markers = self.worker.renderer.thinking
        return markers is not None and markers.opened

    def rollout(self, jobs: Columns) -> Columns:
        """Called by several threads at once, beside everything else."""
        return columns.pack(self.worker.generate(columns.unpack_jobs(jobs)))

    def stream(self, flow: int) -> Iterator[list[tuple[int, Columns]]]:
        """Lots that are added to the flow, by number, as they are done; ends with the flow."""
        mine = self._flow(flow)
        try:
            while mine.awaits():
                done = mine.finished()
                if done:  # else somebody ended it meanwhile
                    yield [(number, columns.pack(rollouts)) for number, rollouts in done]
        finally:
            del self.flows[flow]

    def add(self, flow: int, number: int, jobs: Columns) -> None:
        self._flow(flow).add(columns.unpack_jobs(jobs), number)

    def end(self, flow: int) -> None:
        """End what is being made of a flow."""
        self._flow(flow).close()

    def _flow(self, flow: int) -> Flow:
        """Calls of different threads come in any order: any of them may be the first."""
        return self.flows.setdefault(flow, Flow(self.worker))

    def where(self) -> Seat:
        return _seat(self.worker.engine.receivers)

    def receive(self, source: Source, version: int) -> None:
        self.worker.receive(source, version, in_flight=self.in_flight)

    def score(self, ids: Sequence[Ids]) -> list[Floats]:
        return self.worker.score(ids, self.temperature)

    def abort(self) -> None:
        self.worker.abort()

    def pulse(self) -> int | None:
        """Counts what the engine gets done: it stands still where the engine hangs. None: it has
        nothing to do, or nothing any more; what is done may wait for long until it is fetched."""
        return self.worker.beats if self.worker.busy else None

    def sleep(self) -> None:
        self.worker.between(self.worker.engine.sleep, drained=True)

    def wake(self) -> None:
        self.worker.between(self.worker.engine.wake, drained=True)

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return [self.worker.renderer.decode(row) for row in ids]


class GraderActor(Actor):
    """One verifier pool."""

    def build(self, stage: Stage, path: Sequence[str]) -> None:
        """`path`: the driver's sys.path, on which a user's verifier may lie."""
        sys.path += [folder for folder in path if folder not in sys.path]
        from rewards.service.pool import VerifierPool

        grader = stage.grader
        self.pool = VerifierPool(
            stage.verifier, grader.processes, grader.deadline, grader.memory_mb
        )

    def grade(self, items: Sequence[Item]) -> list[Verdict]:
        return self.pool.grade(items)

    def stats(self) -> dict[str, float]:
        return self.pool.stats()

    def close(self) -> None:
        self.pool.close()


def _seat(readers: int = 0) -> Seat:
    import ray

    context = ray.get_runtime_context()
    gpus = tuple(str(gpu) for gpu in ray.get_gpu_ids())
    return Seat(context.get_node_id(), gpus, readers, ray.util.get_node_ip_address())
