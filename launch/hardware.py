"""What a plan is made for: this machine as it is now, or a cluster that somebody describes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from launch import doctor
from launch.placement import Cluster

UNITS = {"": 10**9, "GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20}


@dataclass(frozen=True, slots=True)
class Hardware:
    """Nodes, their GPUs and the memory of each."""

    cluster: Cluster
    gpu_bytes: float | None = None
    """Of one GPU; None: none, or unknown."""
    host_bytes: float | None = None
    """Of one node, where processes run on its CPU; None: unknown."""
    here: bool = False
    """It is this machine: what is installed and visible here counts."""


def this_machine() -> Hardware:
    """What `nvidia-smi` shows; without a GPU the memory that this process may use."""
    found = doctor.gpus()
    sizes = [float(m[1]) * 2**20 for line in found if (m := re.search(r"([\d.]+) MiB", line))]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Hardware(
        Cluster((len(found),)),
        gpu_bytes=min(sizes, default=None),
        host_bytes=min(float(pages), doctor.cgroup("memory.max")),
        here=True,
    )


def described(nodes: int | None, gpus: int | None, memory: float | None) -> Hardware:
    """The cluster of `--nodes --gpus-per-node --gpu-memory`; without any of them, this machine.

    Raises:
        ValueError: nodes or memory without saying how many GPUs a node has.
    """
    if nodes is None and gpus is None and memory is None:
        return this_machine()
    if gpus is None:
        raise ValueError(
            "--nodes and --gpu-memory describe a cluster: say --gpus-per-node as well (0: none)"
        )
    if gpus and memory is None:
        raise ValueError("--gpus-per-node without --gpu-memory: say e.g. --gpu-memory 80GB")
    return Hardware(Cluster((gpus,) * (nodes or 1)), gpu_bytes=memory if gpus else None)


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
