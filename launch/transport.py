"""How weights travel from the learners to the engines: decided from where each of them sits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.sync import Transport


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a learner rank or an engine sits."""

    node: str
    gpus: tuple[str, ...] = ()
    """Ids on that node."""
    readers: int = 0
    """Processes of an engine that read weights."""

    def places(self) -> Iterator[tuple[str, str]]:
        return ((self.node, gpu) for gpu in self.gpus)


def choose(asked: str, engine: str, learners: Sequence[Seat], engines: Sequence[Seat]) -> Transport:
    """The transport of a stage; `asked` is `sync.transport`, `engine` the engines' name.

    Raises:
        ValueError: what was asked for cannot work here, or nothing can; with what to change.
    """
    wrong = {
        "ipc": _not_ipc(engine, learners, engines),
        "shm": _not_shm(learners, engines),
        "nccl": _not_nccl(engine, learners, engines),
    }
    if asked != "auto":
        if wrong[asked]:
            raise ValueError(f"sync.transport={asked}: {wrong[asked]}; or set sync.transport: auto")
        return asked  # type: ignore[return-value]
    for transport, reason in wrong.items():
        if not reason:
            return transport  # type: ignore[return-value]
    raise ValueError(f"sync: weights cannot reach the engines: {wrong['shm']}; or: {wrong['nccl']}")


def names(engines: Sequence[Seat], numbers: Sequence[int] | None = None) -> list[str]:
    """What to call every reader, engine by engine; `numbers` are theirs, if not from 0 on."""
    return [
        f"engine {i}" + (f" (process {rank})" if seat.readers > 1 else "")
        for i, seat in zip(numbers or range(len(engines)), engines, strict=True)
        for rank in range(seat.readers)
    ]


def _not_shm(learners: Sequence[Seat], engines: Sequence[Seat]) -> str:
    away = [i for i, seat in enumerate(engines) if seat.node != learners[0].node]
    if not away:
        return ""
    return (
        f"engines {away} sit on another node than learner rank 0, and shared memory is one "
        "host's; lower rollout.workers until they fit beside it"
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
