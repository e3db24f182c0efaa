"""vLLM's own weight transfer on GPUs: the worker's side of nccl and ipc, by one call a sync.

The learner's side is `trainer/vllm_transfer.py`. Written against vLLM 0.32.
"""

from __future__ import annotations

from typing import Any

from samplers import ring
from samplers.ring import Source


def receive(worker: Any, source: Source) -> None:
    """Load what a learner sends into `worker`, a vLLM worker process; `source` is its own.

    Raises:
        SyncError: ipc: the learner failed, died or hung. With nccl such a worker hangs, and the
            driver's deadline ends it.
    """
    if worker.weight_transfer_engine is None:
        _prepare(worker, source)
    if source.kind == "nccl":
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
        return
    with ring.attach(source) as reader:
        worker.start_weight_update()
        for _, handles in reader.messages():
            worker.update_weights(handles)
        worker.finish_weight_update()


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
