"""`laconic sweep`: arms x seeds in parallel one-core processes, then one table and a report.

Resumable: a cell that finished with the same configuration is never run again, and one that was
stopped goes on from its checkpoint. Signals are handed on: runs stop as they would alone; where the
sweep is killed they make their checkpoints, as at a preemption.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.processes import dies_with_us, interrupt_trees
from launch.signals import Terminated
from trainer import preflight, runfolder
from trainer.config import Recipe, load
from trainer.tracking import METRICS

if TYPE_CHECKING:
    from rich.progress import TaskID

    from trainer.report import Options

LAST_LINES = 8
ENDING_S = 60.0
"""What runs of a sweep that was killed get to end, before the same sweep begins again."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a sweep."""

    arm: str
    settings: tuple[str, ...]
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.arm} seed {self.recipe.seed}"

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.recipe.stages)

    @property
    def log(self) -> Path:
        return self.recipe.folder.parent / "logs" / f"{self.recipe.folder.name}.log"

    @property
    def command(self) -> list[str]:
        train = [sys.executable, "-P", "-u", "-m", "launch.cli", "train"]
        return [*train, self.arm, f"seed={self.recipe.seed}", *self.settings]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a cell ended."""

    cell: Cell
    code: int
    seconds: float


def sweep(
    arms: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[str] = (),
    *,
    jobs: int | None = None,
    output: str | None = None,
    options: Options | None = None,
) -> int:
    """Run what is not finished yet, print the table, write <output>/report.html.

    Args:
        options: what the table and the report are asked for beyond the usual.

    Returns:
        1 if a cell failed (the others went on), else 0.

    Raises:
        ValueError: a recipe, its data or its model is wrong, or a cell's folder holds a finished
            run with another configuration. Nothing has been started then.
    """
    chosen = [*settings, f"output={output}"] if output else list(settings)
    cells = plan_cells(arms, seeds, chosen)
    if options is not None:
        options.check(cell.recipe.name for cell in cells)
    waiting = [cell for cell in cells if not runfolder.finished(cell.recipe)]
    for recipe in {cell.arm: cell.recipe for cell in waiting}.values():
        preflight.check_all(recipe)
    jobs = min(jobs or preflight.cpus(), max(1, len(waiting)))
    with (Bars if sys.stdout.isatty() else Lines)(len(cells)) as show:
        for cell in cells:
            if cell not in waiting:
                show.skipped(cell)
        _free(waiting, show)
        failed = [end for end in run(waiting, jobs, show) if end.code]
    for end in failed:
        print(f"\n{end.cell.name} failed (exit code {end.code}); the end of {end.cell.log}:")
        print(_tail(end.cell.log))
    bad = {end.cell.name for end in failed}
    good = [cell.recipe.folder for cell in cells if cell.name not in bad]
    if good:
        summarise(good, cells[0].recipe.folder.parent / "report.html", options)
    return int(bool(failed))


def _free(cells: Sequence[Cell], show: Lines) -> None:
    """Runs of a sweep that was killed are still ending: wait for them, if they are."""
    until, said = time.monotonic() + ENDING_S, False
    for folder in (cell.recipe.folder for cell in cells if cell.recipe.folder.is_dir()):
        while time.monotonic() < until:
            try:
                with runfolder.claim(folder):
                    break
            except runfolder.InUseError as used:
                if not said:
                    show.say(f"{folder} is in use by {used.owner}: waiting up to {ENDING_S:.0f} s")
                said = True
                time.sleep(0.2)
            except ValueError:  # told by the run itself
                break


def plan_cells(arms: Sequence[str], seeds: Sequence[int], settings: Sequence[str]) -> list[Cell]:
    """All cells, seed by seed: arms can then be compared after the first few.

    Raises:
        ValueError: no arm, a setting that the sweep itself makes, or two cells in one folder.
    """
    if not arms:
        raise ValueError("sweep: no recipe given; write laconic sweep grpo/find length/find")
    for setting in settings:
        if setting.startswith("seed="):
            raise ValueError(f"'{setting}': a sweep sets the seed itself; write --seeds 0-4")
    cells = [
        Cell(arm, tuple(settings), load(arm, [f"seed={seed}", *settings]))
        for seed in seeds
        for arm in arms
    ]
    owners: dict[Path, Cell] = {}
    for cell in cells:
        other = owners.setdefault(cell.recipe.folder, cell)
        if other is not cell:
            raise ValueError(
                f"sweep: {other.name} and {cell.name} would both write to {cell.recipe.folder}; "
                "give the recipes different names"
            )
    return cells


def run(cells: Sequence[Cell], jobs: int, show: Lines) -> Iterator[Ended]:
    """Run cells in child processes, at most `jobs` at once.

    Ctrl-C: each finishes its step and makes a checkpoint; again: they leave at once. SIGTERM: they
    make theirs within their own grace.
    """
    waiting = deque(cells)
    running: dict[subprocess.Popen[bytes], tuple[Cell, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.popleft()
                running[_start(cell)] = (cell, time.monotonic())
                show.started(cell)
            for child, (cell, since) in list(running.items()):
                show.at(cell, _step(cell))
                if child.poll() is not None:
                    del running[child]
                    end = Ended(cell, child.returncode, time.monotonic() - since)
                    show.ended(end)
                    yield end
            time.sleep(0.2)
    except Terminated as asked:
        interrupt_trees([child.pid for child in running], grace=None, number=asked.number)
        raise
    except KeyboardInterrupt:
        show.say(f"{len(running)} runs finish their steps; Ctrl-C again leaves at once")
        interrupt_trees([child.pid for child in running], grace=None)
        raise
    finally:  # whatever else went wrong
        interrupt_trees([child.pid for child in running if child.poll() is None])


def _step(cell: Cell) -> int:
    """How far a running cell is, by its metrics."""
    try:
        return len((cell.recipe.folder / METRICS).read_bytes().splitlines()) - 1  # step 0 is there
    except FileNotFoundError:
        return 0


def _start(cell: Cell) -> subprocess.Popen[bytes]:
    """One thread each: several threads gain nothing at this size and slow their neighbours."""
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    with cell.log.open("ab") as log:
        return subprocess.Popen(
            cell.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **one},
            start_new_session=True,  # Ctrl-C reaches us alone, and we end the tree in order
            preexec_fn=dies_with_us,
        )


class Lines:
    """Progress as plain lines: '[3/10] grpo/find seed 2 done in 71 s', and each quarter of a cell.

    A context manager, as the bars are.
    """

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0
        self.quarters: dict[str, int] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        print(f"[{self.count}/{self.total}] {text}", flush=True)

    def skipped(self, cell: Cell) -> None:
        self.count += 1
        self.say(f"{cell.name} was finished before")

    def started(self, cell: Cell) -> None:
        self.quarters[cell.name] = 0
        self.say(f"{cell.name} started")

    def at(self, cell: Cell, step: int) -> None:
        quarter = 4 * step // cell.steps
        if self.quarters[cell.name] < quarter < 4:
            self.quarters[cell.name] = quarter
            self.say(f"{cell.name} at step {step} of {cell.steps}")

    def ended(self, end: Ended) -> None:
        self.count += 1
        self.say(f"{end.cell.name} {'FAILED' if end.code else 'done'} in {end.seconds:.0f} s")


class Bars(Lines):
    """Progress on a terminal: a bar for the sweep and one for each running cell."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        super().__init__(total)
        text = "[progress.description]{task.description}"
        self.bars = Progress(text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.all = self.bars.add_task("runs", total=total)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        self.bars.console.print(
            f"[{self.count}/{self.total}] {text}", markup=False, highlight=False
        )
        self.bars.update(self.all, completed=self.count)

    def started(self, cell: Cell) -> None:
        self.tasks[cell.name] = self.bars.add_task(cell.name, total=cell.steps)

    def at(self, cell: Cell, step: int) -> None:
        self.bars.update(self.tasks[cell.name], completed=step)

    def ended(self, end: Ended) -> None:
        self.bars.remove_task(self.tasks.pop(end.cell.name))
        super().ended(end)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").rstrip().splitlines()
    return "\n".join(f"    {line}" for line in lines[-LAST_LINES:])


def summarise(runs: Sequence[Path], out: Path, options: Options | None = None) -> None:
    """Print the table of `runs` and write their report to `out`: run folders, or evaluations.

    Raises:
        ValueError: some are run folders and some evaluations.
    """
    from trainer import report
    from trainer.report import evaluation

    asked = options or report.Options()
    evaluated = [run for run in runs if evaluation.is_evaluation(run)]
    if len(evaluated) == len(runs) > 0:
        print(evaluation.summarise(runs, out, asked))
        return
    if evaluated:
        other = next(run for run in runs if run not in evaluated)
        raise ValueError(
            f"report: {evaluated[0]} is an evaluation and {other} a run folder; a report is of "
            "one kind: give them apart"
        )
    print(report.summary_table(runs, options=asked))
    print(f"report: {report.write(runs, out, options=asked)}")
