"""vLLM's own weight transfer on GPUs: the worker's side of nccl and ipc, by one call a sync.

The learner's side is `trainer/vllm_transfer.py`. Written against vLLM 0.32.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from samplers import ring
from samplers.ring import Source

STUCK = 1.5
"""Deadlines after which a worker in NCCL ends itself: later than the driver, who then has told
which processes did not answer, and waits for none of them."""


def receive(worker: Any, source: Source) -> None:
    """Load what a learner sends into `worker`, a vLLM worker process; `source` is its own.

    Raises:
        SyncError: ipc: the learner failed, died or hung. With nccl such a worker hangs, and ends
            its process.
    """
    if source.kind == "nccl":
        with _ended_if_stuck(STUCK * source.deadline):
            _by_nccl(worker, source)
        return
    if worker.weight_transfer_engine is None:
        _prepare(worker, source)
    with ring.attach(source) as reader:
        worker.start_weight_update()
        for _, handles in reader.messages():
            worker.update_weights(handles)
        worker.finish_weight_update()


def _by_nccl(worker: Any, source: Source) -> None:
    if worker.weight_transfer_engine is None:
        _prepare(worker, source)
    names, dtypes, shapes = zip(*source.parameters, strict=True)
    worker.start_weight_update()
    worker.update_weights(
        {
            "names": list(names),
            "dtype_names": list(dtypes),
            "shapes": [list(shape) for shape in shapes],
        }
    )
    worker.finish_weight_update()


@contextlib.contextmanager
def _ended_if_stuck(seconds: float) -> Iterator[None]:
    """A collective whose other side is gone never returns, and nothing can be raised in it: the
    process ends, and another engine takes its place."""
    done = threading.Event()

    def watch() -> None:
        if not done.wait(seconds):
            print(f"weight sync: still in NCCL after {seconds:g} s; killed", file=sys.stderr)
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="nccl", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _prepare(worker: Any, source: Source) -> None:
    """Once: make vLLM's receiver; with nccl, join the learner's group."""
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    worker.weight_transfer_engine = WeightTransferEngineFactory.create_engine(
        WeightTransferConfig(backend=source.kind),
        worker.vllm_config,
        worker.device,
        worker.model_runner.get_model(),
    )
    told: dict[str, Any] = {"packed": True}
    if source.kind == "nccl":
        host, _, port = source.address.rpartition(":")
        told |= {
            "master_address": host,
            "master_port": int(port),
            # vLLM adds the worker's rank within its engine; 0 is the learner.
            "rank_offset": 1 + source.reader - worker.rank,
            "world_size": 1 + source.readers,
            "packed_buffer_size_bytes": source.bucket_bytes,
        }
    worker.init_weight_transfer_engine(told)
