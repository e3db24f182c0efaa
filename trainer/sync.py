"""The learner's side of a weight sync: buckets leave through a ring, or vLLM's own backends.

`auto` takes CUDA's memory handles (ipc) where vLLM engines share the learners' GPUs, shared memory
where all engines sit on the host of the first learner rank, NCCL where vLLM engines have GPUs of
their own elsewhere, and TCP from host to host for all others. The engines' side is
`Engine.receive(source, version)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from samplers.ring import Source, SyncError, Writer
from samplers.seam import Component

if TYPE_CHECKING:
    from trainer.learner import Learner

Transport = Literal["shm", "tcp", "nccl", "ipc"]
WRITER, READER = 0.8, 0.9
"""Shares of the deadline after which the learner, and then an engine, gives up: the first to do so
names the one that hangs, before the driver's own deadline."""


class SyncConfig(Component):
    """How new weights come to the engines."""

    transport: Literal["auto", "shm", "tcp", "nccl", "ipc"] = "auto"
    """`shm` (shared memory of one host), `tcp` (any engine on any host), `nccl` (vLLM engines on
    GPUs of any host), `ipc` (vLLM engines that share the learners' GPUs); auto takes the one that
    fits, and beside tcp shared memory for engines on the learner's own host."""
    bucket_mb: int = Field(default=64, ge=1)
    """Weights travel in buckets of this size (a larger tensor in one of its own); two are held in
    memory at a time, and one more where ZeRO-3 gathers them."""
    deadline: float = Field(default=300.0, gt=0)
    """Seconds a sync may take; then the side that did not answer is named and the run stops."""
    checksum: bool = False
    """shm and tcp: every bucket's CRC-32 is compared before an engine loads it; a difference stops
    the run, and names engine, host and bucket."""


class Publisher:
    """One learner rank's part in every sync of a stage; all ranks take part in each.

    Args:
        kind: how the weights travel.
        names: what to call each reader in an error; an engine of several has as many.
        address: host that rank 0 is met at, and for nccl the port.
    """

    def __init__(
        self,
        learner: Learner,
        config: SyncConfig,
        kind: Transport,
        names: Sequence[str],
        address: tuple[str, int],
    ) -> None:
        from trainer import weights

        self.learner, self.kind, self.names = learner, kind, names
        self.bucket_bytes = config.bucket_mb * 2**20
        self.patience = config.deadline
        self.sizes = weights.sizes(learner.model)
        self._address = address
        self._writer: Writer | None = None
        self._sender: Any = None
        if learner.rank == 0 and kind != "nccl":
            largest = max(_bytes(dtype, shape) for _, dtype, shape in self.sizes)
            room = 1 if kind == "ipc" else max(largest, self.bucket_bytes)
            host = address[0] if kind == "tcp" else ""
            self._writer = Writer(names, room, WRITER * config.deadline, host, config.checksum)

    def source(self) -> Source:
        """What the first reader is told; `Source.of` numbers the others. Rank 0's."""
        deadline = READER * self.patience
        if self._writer is not None:
            return replace(self._writer.source(0, self.kind), deadline=deadline)
        return Source(
            self.kind,
            "{}:{}".format(*self._address),
            readers=len(self.names),
            deadline=deadline,
            bucket_bytes=self.bucket_bytes,
            parameters=tuple((n, _name(d), s) for n, d, s in self.sizes),
        )

    def publish(self) -> None:
        """Send the current weights. Collective.

        Raises:
            SyncError: an engine failed, died or hung.
        """
        try:
            if self.kind in ("shm", "tcp"):
                self._through_the_ring()
            else:
                self._through_vllm()
        except BaseException as error:
            if self._writer is not None:
                self._writer.fail(
                    f"weight sync: the learner failed: {type(error).__name__}: {error}"
                )
            raise

    def _through_the_ring(self) -> None:
        import torch

        writer = self._writer
        if writer is None:
            for _ in self.learner.buckets(self.bucket_bytes):
                pass
            return
        failed: list[SyncError] = []

        def tried(do: Callable[..., Any], *args: Any) -> Any:
            """Other ranks are in the middle of it: this one goes along to the end all the same."""
            try:
                return None if failed else do(*args)
            except SyncError as error:
                failed.append(error)
                return None

        def room(name: str, shape: Sequence[int], dtype: Any) -> Any:
            slot = tried(writer.room, name, shape, dtype)
            return slot if slot is not None else torch.empty(tuple(shape), dtype=dtype)

        tried(writer.begin)
        for _ in self.learner.buckets(self.bucket_bytes, room):
            tried(writer.send)
        tried(writer.end)
        if failed:
            raise failed[0]

    def _through_vllm(self) -> None:
        from trainer import vllm_transfer

        if self._sender is None:
            self._sender = vllm_transfer.sender(self, self._writer, self._address)
        self._sender.send_weights()

    def close(self) -> None:
        if self._sender is not None:
            self._sender.shutdown()
        if self._writer is not None:
            self._writer.close()


def _bytes(dtype: Any, shape: Sequence[int]) -> int:
    return int(math.prod(shape) * dtype.itemsize)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
