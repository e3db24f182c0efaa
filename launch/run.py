"""One run from a recipe: folder, preflight, stages one after the other, a model at the end."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launch.cluster import cluster
from launch.fleet import Fleet
from launch.head import watched
from launch.joining import reach
from launch.placement import place
from launch.plan import thinking
from launch.probe import checked
from launch.restarts import Restarts, resumable
from launch.signals import obeyed
from trainer import checkpoint, preflight, runfolder
from trainer.bound import Adviser, Machine
from trainer.checkpoint import disk
from trainer.config import Recipe, load
from trainer.faults import Lost, Unmended
from trainer.fresh import start_model
from trainer.loop import LOOPS
from trainer.modelfolder import fetch
from trainer.profile import Profile
from trainer.sampling import Sampling
from trainer.stage import StageRun
from trainer.stop import Stop
from trainer.traces import base as traces
from trainer.tracking import Tracker

FRESH: dict[str, Any] = {"stage": 0, "first": 0, "step": -1}
"""State of a run that has not begun: not even step 0, its first evaluation, is logged."""


def train(
    recipe: str | Path | Recipe, *settings: str, address: str | None = None, profile: int = 0
) -> Path:
    """Train `recipe` and return its run folder.

    A folder that holds the same run, unfinished, is continued from its newest checkpoint; a
    finished one is returned as it is.

    Args:
        recipe: a shipped name (`grpo/find`), a YAML file, or a resolved Recipe.
        settings: `a.b=c` assignments, as on the command line.
        address: a running Ray cluster; None starts one on this machine.
        profile: trace so many steps into the run folder: see `trainer/profile.py`.

    Raises:
        ValueError: a mistake in the recipe or its files, before any model is loaded.
    """
    if not isinstance(recipe, Recipe):
        recipe = load(recipe, settings)
    elif settings:
        raise ValueError("settings go with a recipe's name; a Recipe is already resolved")
    if address is not None:
        reach(address)
    preflight.check_all(recipe, here=not address)
    folder = recipe.folder.absolute()  # actors may have another working directory
    with runfolder.claim(folder):
        if runfolder.finished(recipe):
            if profile:
                warnings.warn(f"--profile has no effect: {folder} is finished", stacklevel=2)
            return folder
        return go(recipe, address, profile)


def go(recipe: Recipe, address: str | None = None, profile: int = 0) -> Path:
    """Train what is left of the recipe, in its folder, which is claimed.

    Raises:
        ValueError: something changed with which it would go on wrongly; nothing was started.
        Unmended: what it lost, or the disk refuses, ends it.
    """
    try:
        return _go(recipe, address, profile)
    except Unmended as error:
        comma = "" if str(error).endswith("?") else ";"
        raise Unmended(f"{error}{comma} {resumable(recipe.folder)}") from error


def _go(recipe: Recipe, address: str | None, profile: int) -> Path:
    folder = recipe.folder.absolute()
    newest = _open(recipe)
    state = checkpoint.driver_state(newest) if newest else FRESH
    cpus = max(place(stage, 0).totals["CPU"] for stage in recipe.stages)
    with (
        obeyed(recipe.folder, recipe.checkpoint.grace) as stop,
        cluster(int(cpus), address),
        watched(partial(resumable, recipe.folder)),
    ):
        checked(recipe, state["stage"], joined=bool(address))
        with (
            Tracker(
                folder,
                recipe.tracking,
                recipe,
                first_step=state["first"] + state["step"],
                wandb_id=state.get("wandb_id"),
            ) as tracker,
            Profile(folder, profile) as profiled,
        ):
            stages(recipe, state, newest, tracker, profiled, _machine(address), stop)
    try:
        (folder / runfolder.DONE).touch()
    except OSError as error:
        why = f"{folder / runfolder.DONE} cannot be written: {error.strerror}"
        warnings.warn(f"{why}; the run is whole, but not marked as finished", stacklevel=3)
    return folder


def stages(
    recipe: Recipe,
    state: Mapping[str, Any],
    newest: Path | None,
    tracker: Tracker,
    profiled: Profile,
    machine: Machine,
    stop: Stop,
) -> None:
    """Run what is left of the recipe, from the checkpoint `newest` and its driver's `state` on."""
    folder, first = recipe.folder.absolute(), state["first"]
    before: Sampling | None = None
    restarts = Restarts(recipe, tracker, stop)
    for index in range(state["stage"], len(recipe.stages)):
        with written(folder):
            stage, path = recipe.stages[index], str(begin(recipe, index).absolute())
        kept = (newest, state) if newest and index == state["stage"] else None
        start = partial(Fleet, stage, path, recipe.seed, recipe.deterministic, recipe.faults)
        with restarts.tried(start) as fleet:
            if fleet.opened is not None:
                tracker.say(thinking(stage, fleet.opened))
            done = False
            while not done:
                try:
                    with StageRun(recipe, index, first, path, fleet, tracker, folder, stop) as run:
                        _through(run, path, kept, before, Adviser(recipe, index, machine), profiled)
                    done = True
                except Lost as lost:
                    kept = restarts.back(lost, fleet, index, first)
            before = run.sampling if stage.kind == "rl" else None
        first += stage.steps
        last = checkpoint.newest(folder / "checkpoints")
        assert last is not None, "a stage ends with a checkpoint"
        with written(folder):
            checkpoint.point(folder / "model", last / "model")


def _through(
    run: StageRun,
    path: str,
    kept: tuple[Path, Mapping[str, Any]] | None,
    before: Sampling | None,
    adviser: Adviser,
    profiled: Profile,
) -> None:
    """A stage to its end: from a checkpoint, or its start with what an earlier one has learned."""
    with written(run.folder):
        traces.supply(run, path)
    if kept:
        run.restore(*kept)
    elif before is not None and run.stage.kind == "rl":
        run.follow(before)
    run.tracker.console.advise(adviser)
    profiled.watch(run)
    LOOPS[run.stage.kind](run)


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """Around what has to be written for training to go on.

    Raises:
        Unmended: the disk refuses it.
    """
    try:
        yield
    except shutil.Error as error:  # of several files
        raise Unmended(f"{error.args[0][0][-1]}; free space") from error
    except OSError as error:
        if error.errno not in disk.REFUSALS:
            raise
        raise Unmended(f"{disk.why(error, folder)}; {disk.remedy(error)}") from error


def _open(recipe: Recipe) -> Path | None:
    """Begin the folder, or find where an unfinished run of the same recipe left off."""
    folder = recipe.folder
    newest = checkpoint.intact(folder / "checkpoints")
    if newest is None:  # an attempt that got nowhere leaves nothing behind
        made = (path for name in ("start-*", "traces-*") for path in folder.glob(name))
        for leftover in (folder / "eval", folder / "rollouts", *made):
            shutil.rmtree(leftover, ignore_errors=True)
    runfolder.settle(recipe, newest, checkpoint.driver_state(newest) if newest else FRESH, print)
    checkpoint.abandon(folder / "checkpoints", newest)
    return newest


def begin(recipe: Recipe, index: int) -> Path:
    """The model that stage `index` begins with, at a place that stays.

    Its reference, tokenizer and configuration are read from there whenever the stage is resumed;
    the checkpoint that the stage before ended with is dropped for newer ones.
    """
    stage, made = recipe.stages[index], recipe.folder / f"start-{index}"
    if index == 0:
        return start_model(fetch(stage.model.path), made, stage, recipe.seed)
    if not made.is_dir():
        last, partial = checkpoint.newest(recipe.folder / "checkpoints"), made.with_suffix(".part")
        assert last is not None, "the stage before ends with a checkpoint"
        shutil.rmtree(partial, ignore_errors=True)
        if start_model(last / "model", partial, stage, recipe.seed) != partial:
            shutil.copytree(last / "model", partial)
        partial.rename(made)
    return made


def _machine(address: str | None) -> Machine:
    """What there is for a run: a cluster that somebody else runs, or this machine."""
    import ray

    have = ray.cluster_resources()
    cores = int(have.get("CPU", 0)) if address else preflight.cpus()
    vllm = find_spec("vllm") is not None
    return Machine(cores, int(have.get("GPU", 0)), booked=address is not None, vllm=vllm)
