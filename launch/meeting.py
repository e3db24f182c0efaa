"""Whether the nodes that will talk can: a tiny collective of one short-lived process on each.

It meets as learner ranks do (trainer/zero.py). Where it fails, each pair that cannot is looked for:
by plain connections first, then pair by pair as before, every node in one pair at a time.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil

from launch.answers import POLL_S, present
from launch.doctor import Check
from launch.nodes import Node
from trainer.ports import free_port

START_S = 120.0
"""What a process may take to start and import torch, from a slow disk too."""
MEET_S = 20.0
"""What they may take to meet and add up one number."""
REACH_S = 3.0
"""What a plain connection may take."""
AT_ONCE = 16
"""Connections that a process tries at once."""
SEARCH_S = 120.0
"""What is spent at most on finding pairs that cannot meet."""
NAME = "reachability"
NEED = "all nodes that will talk"


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one process of a meeting is."""

    host: str
    port: int
    """For the others to meet at, if it is the first."""
    door: int
    """A port that it listens at meanwhile."""
    backend: str
    networks: Mapping[str, str]
    """Addresses by interface."""

    def __str__(self) -> str:
        """'10.0.0.2 (eth0; also docker0 172.17.0.1)'."""
        mine = [name for name, address in self.networks.items() if address == self.host]
        rest = [f"{n} {a}" for n, a in self.networks.items() if a not in (self.host, "127.0.0.1")]
        also = [f"also {', '.join(rest)}"] if rest else []
        return f"{self.host} ({'; '.join([*(mine or ['no interface of it']), *also])})"

    @property
    def interface(self) -> str:
        names = (name for name, address in self.networks.items() if address == self.host)
        return next(names, "<the interface that the others reach>")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a process answered, or why it did not."""

    value: Any = None
    failure: str = ""
    silent: bool = False
    """It is the process that is gone or hangs: nothing was said."""
    at: float = 0.0
    """When it came."""

    def __str__(self) -> str:
        return self.failure


class Guest:
    """One process of a meeting: a Ray actor."""

    def arrive(self) -> Spot:
        import ray
        import torch

        backend = "nccl" if torch.cuda.is_available() else "gloo"
        host = ray.util.get_node_ip_address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._door = socket.create_server((host, 0), family=family)
        threading.Thread(target=self._open, daemon=True).start()
        found = {
            name: address.address
            for name, addresses in psutil.net_if_addrs().items()
            for address in addresses
            if address.family == family
        }
        return Spot(host, free_port(), self._door.getsockname()[1], backend, found)

    def _open(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._door.accept()[0].close()

    def meet(self, rank: int, of: int, host: str, port: int, backend: str, patience: float) -> None:
        """Collective.

        Raises:
            RuntimeError: they did not meet.
        """
        import torch

        from trainer import zero

        within = timedelta(seconds=patience)
        store = zero.meet(rank, of, host, port, within)
        torch.distributed.init_process_group(
            backend, timeout=within, world_size=of, rank=rank, store=store
        )
        one = torch.ones(1, device="cuda" if backend == "nccl" else "cpu")
        torch.distributed.all_reduce(one)
        assert one.item() == of, f"{one.item()} of {of}"
        torch.distributed.destroy_process_group()

    def reach(self, spots: Sequence[Spot]) -> list[str]:
        """Why no connection to the door of each can be made; '': it can."""

        def tried(spot: Spot) -> str:
            try:
                socket.create_connection((spot.host, spot.door), REACH_S).close()
            except OSError as error:
                return error.strerror or str(error)
            return ""

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(tried, spots))


def meet(
    nodes: Sequence[Node],
    made: Callable[[Node], type] = lambda _: Guest,
    start: float = START_S,
    patience: float = MEET_S,
) -> list[Check]:
    """Let all meet, and find out who cannot.

    Args:
        made: the class of a node's process.
        start: seconds until it has to be there.
        patience: seconds in which they have to meet.
    """
    with _guests(nodes, made, start) as (spots, actors, absent):
        came = [node for node in nodes if node.id in spots]
        if len(came) < 2:
            return absent
        began = time.monotonic()
        failed = _collective(came, spots, actors, patience)
        if not failed:
            found = f"{len(came)} met by {_backend(spots)} in {time.monotonic() - began:.1f} s"
            return absent or [Check("ok", NAME, found, NEED)]
        lost = [node for node in came if (one := failed.get(node.id)) and one.silent]
        if 0 < len(lost) < len(came):
            return absent + [_lost(node, failed[node.id]) for node in lost]
        if apart := list(_unreached(came, spots, actors)):
            return absent + apart
    if apart := _pairs_apart(came, made, start, patience):
        return absent + apart
    where, why = ", ".join(node.name for node in came), next(iter(failed.values()))
    fix = "see the logs of Ray's workers on these nodes"
    return [*absent, Check("FAIL", NAME, f"did not meet: {why}", NEED, fix, where)]


@contextlib.contextmanager
def _guests(
    nodes: Sequence[Node], made: Callable[[Node], type], start: float
) -> Iterator[tuple[dict[str, Spot], dict[str, Any], list[Check]]]:
    """Where those are that came, their actors, and those that did not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actors: dict[str, Any] = {}
    try:
        for node in nodes:
            actors[node.id] = (
                ray.remote(made(node))
                .options(
                    num_cpus=0,
                    num_gpus=0.01 if node.gpus else 0,
                    max_restarts=0,
                    max_concurrency=2,  # one that waits for others can still tell whom it reaches
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
                    runtime_env={"env_vars": _variables(node)},
                )
                .remote()
            )
        asked = {node.id: actors[node.id].arrive.remote() for node in nodes}
        came = answers(asked, start)
        spots = {key: one.value for key, one in came.items() if one.value is not None}
        absent = [_lost(node, came[node.id]) for node in nodes if node.id not in spots]
        yield spots, actors, absent
    finally:
        for actor in actors.values():
            with contextlib.suppress(Exception):  # gone with its node
                ray.kill(actor)


def _variables(node: Node) -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", **({} if node.gpus else {"CUDA_VISIBLE_DEVICES": ""})}


def _lost(node: Node, answer: Answer) -> Check:
    fix = "see the logs of Ray's workers there"
    if node.gpus:
        fix += ", and whether a GPU there is free (ray status)"
    return Check("FAIL", NAME, f"its process {answer}", NEED, fix, node.name)


def _collective(
    came: Sequence[Node], spots: Mapping[str, Spot], actors: Mapping[str, Any], patience: float
) -> dict[str, Answer]:
    """Whose part in it failed, and how."""
    first, backend = spots[came[0].id], _backend(spots)
    told = (first.host, first.port, backend, patience)
    asked = {
        node.id: actors[node.id].meet.remote(rank, len(came), *told)
        for rank, node in enumerate(came)
    }
    found = answers(asked, 2 * patience)  # to find the first, and then each other
    return {key: one for key, one in found.items() if one.failure}


def _backend(spots: Mapping[str, Spot]) -> str:
    return "nccl" if all(spot.backend == "nccl" for spot in spots.values()) else "gloo"


def _unreached(
    came: Sequence[Node], spots: Mapping[str, Spot], actors: Mapping[str, Any]
) -> Iterator[Check]:
    """Pairs between which no plain connection can be made."""
    everyone = [spots[node.id] for node in came]
    asked = {node.id: actors[node.id].reach.remote(everyone) for node in came}
    found = answers(asked, REACH_S * (2 + len(came) / AT_ONCE))
    fix = "open all ports between them, or start Ray there with a --node-ip-address they reach"
    for one in came:
        for other, why in zip(came, found[one.id].value or (), strict=False):
            if why and other is not one:
                said = f"cannot connect to {other.name} at {spots[other.id]}: {why}"
                yield Check("FAIL", NAME, said, NEED, fix, one.name)


def _pairs_apart(
    came: Sequence[Node], made: Callable[[Node], type], start: float, patience: float
) -> list[Check]:
    """Pairs that can connect, but not meet: most often the wrong interface is taken."""
    until = time.monotonic() + SEARCH_S

    def tried(pair: tuple[int, int]) -> list[Check]:
        return _pair([came[i] for i in pair], made, start, patience)

    for pairs in rounds(len(came)):
        with ThreadPoolExecutor(len(pairs)) as pool:
            found = [check for checks in pool.map(tried, pairs) for check in checks]
        if found or time.monotonic() > until:
            return found
    return []


def _pair(
    both: Sequence[Node], made: Callable[[Node], type], start: float, patience: float
) -> list[Check]:
    with _guests(both, made, start) as (spots, actors, absent):
        failed = {} if absent else _collective(both, spots, actors, patience)
        if not failed:
            return absent
    (one, here), (other, there) = ((node, spots[node.id]) for node in both)
    why, variable = next(iter(failed.values())), f"{_backend(spots).upper()}_SOCKET_IFNAME"
    found = f"at {here} and {other.name} at {there} do not meet: {why}"
    where = f"{variable}={here.interface} on both"
    if there.interface != here.interface:
        where = f"{variable}={here.interface} on the one, {there.interface} on the other"
    fix = f"before Ray starts there, export {where}"
    return [Check("FAIL", NAME, found, NEED, fix, one.name)]


def rounds(n: int) -> Iterator[list[tuple[int, int]]]:
    """All pairs of `n`, in rounds in which nobody is in two: a tournament."""
    seats = [*range(n), *([-1] if n % 2 else [])]  # -1 sits out
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = zip(seats[:half], reversed(seats[half:]), strict=True)
        yield [(min(pair), max(pair)) for pair in pairs if -1 not in pair]
        seats = [seats[0], seats[-1], *seats[1:-1]]


def answers(asked: Mapping[str, Any], deadline: float) -> dict[str, Answer]:
    """Of Ray tasks, by their keys: all of them, as one's silence may be of another's making."""
    import ray

    keys = {ref: key for key, ref in asked.items()}
    out: dict[str, Answer] = {}
    pending, until = list(keys), time.monotonic() + deadline
    while pending and (left := until - time.monotonic()) > 0:
        done, pending = ray.wait(pending, num_returns=1, timeout=min(POLL_S, left))
        if not done:
            present()
        out |= {keys[ref]: _answer(ref) for ref in done}
    silent = Answer(failure=f"did not answer within {deadline:g} s", silent=True)
    return {key: out.get(key, silent) for key in asked}


def _answer(ref: Any) -> Answer:
    import ray

    try:
        return Answer(ray.get(ref), at=time.time())
    except ray.exceptions.RayTaskError as error:
        return Answer(failure=f"failed: {_short(str(error).strip().splitlines()[-1])}")
    except ray.exceptions.RayError as error:
        return Answer(failure=f"died: {_short(str(error))}", silent=True)


def _short(text: str) -> str:
    return " ".join(text.split())[:160]
