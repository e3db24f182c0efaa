"""vLLM's own weight transfer on GPUs, fed from our buckets: the learner's side of nccl and ipc.

vLLM's trainer half wants a source it can iterate again and again, and a client that drives the
engines. Its ready-made source does not know ZeRO-3's partitions; ours are the buckets. The engines
drive themselves (`samplers/engines/_vllm_transfer.py`), each by the one control call of a sync, so
the clients have little to do. Written against vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from samplers.ring import Writer

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.learner import Learner
    from trainer.sync import Publisher


class Buckets:
    """vLLM's `WeightSource` over a learner's buckets, in their order. Iterating is collective.

    Args:
        everywhere: every rank gets the weights (ipc: each GPU has engines); else rank 0 alone.
    """

    def __init__(self, learner: Learner, bucket_bytes: int, everywhere: bool) -> None:
        self.learner, self.bucket_bytes, self.everywhere = learner, bucket_bytes, everywhere

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        from trainer import weights

        return [ParamMeta(*of) for of in weights.sizes(self.learner.model)]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        into = self._room if self.everywhere else None
        for bucket in self.learner.buckets(self.bucket_bytes, into):
            yield from bucket

    def _room(self, _name: str, shape: tuple[int, ...], dtype: Any) -> Tensor:
        import torch

        return torch.empty(shape, dtype=dtype, device=self.learner.device)


class Silent:
    """nccl's client: the engines know what comes from their source, and begin by themselves."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class Told(Silent):
    """ipc's client: memory handles go to the engines over the ring's sockets, chunk by chunk."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def start_weight_update(self) -> None:
        self.writer.begin()

    def update_weights(self, update_info: Any) -> None:
        self.writer.tell(update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.writer.end()


def sender(publisher: Publisher, writer: Writer | None, address: tuple[str, int]) -> Any:
    """vLLM's trainer half, ready to `send_weights`; with nccl it waits for the engines to join.

    Args:
        writer: ipc: rank 0's sockets to the engines.
        address: nccl: where rank 0 and the engines meet.
    """
    from vllm.distributed.weight_transfer import ipc_engine, nccl_engine
    from vllm.distributed.weight_transfer.base import WeightSource

    WeightSource.register(Buckets)
    learner, size = publisher.learner, publisher.bucket_bytes
    if publisher.kind == "nccl":
        host, port = address
        joining = nccl_engine.NCCLTrainerInitInfo(
            host, port, 1 + len(publisher.names), packed_buffer_size_bytes=size, rank=learner.rank
        )
        return nccl_engine.NCCLTrainerWeightTransferEngine.trainer_init(
            joining, client=Silent(), source=Buckets(learner, size, everywhere=False)
        )
    sharing = ipc_engine.IPCTrainerInitInfo(
        packed=True, packed_buffer_size_bytes=size, rank=learner.rank
    )
    return ipc_engine.IPCTrainerWeightTransferEngine.trainer_init(
        sharing,
        client=Told(writer) if writer else Silent(),
        source=Buckets(learner, size, everywhere=True),
    )
