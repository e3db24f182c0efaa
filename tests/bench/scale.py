"""What the driver spends on a step of 1,000,000 rollouts with 1,000 engines, beside their tokens.

    python -m tests.bench.scale [--engines 10 100 1000] [--ways turns load flow] [--figure FILE]

Engines sleep instead of generating, many to a Ray actor, because an idle actor costs 125 MB. All
else is what a run uses: `launch.engines.Engines` with its dispatch, streams and heart, and behind
them the methods of `RolloutActor`, jobs and rollouts as columns. Each size is a process of its own.
Seconds are those of the driver's process, all of its threads; memory is what it alone holds, and
apart from that what it sees of the object store, where tokens lie.

Engines are silent until all is sent, and then done one by one for as long. A real step takes
`STEP_S`: for the rest of it the driver is charged with what it spends while it only waits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from launch import cluster, dispatch, engines
from launch.actors import RolloutActor
from launch.hardware import Cluster
from launch.placement import place
from launch.team import Team
from samplers.flow import Flow
from samplers.types import Answer, Job, Plan, Prompt, Rollout, Tokens
from trainer.config import load
from trainer.faults import FaultConfig

STEP_S = 600.0
"""Of 8k tokens at a real engine's rate."""
SHARE = 0.02
"""What of it the driver may spend."""
HOSTS, SLOTS, GROUP = 8, 512, 8
PROMPT_TOKENS, TOKENS = 32, 64
WAYS = ("turns", "load", "flow")
"""One list to each engine; calls to who has room; a lot for each group."""
HEADS = (
    "way", "engines", "rollouts", "send", "take", "waiting", "us a rollout", "of a step",
    "KB in flight", "KB made", "KB of tokens",
)  # fmt: skip


# Engines that sleep


@dataclass(eq=False)
class Nap:
    """A lot in a sleeping engine, as `samplers.rollout.Call` is one in a real one."""

    jobs: Sequence[Job]
    due: float
    ended: bool = False
    error: BaseException | None = None

    @property
    def value(self) -> list[Rollout]:
        return [_made(job) for job in self.jobs]


class Sleeper:
    """Stands for a `RolloutWorker`: a rollout is done `seconds` to twice that after it is asked."""

    def __init__(self, seconds: float) -> None:
        self.turn, self._seconds = threading.Condition(threading.RLock()), seconds
        self._naps = set[Nap]()

    def generate(self, jobs: Sequence[Job]) -> list[Rollout]:
        nap = self.submit(jobs)
        self.until(lambda: nap.ended)
        return nap.value

    def submit(self, jobs: Sequence[Job]) -> Nap:
        share = max(job.seed % 997 for job in jobs) / 997
        nap = Nap(jobs, time.monotonic() + self._seconds * (1 + share))
        with self.turn:
            self._naps.add(nap)
        return nap

    def until(self, done: Callable[[], bool]) -> None:
        with self.turn:
            self._wake()
            while not done():
                due = min((nap.due for nap in self._naps), default=math.inf)
                self.turn.wait(max(due - time.monotonic(), 0.0) if self._naps else None)
                self._wake()

    def _wake(self) -> None:
        now = time.monotonic()
        for nap in [nap for nap in self._naps if nap.due <= now]:
            nap.ended = True
            self._naps.remove(nap)
            self.turn.notify_all()

    def cancel(self, naps: Iterable[Nap]) -> None:
        for nap in naps:
            nap.due = 0.0
        self.turn.notify_all()

    def flow(self) -> Flow:
        return Flow(self)  # type: ignore[arg-type]

    @property
    def busy(self) -> bool:
        return bool(self._naps)

    @property
    def beats(self) -> int:
        return time.monotonic_ns()


_IDS = np.arange(TOKENS, dtype=np.int32)
_LOGPROBS = np.zeros(TOKENS, np.float32)
_HALF = TOKENS // 2


def _made(job: Job) -> Rollout:
    first = Tokens(_IDS[:_HALF], _LOGPROBS[:_HALF], "stop", ((0, 1),))
    last = Tokens(_IDS[_HALF:], _LOGPROBS[_HALF:], "stop", ((0, 1),))
    answers = ((Answer(_HALF, last, "the answer is 1"),),)
    head = (job.prompt.index, job.group, job.index, job.seed, job.plan)
    return Rollout(*head, _IDS[:PROMPT_TOKENS], first, True, answers)


class Host:
    """Actors of many engines in one process: the first argument of a call says whose it is."""

    def __init__(self, count: int, seconds: float) -> None:
        sys.setswitchinterval(1.0)  # hundreds of threads end together: one after the other
        self._actors = [RolloutActor() for _ in range(count)]
        for actor in self._actors:
            actor.worker, actor.flows = Sleeper(seconds), {}  # type: ignore[assignment]

    def process(self) -> int:
        return os.getpid()

    def rollout(self, engine: int, *args: Any) -> Any:
        return self._actors[engine].rollout(*args)

    def stream(self, engine: int, flow: int) -> Any:
        yield from self._actors[engine].stream(flow)

    def add(self, engine: int, *args: Any) -> None:
        self._actors[engine].add(*args)

    def end(self, engine: int, flow: int) -> None:
        self._actors[engine].end(flow)

    def pulse(self, engine: int) -> int | None:
        return self._actors[engine].pulse()


class Hosted(Team):
    """Engines that share actors."""

    def __init__(self, size: Size, *args: Any, **options: Any) -> None:
        self._many = -(-size.engines // HOSTS)
        many = self._many
        role, _, placement = args
        options["concurrency_groups"] = {
            "rollout": many * (dispatch.SHARE + 1), "flow": 1, "abort": 1, "pulse": 1,
        }  # fmt: skip
        # responses here are short: they lie in the object store as long ones do
        options["runtime_env"] = {"env_vars": {"RAY_max_direct_call_object_size": "0"}}

        class Mine(Host):
            def __init__(self) -> None:
                super().__init__(many, size.seconds)

        super().__init__(role, Mine, placement, **options)
        self.lives = [0] * size.engines
        self.sent = 0.0
        """When something was last asked for."""

    def __len__(self) -> int:
        return len(self.lives)

    def ask(self, index: int, method: str, *args: Any, group: str | None = None) -> Any:
        actor = self.actors[index // self._many]
        call = getattr(actor, method)
        ref = (call.options(concurrency_group=group) if group else call).remote(
            index % self._many, *args
        )
        if method in ("rollout", "add"):
            self.sent = time.monotonic()
        return {ref: self.who(index)}

    def kill(self, index: int) -> None:
        if index < len(self.actors):
            super().kill(index)


# What is measured


@dataclass(frozen=True)
class Size:
    engines: int
    each: int
    """Rollouts of an engine."""
    way: str
    seconds: float
    """Until the first is done."""

    @property
    def rollouts(self) -> int:
        return self.engines * self.each


def jobs_of(size: Size) -> list[Job]:
    """Groups of a prompt with a plan of their own, as a budget policy gives them."""
    out: list[Job] = []
    for group in range(size.rollouts // GROUP):
        text = f"{group}: what is {'1 + ' * 60}1?"
        prompt = Prompt(group, str(group), ({"role": "user", "content": text},), text, "1", "exact")
        plan = Plan(8192)
        out += [Job(prompt, plan, group, i, hash((group, i)) % 2**64) for i in range(GROUP)]
    return out


@dataclass(frozen=True)
class Moment:
    at: float
    cpu: float
    own: int
    """Bytes that this process alone holds."""
    store: int
    """Bytes of the object store that it has seen."""


def moment() -> Moment:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, store = (int(fields[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))
    return Moment(time.monotonic(), time.process_time(), own, store)


@dataclass
class Watcher:
    """A thread that looks at this process every half second."""

    seen: list[Moment] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watcher:
        self.seen.append(moment())
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self.seen.append(moment())

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()
        self.seen.append(moment())

    def last(self, before: float) -> Moment:
        return [m for m in self.seen if m.at <= before][-1]

    def first(self, after: float) -> Moment:
        return next(m for m in self.seen if m.at >= after)


def measure(size: Size) -> dict[str, float]:
    """One step: seconds of the driver and bytes, by rollout."""
    import ray

    settings = (f"rollout.workers={HOSTS}", f"rollout.engine.slots={SLOTS}", "evaluation=null")
    (stage,) = load("grpo/find", settings).stages
    store = 2**28 + size.rollouts * (TOKENS * 8 + PROMPT_TOKENS * 4 + 512)
    with (
        patch.object(cluster, "STORE_BYTES", store),
        patch.object(engines, "Team", lambda *args, **options: Hosted(size, *args, **options)),
        cluster.cluster(cpus=2 * HOSTS),
    ):
        placement = place(stage, Cluster.of_ray(ray.nodes()))
        nothing = (lambda _: None, lambda _: None, threading.RLock())
        there = engines.Engines(stage, "", placement, FaultConfig(), *nothing)
        team: Any = there.team
        ray.get([actor.process.remote() for actor in team.actors])
        before = moment()
        jobs = jobs_of(size)
        with Watcher() as watcher:
            began = time.monotonic()
            made = _go(there, size, jobs)
        assert [(r.group, r.index) for r in made] == [(j.group, j.index) for j in jobs]
        there.close()
    start, end = watcher.seen[0], watcher.seen[-1]
    sent = watcher.first(team.sent)
    idle = watcher.last(began + size.seconds)
    waits = (idle.cpu - sent.cpu) / (idle.at - sent.at) if idle.at - sent.at > 1 else float("nan")
    n = size.rollouts
    return {
        "jobs": (start.own - before.own) / n,
        "send": (sent.cpu - start.cpu) / n,
        "take": (end.cpu - sent.cpu) / n,
        "waits": waits,
        "waiting": waits * (STEP_S - (end.at - began)) / n,
        "flight": (sent.own - before.own) / n,
        "made": (end.own - before.own) / n,
        "tokens": (end.store - before.store) / n,
        "seconds": end.at - began,
    }


def _go(there: engines.Engines, size: Size, jobs: list[Job]) -> list[Rollout]:
    match size.way:
        case "turns":
            return there.rollout(jobs)
        case "load":
            return there.dispatch.run(jobs)
    lots: dict[int, list[Rollout]] = {}
    with there.flow(lambda: None) as flow:
        for first in range(0, len(jobs), GROUP):
            flow.add(jobs[first : first + GROUP])
        while len(flow):
            lots |= {lot[0].group: lot for lot in flow.take()}
    return [rollout for group in sorted(lots) for rollout in lots[group]]


# All sizes


def row(size: Size, found: dict[str, float]) -> str:
    total = found["send"] + found["take"] + found["waiting"]
    cells = [size.way, f"{size.engines:,}", f"{size.rollouts:,}"]
    cells += [f"{1e6 * found[name]:.1f}" for name in ("send", "take", "waiting")]
    cells += [f"{1e6 * total:.1f}", f"{total * size.rollouts / STEP_S:.2%}"]
    cells += [f"{found[name] / 1000:.2f}" for name in ("flight", "made", "tokens")]
    return f"| {' | '.join(cells)} |"


def alone(size: Size) -> dict[str, float]:
    """Measure it in a process of its own."""
    one = f"{size.engines},{size.each},{size.way},{size.seconds}"
    command = [sys.executable, "-m", "tests.bench.scale", "--one", one]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\nfailed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def plot(found: dict[tuple[str, int], float], file: Path) -> None:
    """Driver seconds per 1,000 rollouts, by engines."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for way in dict.fromkeys(way for way, _ in found):
        mine = {count: seconds for (w, count), seconds in found.items() if w == way}
        axes.plot(list(mine), [1e3 * s for s in mine.values()], "o-", label=way)
    axes.axhline(STEP_S * SHARE / 1e3, color="grey", ls="--", label="2% of a step of 1,000,000")
    axes.set(xscale="log", yscale="log", xlabel="engines", ylabel="driver s per 1,000 rollouts")
    axes.legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--each", type=int, default=1000, help="rollouts of an engine")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        count, each, way, seconds = given.one.split(",")
        print(json.dumps(measure(Size(int(count), int(each), way, float(seconds)))))
        return
    print(f"| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}", flush=True)
    totals: dict[tuple[str, int], float] = {}
    for way in given.ways:
        for count in given.engines:
            size = Size(count, given.each, way, 10 + count * given.each * 40e-6)
            found = alone(size)
            totals[way, count] = found["send"] + found["take"] + found["waiting"]
            print(row(size, found), flush=True)
    if given.figure:
        plot(totals, given.figure)


if __name__ == "__main__":
    main()
