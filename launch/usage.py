"""How every node of a cluster is used, step by step.

W&B's own process sees the driver's node alone. Here a small actor on each node samples, and the
driver logs what they say with its own figures: one run, whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

GIB, MIB = 2**30, 2**20
EVERY_S = 5.0
"""Between two looks at the GPUs, of which a step's mean is told."""
ANSWER_S = 0.5
"""What a node may take to answer; one that is late says nothing of this step."""
QUERY = ["nvidia-smi", "--query-gpu=index,utilization.gpu,memory.used"]
QUERY += ["--format=csv,noheader,nounits"]


class Usage:
    """One node's figures since they were last asked for."""

    def __init__(self, gpus: int = 0) -> None:
        import psutil

        self._lock, self._looks = threading.Lock(), list[Mapping[str, float]]()
        self._traffic = psutil.net_io_counters()
        psutil.cpu_percent()  # the mean since this call is what the next one tells
        if gpus:
            threading.Thread(target=self._watch, name="gpus", daemon=True).start()

    def figures(self) -> dict[str, float]:
        """Processor in percent of all cores, memory in GiB, what came and went in MiB; of GPUs the
        mean of what was seen."""
        import psutil

        memory, traffic = psutil.virtual_memory(), psutil.net_io_counters()
        before, self._traffic = self._traffic, traffic
        with self._lock:
            looks, self._looks = self._looks, []
        return {
            "cpu_percent": psutil.cpu_percent(),
            "memory_gb": (memory.total - memory.available) / GIB,
            "received_mb": (traffic.bytes_recv - before.bytes_recv) / MIB,
            "sent_mb": (traffic.bytes_sent - before.bytes_sent) / MIB,
        } | mean(looks)

    def _watch(self) -> None:
        while True:
            time.sleep(EVERY_S)
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                done = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=True)
                with self._lock:
                    self._looks.append(seen(done.stdout))


class Nodes:
    """The nodes of a cluster that a run has joined; those that join later are heard, too."""

    def __init__(self) -> None:
        self._actors: dict[str, Any] = {}

    def figures(self) -> dict[str, float]:
        """`system/NODE/...` of every node that answers in time; nothing where there is but one."""
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        if len(alive) < 2:
            return {}
        self._know(alive)
        asked = {self._actors[node].figures.remote(): name for node, name in names(alive).items()}
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
        out: dict[str, float] = {}
        for ref in done:
            with contextlib.suppress(ray.exceptions.RayError):  # it is gone with its node
                out |= {f"system/{asked[ref]}/{k}": v for k, v in ray.get(ref).items()}
        return out

    def _know(self, alive: Sequence[Mapping[str, Any]]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in alive}
        self._actors = {node: actor for node, actor in self._actors.items() if node in here}
        for node in here.keys() - self._actors.keys():
            where = NodeAffinitySchedulingStrategy(node, soft=False)
            made = ray.remote(num_cpus=0)(Usage).options(scheduling_strategy=where)
            self._actors[node] = made.remote(here[node])

    def close(self) -> None:
        import ray

        for actor in self._actors.values():
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self._actors.clear()


def names(alive: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What to call each node, by its id: its host; with some of its id where a host has several."""
    hosts = Counter(node["NodeManagerHostname"] for node in alive)
    return {
        node["NodeID"]: host if hosts[host] == 1 else f"{host}-{node['NodeID'][:6]}"
        for node in alive
        for host in [node["NodeManagerHostname"]]
    }


def seen(table: str) -> dict[str, float]:
    """One look: lines of nvidia-smi's `index, percent, MiB`. What a card does not tell is left."""
    out: dict[str, float] = {}
    for line in table.splitlines():
        gpu, percent, used = (part.strip() for part in line.split(","))
        with contextlib.suppress(ValueError):
            out[f"gpu{gpu}/percent"] = float(percent)
        with contextlib.suppress(ValueError):
            out[f"gpu{gpu}/memory_gb"] = float(used) * MIB / GIB
    return out


def mean(looks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure over those that have it."""
    out: dict[str, list[float]] = {}
    for look in looks:
        for name, value in look.items():
            out.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in out.items()}
