"""From ZeRO's partitions through the ring into two engines: every stage, tied and untied, exactly.

Each of two ranks has an engine beside its learner, which receives in a thread while the ranks
publish together: that of rank 0 by shared memory, that of rank 1 by TCP.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from samplers.ring import SyncError
from tests.made import sequence
from tests.ranks import on_ranks
from tests.tiny import tiny_model
from trainer.batching import pack
from trainer.learner import Learner, LearnerConfig
from trainer.losses import LossConfig
from trainer.optim import OptimConfig
from trainer.sync import Publisher, SyncConfig

SYNCS = 3


def start(rank: int, model: str, zero: int, dtype: str) -> Learner:
    return Learner(
        model, LearnerConfig(zero=zero, ranks=2), OptimConfig(lr=0.05), LossConfig(name="ce"),
        total_steps=SYNCS, rank=rank, port=0, dtype=dtype,
    )  # type: ignore[arg-type] # fmt: skip


def meet(rank: int, learner: Learner, config: SyncConfig) -> tuple[Publisher, Any]:
    """This rank's publisher, and the source of the engine beside it."""
    import torch

    publisher = Publisher(learner, config, "tcp", ["engine 0", "engine 1"], ("127.0.0.1", 0))
    told: list[Any] = [publisher.source() if rank == 0 else None]
    torch.distributed.broadcast_object_list(told)
    return publisher, told[0].of(rank).by("tcp" if rank else "shm")


def follow(rank: int, folder: str) -> list[tuple]:
    """Per stage, head and dtype: what the engine holds otherwise; and all it holds."""
    import torch

    from samplers.engines._torch import TorchEngine
    from samplers.engines.base import Config

    ids = {n: np.arange(5, 5 + n, dtype=np.int32) for n in (7, 12, 20)}
    rows = [replace(sequence(i, n), ids_T=ids[n]) for i, n in enumerate(ids)]
    batch = pack(rows, LossConfig(name="ce"), tokens_per_micro_batch=24, ranks=2)
    out = []
    for zero, head, dtype in (
        (zero, head, dtype)
        for zero in range(4)
        for head in ("tied", "untied")
        for dtype in ("float32", "bfloat16")
        if dtype == "float32" or zero == 3
    ):
        learner = start(rank, f"{folder}/{head}", zero, dtype)
        engine = TorchEngine(f"{folder}/{head}", Config(device="cpu", dtype=dtype))
        publisher, source = meet(rank, learner, SyncConfig(bucket_mb=1, deadline=60, checksum=True))
        publisher.bucket_bytes = 4096  # of MB of buckets a tiny model would fill none
        wrong = []
        for version in range(1, SYNCS + 1):
            learner.step([batch.updates[0][rank]])
            before = {name: t.clone() for name, t in engine.model.state_dict().items()}
            thread = threading.Thread(target=engine.receive, args=(source, version))
            thread.start()
            publisher.publish()
            thread.join()
            whole = [pair for bucket in learner.buckets() for pair in bucket]
            told = [whole]
            torch.distributed.broadcast_object_list(told)
            held = engine.model.state_dict()
            assert any(not torch.equal(before[n], t) for n, t in told[0]), "it moved"
            wrong += [name for name, tensor in told[0] if not torch.equal(held[name], tensor)]
            wrong += [] if engine.version == version else [f"version {engine.version}"]
        out.append((zero, head, dtype, wrong, len(whole)))
        publisher.close()
        learner.close()
    return out


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for tied in (True, False):
        tiny_model(tied=tied).save_pretrained(folder / ("tied" if tied else "untied"))
    return folder


def test_engines_hold_the_learners_weights(models: Path) -> None:
    ranks = on_ranks(2, follow, str(models), deadline=200)
    assert len(ranks[0]) == 10
    for rank, cases in enumerate(ranks):
        for zero, head, dtype, wrong, count in cases:
            assert wrong == [], f"engine {rank}: zero={zero} {head} {dtype}"
            assert rank or count > 20


def fail(rank: int, model: str) -> list[str]:
    """What both sides say of a learner that fails between two buckets."""
    from samplers.engines._torch import TorchEngine
    from samplers.engines.base import Config

    learner = start(rank, model, 0, "float32")
    engine = TorchEngine(model, Config(device="cpu"))
    publisher, source = meet(rank, learner, SyncConfig(deadline=60))
    publisher.bucket_bytes = 4096
    said: list[str] = []

    def receive() -> None:
        try:
            engine.receive(source, 1)
        except SyncError as error:
            said.append(f"engine: {error}")

    if rank == 0:
        publisher.learner = SimpleNamespace(buckets=broken(learner.buckets))  # type: ignore[assignment]
    thread = threading.Thread(target=receive)
    thread.start()
    try:
        publisher.publish()
    except RuntimeError as error:
        said.append(f"learner: {error}")
    thread.join()
    publisher.close()
    learner.close()
    return sorted(said)


def broken(buckets: Any) -> Any:
    def some(*args: Any) -> Any:
        for number, bucket in enumerate(buckets(*args)):
            if number == 2:
                raise RuntimeError("the disk is on fire")
            yield bucket

    return some


def test_a_learner_that_fails_is_told_to_every_engine(models: Path) -> None:
    first, second = on_ranks(2, fail, str(models / "tied"))
    message = "engine: weight sync: the learner failed: RuntimeError: the disk is on fire"
    assert first == [message, "learner: the disk is on fire"]
    assert second == [message]


def test_a_slot_holds_the_largest_parameter() -> None:
    """A parameter larger than a bucket has a bucket of its own, and a slot that it fits."""
    model = tiny_model(vocab_size=20_000)
    sizes = [(n, p.dtype, tuple(p.shape)) for n, p in model.named_parameters()]
    largest = max(p.nbytes for p in model.parameters())
    learner: Any = SimpleNamespace(rank=0, model=model, buckets=_buckets(model))
    publisher = Publisher(learner, SyncConfig(bucket_mb=1), "shm", ["engine 0"], ("", 0))
    assert publisher.sizes == sizes
    assert largest > 2**20
    got: dict[str, Any] = {}
    thread = threading.Thread(target=_take, args=(publisher.source(), got))
    thread.start()
    publisher.publish()
    thread.join()
    publisher.close()
    for name, parameter in model.named_parameters():
        assert np.array_equal(got[name], parameter.detach().numpy())


def _buckets(model: Any) -> Any:
    from trainer import weights

    return lambda size, into=None: weights.buckets(model, size, into)


def _take(source: Any, got: dict[str, Any]) -> None:
    from samplers import ring

    with ring.read(source) as weights:
        got |= {name: tensor.numpy().copy() for name, tensor in weights}
