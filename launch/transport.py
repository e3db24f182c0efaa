"""How weights travel from the learners to the engines: decided from where each of them sits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.sync import SyncConfig, Transport


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a learner rank or an engine sits."""

    node: str
    gpus: tuple[str, ...] = ()
    """Ids on that node."""
    readers: int = 0
    """Processes of an engine that read weights."""
    address: str = ""
    """The node's, for people and for connections."""

    def places(self) -> Iterator[tuple[str, str]]:
        return ((self.node, gpu) for gpu in self.gpus)


def choose(
    sync: SyncConfig, engine: str, learners: Sequence[Seat], engines: Sequence[Seat]
) -> Transport:
    """The transport of a stage; `engine` is the engines' name.

    Raises:
        ValueError: what was asked for cannot work here; with what to change.
    """
    wrong: dict[Transport, str] = {
        "ipc": _not_ipc(engine, learners, engines),
        "shm": _not_shm(learners, engines),
        "nccl": _not_nccl(engine, learners, engines),
        "tcp": "",
    }
    asked = sync.transport
    if asked != "auto" and wrong[asked]:
        raise ValueError(f"sync.transport={asked}: {wrong[asked]}; or set sync.transport: auto")
    fits = (transport for transport, reason in wrong.items() if not reason)
    chosen = next(fits) if asked == "auto" else asked
    if sync.checksum and chosen in ("nccl", "ipc"):
        warnings.warn(
            f"sync.checksum has no effect where weights travel by {chosen}; leave it out, or set "
            "sync.transport: tcp",
            stacklevel=2,
        )
    return chosen


def ways(
    chosen: Transport, sync: SyncConfig, learner: Seat, engines: Sequence[Seat]
) -> list[Transport]:
    """How each of these engines gets its weights in a stage of the `chosen` transport, wherever
    they and learner rank 0 have come to sit since: beside it by shared memory, else by TCP.

    Raises:
        ValueError: shared memory alone was asked for, and it does not reach them.
    """
    if chosen in ("nccl", "ipc"):
        return [chosen] * len(engines)
    if sync.transport == "shm" and (reason := _not_shm([learner], engines)):
        raise ValueError(f"sync.transport=shm: {reason}; or set sync.transport: auto")
    near = sync.transport != "tcp"
    return ["shm" if near and seat.node == learner.node else "tcp" for seat in engines]


def names(
    engines: Sequence[Seat], learner: Seat, numbers: Sequence[int] | None = None
) -> list[str]:
    """What to call every reader, engine by engine, and where it is if not on the learner's node;
    `numbers` are the engines', if not from 0 on."""
    return [
        f"engine {i}"
        + (f" (process {rank})" if seat.readers > 1 else "")
        + (f" on {seat.address or seat.node}" if seat.node != learner.node else "")
        for i, seat in zip(numbers or range(len(engines)), engines, strict=True)
        for rank in range(seat.readers)
    ]


def _not_shm(learners: Sequence[Seat], engines: Sequence[Seat]) -> str:
    away = [i for i, seat in enumerate(engines) if seat.node != learners[0].node]
    if not away:
        return ""
    return (
        f"engines {away} sit on another node than learner rank 0, and shared memory is one "
        "host's; use sync.transport: tcp, or lower rollout.workers until they fit beside it"
    )


def _not_nccl(engine: str, learners: Sequence[Seat], engines: Sequence[Seat]) -> str:
    if reason := _not_vllm_on_gpus(engine, learners, engines):
        return reason
    taken = [place for seat in (learners[0], *engines) for place in seat.places()]
    twice = sorted({gpu for node, gpu in taken if taken.count((node, gpu)) > 1})
    if twice:
        return f"GPU {', '.join(twice)} is shared, and NCCL wants one process a GPU; add GPUs"
    return ""


def _not_ipc(engine: str, learners: Sequence[Seat], engines: Sequence[Seat]) -> str:
    if reason := _not_vllm_on_gpus(engine, learners, engines) or _not_shm(learners, engines):
        return reason
    ours = {place for seat in learners for place in seat.places()}
    alone = [i for i, seat in enumerate(engines) if not ours.issuperset(seat.places())]
    if alone:
        return f"engines {alone} share no GPU with a learner rank; use sync.transport: shm or nccl"
    return ""


def _not_vllm_on_gpus(engine: str, learners: Sequence[Seat], engines: Sequence[Seat]) -> str:
    if engine != "vllm":
        return f"only rollout.engine: vllm can, and this is {engine}; use vllm"
    if not all(seat.gpus for seat in (*learners, *engines)):
        return "it needs a GPU for every learner rank and engine; run where there are GPUs"
    return ""
