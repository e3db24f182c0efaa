"""Samples of a model, appended to a folder as they are made: a bounded number is under way.

What is there is not made again. A process that is killed loses what was under way and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from samplers import seeds
from samplers.flow import Flow
from samplers.render import Renderer
from samplers.types import Job, Rollout
from trainer import runfolder
from trainer.eval import budgets, samples
from trainer.eval.folder import Folder, open_folder, write
from trainer.eval.problems import Task, posed
from trainer.eval.samples import PROBLEMS, SAMPLES, SETTINGS, Key, Row
from trainer.eval.settings import EvalSettings, Way, difference

LOT = 4
"""Samples of a problem that come back together."""
ROUNDS = 4
"""Rollouts under way, in engines' slots: enough that none of these ever waits for work."""
Settings = Mapping[str, Any]


class Worker(Protocol):
    """`samplers.rollout.RolloutWorker`, or one that asks a server (`samplers.served`)."""

    renderer: Renderer

    def flow(self) -> Flow: ...


class Store:
    """A folder that is being filled: this process holds it. A context manager."""

    def __init__(self, path: Path, settings: Settings, tasks: Sequence[Task]) -> None:
        self.path, self.settings, self.tasks = path, dict(settings), tasks
        self.done: set[Key] = set()
        self._stack = ExitStack()

    @property
    def folder(self) -> Folder:
        return Folder(self.path, self.settings)

    def __enter__(self) -> Self:
        """Go on with what is there.

        Raises:
            ValueError: another process holds the folder, or it was made with other settings.
        """
        with ExitStack() as stack:
            stack.enter_context(runfolder.claim(self.path, "--out"))
            self._check()
            samples.mend(self.path / SAMPLES)
            self.done = {samples.key_of(row) for row in samples.read(self.path / SAMPLES)}
            self._describe()
            file = (self.path / SAMPLES).open("ab", buffering=0)
            self._out = stack.enter_context(file)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, rows: Sequence[Row]) -> None:
        """Append, in one write."""
        self._out.write("".join(map(samples.line, rows)).encode())
        self.done.update(map(samples.key_of, rows))

    def _check(self) -> None:
        file = self.path / SETTINGS
        if not file.is_file():
            if (self.path / SAMPLES).exists():
                raise ValueError(f"--out: {self.path} holds samples and no {SETTINGS}; remove it")
            return
        there = open_folder(self.path).settings["identity"]
        changed = difference(there, self.settings["identity"])
        if changed:
            raise ValueError(
                f"--out: {self.path} was made with other settings ({changed}); choose another "
                "folder, or remove it"
            )

    def _describe(self) -> None:
        rows = (samples.line(row) for task in self.tasks for row in task.rows())
        write(self.path / PROBLEMS, "".join(rows))
        write(self.path / SETTINGS, self.settings)  # last: with it the folder is one


@dataclass(frozen=True, slots=True)
class Lot:
    """Samples of one problem, asked in one way, that come back together."""

    task: Task
    way: Way
    jobs: tuple[Job, ...]


def lots(
    store: Store, ways: Sequence[Way], settings: EvalSettings, counts: Mapping[str, int]
) -> Iterator[Lot]:
    """What is missing of `counts` samples of every task: first samples of all problems first."""
    most = max(counts.values())
    for first in range(0, most, LOT):
        for task in store.tasks:
            numbers = range(first, min(first + LOT, counts[task.name]))
            for at, prompt in enumerate(task.prompts):
                for way in ways:
                    name = prompt.id
                    missing = [
                        s for s in numbers if (task.name, name, s, way.name) not in store.done
                    ]
                    if missing:
                        jobs = _jobs(task, at, way, settings, missing)
                        yield Lot(task, way, jobs)


def _jobs(
    task: Task, at: int, way: Way, settings: EvalSettings, numbers: Sequence[int]
) -> tuple[Job, ...]:
    """As `trainer.eval.budgets.jobs_of`: random numbers of (seed, problem, sample), in all ways."""
    seed = seeds.key(settings.seed, task.stream) if task.stream else settings.seed
    return tuple(
        Job(
            prompt=(prompt := posed(task.prompts[at], s)),
            plan=way.plan,
            group=at,
            index=s,
            seed=seeds.key(seed, budgets._STREAM, prompt.index, s),
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
        )
        for s in numbers
    )


def collect(
    store: Store,
    worker: Worker,
    work: Iterator[Lot],
    room: int,
    shown: Mapping[str, frozenset[str]] | None,
    progress: Callable[[int, int], None],
) -> None:
    """Make all of `work`; write each lot as it comes back.

    Args:
        room: rollouts under way at once.
        shown: ids by task of problems whose first thoughts are kept as text; None: all thoughts.
        progress: told of rollouts and tokens of every lot.
    """
    for lot, rollouts in _made(worker, work, room):
        rows = []
        for job, rollout in zip(lot.jobs, rollouts, strict=True):
            key = lot.task.name, job.prompt.id, job.index, lot.way.name
            kept = shown is None or (job.index == 0 and job.prompt.id in shown[lot.task.name])
            thought = None
            if kept:
                thought = worker.renderer.decode(rollout.thought.ids_T[: rollout.think_tokens])
            rows.append(samples.row_of(key, rollout, lot.way.grid, thought))
        store.add(rows)
        progress(len(rows), sum(rollout.sampled_tokens for rollout in rollouts))


def _made(worker: Worker, work: Iterator[Lot], room: int) -> Iterator[tuple[Lot, list[Rollout]]]:
    under_way = 0
    with worker.flow() as flow:
        while True:
            while under_way < room and (lot := next(work, None)) is not None:
                flow.add(lot.jobs, lot)
                under_way += len(lot.jobs)
            if not under_way:
                return
            for lot, rollouts in flow.finished():
                under_way -= len(rollouts)
                yield lot, rollouts


def shown_of(tasks: Sequence[Task], count: int) -> dict[str, frozenset[str]]:
    """`count` problems of each task, spread evenly over the difficulties."""
    found = {}
    for task in tasks:
        ordered = sorted(task.prompts, key=lambda p: int(p.meta.get("difficulty") or 0))
        some = min(count, len(ordered))
        found[task.name] = frozenset(ordered[k * len(ordered) // some].id for k in range(some))
    return found
