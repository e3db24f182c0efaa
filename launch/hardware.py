"""What there is to run on: nodes, their GPUs, CPUs and memory.

This machine as it is now, a cluster that somebody describes, or the one that Ray found.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch import doctor

UNITS = {"": 10**9, "GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20}
NODE = re.compile(r"(?:(\d+)x)?(\d+)x(?:([A-Za-z][\w-]*?)-)?(\d[\d.]*[A-Za-z]*)")
KIND = "accelerator_type:"
"""Before the kind of a node's GPUs, in Ray's names for resources; there is 1 on each node."""
TOLD = 6
"""Sorts of nodes that a line tells of."""


@dataclass(frozen=True, slots=True)
class Node:
    """One machine."""

    gpus: int = 0
    kind: str | None = None
    """Of its GPUs, as Ray names them (H100); None: nobody says."""
    cpus: float = math.inf
    """Ray's logical CPUs; a Ray of our own counts as many as are asked for."""
    gpu_bytes: float | None = None
    """Memory of one GPU; None: none, or unknown."""
    host_bytes: float | None = None
    """Memory of its processes on the CPU; None: unknown."""
    name: str = ""
    id: str = ""
    """Ray's."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is to place on; the driver is on the first node."""

    nodes: tuple[Node, ...] = (Node(),)

    @classmethod
    def of(cls, *gpus: int) -> Cluster:
        """Nodes of so many GPUs each, of which nothing else is known."""
        return cls(tuple(Node(count) for count in gpus))

    @classmethod
    def of_ray(cls, nodes: Sequence[Mapping[str, Any]]) -> Cluster:
        """Those of `ray.nodes()` that are alive: its head, then by name."""
        found = []
        for node in (node for node in nodes if node["Alive"]):
            has, name = node["Resources"], node["NodeManagerHostname"]
            kinds = [key.removeprefix(KIND) for key in sorted(has) if key.startswith(KIND)]
            one = Node(
                gpus=int(has.get("GPU", 0)),
                kind=kinds[0] if kinds and has.get("GPU") else None,
                cpus=has.get("CPU", 0.0),
                host_bytes=has.get("memory"),
                name=name,
                id=node["NodeID"],
            )
            found.append(("node:__internal_head__" not in has, name, one.id, one))
        return cls(tuple(one for *_, one in sorted(found, key=lambda entry: entry[:3])))

    @property
    def gpus(self) -> tuple[int, ...]:
        return tuple(node.gpus for node in self.nodes)

    @property
    def total(self) -> int:
        return sum(self.gpus)

    def told(self, what: Callable[[int], str]) -> str:
        """'node 0 has 2, node 1-3 has 8': `what` is there, nodes that are alike together."""
        alike: dict[str, list[int]] = {}
        for index in range(len(self.nodes)):
            alike.setdefault(what(index), []).append(index)
        said = [f"{self.named(some)} {text}" for text, some in alike.items()]
        return ", ".join(said[:TOLD] + ["..."] * (len(said) > TOLD))

    def named(self, some: Sequence[int]) -> str:
        name = self.nodes[some[0]].name if len(some) == 1 else ""
        return f"node {ranges(some)}" + (f" ({name})" if name else "")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a plan is made for."""

    cluster: Cluster
    here: bool = False
    """It is this machine: what is installed and visible here counts."""
    files: bool = False
    """Its nodes see this machine's files."""


def this_machine() -> Hardware:
    """What `nvidia-smi` shows; without a GPU the memory that this process may use."""
    found = doctor.gpus()
    sizes = [float(m[1]) * 2**20 for line in found if (m := re.search(r"([\d.]+) MiB", line))]
    kind = re.match(r"(?:NVIDIA |Tesla )*([A-Z]+\d+)\b", found[0]) if found else None
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    node = Node(
        len(found),
        kind=kind and kind[1],
        gpu_bytes=min(sizes, default=None),
        host_bytes=min(float(pages), doctor.cgroup("memory.max")),
    )
    return Hardware(Cluster((node,)), here=True)


def described(
    nodes: int | None, gpus: int | None, memory: float | None, more: Sequence[Node] = ()
) -> Hardware:
    """The cluster of `--nodes --gpus-per-node --gpu-memory`, and of `--node` those that are `more`;
    without any of them, this machine.

    Raises:
        ValueError: nodes or memory without saying how many GPUs a node has.
    """
    if nodes is None and gpus is None and memory is None:
        return Hardware(Cluster(tuple(more))) if more else this_machine()
    if gpus is None:
        raise ValueError(
            "--nodes and --gpu-memory describe a cluster: say --gpus-per-node as well (0: none)"
        )
    if gpus and memory is None:
        raise ValueError("--gpus-per-node without --gpu-memory: say e.g. --gpu-memory 80GB")
    alike = Node(gpus, gpu_bytes=memory if gpus else None)
    return Hardware(Cluster((alike,) * (nodes or 1) + tuple(more)))


def node(text: str) -> list[Node]:
    """'8xH100-80GB', '8x80GB', '2x8xH100-80GB' (two of them).

    Raises:
        ValueError: it says none.
    """
    found = NODE.fullmatch(text.strip())
    if found is None or not int(found[1] or 1) or not int(found[2]):
        raise ValueError(f"'{text}' is no node; write e.g. 8xH100-80GB, or 2x8xH100-80GB for two")
    one = Node(int(found[2]), kind=found[3], gpu_bytes=size(found[4]))
    return [one] * int(found[1] or 1)


def ranges(numbers: Sequence[int | None]) -> str:
    """0, 1, 2, 5 as '0-2, 5'."""
    out: list[list[int]] = []
    for number in numbers:
        assert number is not None
        if out and number == out[-1][-1] + 1:
            out[-1].append(number)
        else:
            out.append([number])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in out)


def size(text: str) -> float:
    """'80GB', '80', '79.6GiB' in bytes. GB are 10^9 bytes: a card sold as 80 GB has some more.

    Raises:
        ValueError: no size.
    """
    found = re.fullmatch(r"([\d.]+)\s*([KMG]?I?B?)", text.strip().upper())
    try:
        if found is None:
            raise KeyError
        value = float(found[1]) * UNITS[found[2]]
        if value > 0:
            return value
    except (KeyError, ValueError):
        pass
    raise ValueError(f"'{text}' is no size; write e.g. 80GB or 79.6GiB")
