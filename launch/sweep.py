"""`laconic sweep`: arms x seeds in parallel one-core processes, then one table and a report.

Resumable: a cell that finished with the same configuration is never run again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.processes import interrupt_trees
from trainer import preflight, runfolder
from trainer.config import Recipe, load

LAST_LINES = 8


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
    def log(self) -> Path:
        return Path(self.recipe.output) / "logs" / f"{self.recipe.folder.name}.log"

    @property
    def command(self) -> list[str]:
        train = [sys.executable, "-u", "-m", "launch.cli", "train"]
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
) -> int:
    """Run what is not finished yet, print the table, write <output>/report.html.

    Returns:
        1 if a cell failed (the others went on), else 0.

    Raises:
        ValueError: a recipe, its data or its model is wrong, or a cell's folder holds a finished
            run with another configuration. Nothing has been started then.
    """
    chosen = [*settings, f"output={output}"] if output else list(settings)
    cells = plan_cells(arms, seeds, chosen)
    waiting = [cell for cell in cells if not runfolder.finished(cell.recipe)]
    for recipe in {cell.arm: cell.recipe for cell in waiting}.values():
        preflight.check_all(recipe)
    jobs = min(jobs or preflight.cpus(), max(1, len(waiting)))
    with _progress(len(cells), jobs) as tell:
        for cell in cells:
            if cell not in waiting:
                tell(f"{cell.name} was finished before", 1)
        failed = [end for end in run(waiting, jobs, tell) if end.code]
    for end in failed:
        print(f"\n{end.cell.name} failed (exit code {end.code}); the end of {end.cell.log}:")
        print(_tail(end.cell.log))
    bad = {end.cell.name for end in failed}
    good = [cell.recipe.folder for cell in cells if cell.name not in bad]
    if good:
        summarise(good, Path(cells[0].recipe.output) / "report.html")
    return int(bool(failed))


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


def run(cells: Sequence[Cell], jobs: int, tell: Callable[[str, int], None]) -> Iterator[Ended]:
    """Run cells in child processes, at most `jobs` at once; Ctrl-C ends them as trees."""
    waiting = deque(cells)
    running: dict[subprocess.Popen[bytes], tuple[Cell, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.popleft()
                running[_start(cell)] = (cell, time.monotonic())
                tell(f"{cell.name} started", 0)
            for child in [c for c in running if c.poll() is not None]:
                cell, since = running.pop(child)
                end = Ended(cell, child.returncode, time.monotonic() - since)
                how = "done" if end.code == 0 else "FAILED"
                tell(f"{cell.name} {how} in {end.seconds:.0f} s", 1)
                yield end
            time.sleep(0.1)
    finally:
        interrupt_trees([child.pid for child in running])


def _start(cell: Cell) -> subprocess.Popen[bytes]:
    """One thread each: several threads gain nothing at this size and slow their neighbours."""
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    with cell.log.open("wb") as log:
        return subprocess.Popen(
            cell.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **one},
            start_new_session=True,  # Ctrl-C reaches us alone, and we end the tree in order
        )


@contextmanager
def _progress(total: int, jobs: int) -> Iterator[Callable[[str, int], None]]:
    """A bar on a terminal, plain lines elsewhere: '[3/10] grpo/find seed 2 done in 71 s'."""
    count = 0
    if not sys.stdout.isatty():

        def line(text: str, step: int) -> None:
            nonlocal count
            count += step
            print(f"[{count}/{total}] {text}", flush=True)

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(f"{jobs} at once", total=total)

        def show(text: str, step: int) -> None:
            bar.console.print(text, markup=False, highlight=False)
            bar.advance(task, step)

        yield show


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").rstrip().splitlines()
    return "\n".join(f"    {line}" for line in lines[-LAST_LINES:])


def summarise(runs: Sequence[Path], out: Path) -> None:
    """Print the table of `runs` and write their report to `out`."""
    from trainer import report

    print(report.summary_table(runs))
    print(f"report: {report.write(runs, out)}")
