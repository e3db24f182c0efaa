"""What every node of a Slurm allocation runs: Ray, until it is told to end, and nothing left of it.

    python -m launch.slurmnode --head --nodes 2 --ports 20000-32767
    python -m launch.slurmnode --address HEAD:PORT --ports 20000-32767

A preempted job's SIGTERM goes to all of its processes: Ray does not hear it, the driver needs it
for its checkpoint. SIGUSR1 ends this node. `ray stop` would end the Rays of other jobs as well, and
so would `ray symmetric-run`.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import psutil

from launch import cluster

BLOCK = 10
"""Ports of a node: one that says whose the block is, and Ray's."""
RAY = (
    "port",
    "node-manager-port",
    "object-manager-port",
    "runtime-env-agent-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "metrics-export-port",
    "dashboard-port",
    "ray-client-server-port",
)
"""As `ray start` names them, in the order of the block. The rest of what listens is workers."""
HEAD = {"port", "dashboard-port", "ray-client-server-port"}
"""Those that only the head takes."""
AT, HERE = "laconic: ray at ", "laconic: all nodes are here"
"""What the script looks for in the head's log."""
DEAF = {signal.SIGTERM, signal.SIGHUP}
STORE, MOST_STORE, LEAST_STORE = 0.3, 200 * 10**9, 100 * 2**20
"""Part of the job's memory for the object store, as Ray takes it of the machine's; at most; at
least."""
POLL_S = 0.5


def blocks(low: int, high: int, job: int) -> list[int]:
    """First ports of the blocks in low..high, in the order that `job` tries them: jobs with
    numbers close to each other begin at different ones."""
    starts = list(range(low, high - BLOCK + 2, BLOCK))
    at = job % len(starts)
    return starts[at:] + starts[:at]


@contextlib.contextmanager
def block(low: int, high: int, job: int) -> Iterator[int]:
    """A free block, and nobody else's while this lasts: its first port is the lock on it, which the
    kernel opens when this process ends.

    Raises:
        ValueError: there is none.
    """
    for first in blocks(low, high, job):
        with contextlib.ExitStack() as stack:
            try:
                _bound(stack, first)
                with contextlib.ExitStack() as rest:
                    for port in range(first + 1, first + BLOCK):
                        _bound(rest, port)
            except OSError:
                continue
            yield first
            return
    raise ValueError(f"ports: {low}-{high} has no {BLOCK} free ports in a row on {_name()}")


def _bound(stack: contextlib.ExitStack, port: int) -> None:
    """Without SO_REUSEADDR: what another has on any address of this machine is taken."""
    stack.enter_context(socket.socket()).bind(("", port))


def address(interface: str | None, toward: str | None = None) -> str:
    """What others reach this node by: that of `interface`; or what it reaches the host `toward`
    from; or what its name means, where that is its own.

    Raises:
        ValueError: no such interface.
    """
    own = {name: [a.address for a in all_] for name, all_ in psutil.net_if_addrs().items()}
    if interface is not None:
        if found := first(own.get(interface, ()), loopback=True):
            return found
        raise ValueError(
            f"interface: {_name()} has no '{interface}' with an address; there are "
            f"{', '.join(sorted(own))}"
        )
    if toward is not None:
        return _source(toward) or toward
    mine = {plain(text) for all_ in own.values() for text in all_}
    named = [text for name in (_name(), socket.gethostname()) for text in _resolved(name)]
    for some in ([text for text in named if text in mine], [_source("203.0.113.1")], sorted(mine)):
        if found := first(some):
            return found
    return "127.0.0.1"


def first(texts: Iterable[str], loopback: bool = False) -> str:
    """The one to use of some addresses: the old kind before the new, none that ends at a link."""
    good = []
    for text in map(plain, texts):
        with contextlib.suppress(ValueError):  # a hardware address
            one = ipaddress.ip_address(text)
            if not one.is_link_local and (loopback or not one.is_loopback):
                good.append((one.version, text))
    return min(good, key=lambda pair: pair[0])[1] if good else ""


def plain(text: str) -> str:
    """Without the interface that the new kind may end with."""
    return text.partition("%")[0]


def _resolved(name: str) -> list[str]:
    with contextlib.suppress(OSError):
        return list(dict.fromkeys(str(one[4][0]) for one in socket.getaddrinfo(name, None)))
    return []


def _source(host: str) -> str:
    """Nothing is sent: the kernel says which way it would go."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
    return ""


def _name() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def amounts(env: Mapping[str, str], gpus: int, memory: int, cores: int, shm: int) -> dict[str, int]:
    """What the allocation gives this node, as `ray start` takes it.

    Args:
        env: of a Slurm step.
        gpus: what the site file asked for.
        memory: of the job here, in bytes; 0: as much as there is.
        cores: that this process may use.
        shm: bytes that are free in /dev/shm.

    Raises:
        ValueError: fewer GPUs than that.
    """
    visible = env.get("CUDA_VISIBLE_DEVICES")
    count = env.get("SLURM_GPUS_ON_NODE", "")
    if not count.isdigit():
        count = str(len([d for d in visible.split(",") if d]) if visible is not None else gpus)
    if int(count) < gpus:
        raise ValueError(f"{_name()} gives {count} GPUs, the site file says gpus_per_node={gpus}")
    text = env.get("SLURM_CPUS_ON_NODE", "")
    out = {"num-cpus": int(text) if text.isdigit() else cores, "num-gpus": int(count)}
    if memory:  # Ray itself sees only the machine's
        store = min(int(STORE * memory), int(0.9 * shm), MOST_STORE)
        out["object-store-memory"] = max(store, LEAST_STORE)
    return out


def command(args: argparse.Namespace, base: int, host: str, folder: Path) -> list[str]:
    """`ray start` for this node, whose block begins at `base`."""
    words = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block"]
    words += ["--log-color=false"]
    words += ["--head"] if args.head else [f"--address={args.address}"]
    words += [f"--node-ip-address={host}", f"--temp-dir={folder}", "--disable-usage-stats"]
    ports = {name: base + 1 + index for index, name in enumerate(RAY)}
    if args.head:
        words += [f"--include-dashboard={args.dashboard}", "--dashboard-host=127.0.0.1"]
    words += [f"--{name}={port}" for name, port in ports.items() if args.head or name not in HEAD]
    if args.worker_ports:
        low, high = span(args.worker_ports)
        words += [f"--min-worker-port={low}", f"--max-worker-port={high}"]
    shm = shutil.disk_usage("/dev/shm").free
    memory = int(args.memory) * 2**20 if args.memory.isdigit() else 0
    have = amounts(os.environ, args.gpus, memory, len(os.sched_getaffinity(0)), shm)
    return [*words, *(f"--{name}={amount}" for name, amount in have.items())]


def span(text: str) -> tuple[int, int]:
    """'20000-32767'."""
    low, _, high = text.partition("-")
    return int(low), int(high)


def environment(folder: Path, interface: str | None) -> dict[str, str]:
    """Of Ray and all that it starts: as in `launch/cluster.py`; and collectives take the same way
    as Ray where the site says which."""
    out = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    out[cluster.MARK] = str(folder)
    defaults = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if interface:
        defaults |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return defaults | out


def serve(args: argparse.Namespace) -> int:
    """Run this node to its end.

    Raises:
        ValueError: the machine is not what the site file says.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    low, high = span(args.ports)
    toward = args.address.rpartition(":")[0].strip("[]") if args.address else None
    host = address(args.interface, toward)
    job = int(os.environ.get("SLURM_JOB_ID", "0"))
    with block(low, high, job) as base, cluster.swept() as folder:
        words = command(args, base, host, folder)
        print(f"{_name()}: {' '.join(words[3:])}", flush=True)
        child = subprocess.Popen(
            words,
            env=environment(folder, args.interface),
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, DEAF),
        )
        watch = _joining(host, base + 1, args.nodes) if args.head else iter(())
        while child.poll() is None:
            next(watch, None)
            if signal.sigtimedwait({signal.SIGUSR1}, POLL_S):
                return 0
        print(f"{_name()}: Ray ended by itself\n{_said(folder)}", flush=True)
        return child.returncode or 1


def _joining(host: str, port: int, nodes: int) -> Iterator[None]:
    """Says where Ray is, and how many nodes have come; asked now and then until all have."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.connect((host, port))
            break
        yield
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    print(f"{AT}{where}", flush=True)
    said = 0
    while said < nodes:
        yield
        if (now := _alive(where)) != said:
            said = now
            print(f"laconic: {now} of {nodes} nodes are here", flush=True)
    print(HERE, flush=True)


def _alive(where: str) -> int:
    """Nodes in the Ray at `where`."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    with contextlib.suppress(Exception):  # of no class of its own; Ray may be about to end
        nodes = GcsClient(address=where).get_all_node_info(timeout=10).values()
        return [node.state for node in nodes].count(0)  # GcsNodeInfo.ALIVE
    return 0


def _said(folder: Path) -> str:
    """The last lines of what Ray's servers wrote: the folder goes."""
    lines = []
    for name in ("gcs_server.err", "gcs_server.out", "raylet.err", "raylet.out"):
        with contextlib.suppress(OSError):
            text = (folder / "session_latest" / "logs" / name).read_text(errors="replace")
            lines += [f"{name}: {line}" for line in text.splitlines()[-5:]]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slurmnode", description=__doc__, allow_abbrev=False)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--head", action="store_true", help="the first node")
    which.add_argument("--address", help="of the head")
    parser.add_argument("--nodes", type=int, default=1, help="that the head waits for")
    parser.add_argument("--ports", required=True, help="LOW-HIGH: a block of them is taken")
    parser.add_argument("--worker-ports", help="LOW-HIGH: for worker processes (any)")
    parser.add_argument("--interface", help="of the network that the nodes share")
    parser.add_argument("--temp", default="/tmp", help="a folder of this node; its path is short")
    parser.add_argument("--gpus", type=int, default=0, help="that this node should have")
    parser.add_argument(
        "--memory", default="0", help="of the job on this node, in MB, if Slurm says"
    )
    parser.add_argument("--dashboard", action="store_true", help="Ray's, on loopback")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    signal.pthread_sigmask(signal.SIG_BLOCK, DEAF | {signal.SIGUSR1})
    tempfile.tempdir = args.temp
    try:
        return serve(args)
    except (ValueError, OSError) as error:
        print(f"laconic: {error}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
