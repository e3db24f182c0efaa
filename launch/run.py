"""One run from a recipe: folder, preflight, stages one after the other, a model at the end."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launch.cluster import cluster
from launch.fleet import Fleet
from launch.placement import place
from launch.plan import thinking
from launch.signals import obeyed
from trainer import checkpoint, preflight, runfolder
from trainer.bound import Adviser, Machine
from trainer.config import Recipe, load
from trainer.fresh import start_model
from trainer.loop import LOOPS
from trainer.modelfolder import fetch
from trainer.profile import Profile
from trainer.sampling import Sampling
from trainer.stage import StageRun
from trainer.stop import Stop
from trainer.traces import base as traces
from trainer.tracking import Tracker

FRESH = {"stage": 0, "first": 0, "step": -1}
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
    preflight.check_all(recipe)
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
    """
    folder = recipe.folder.absolute()
    newest = _open(recipe)
    state = checkpoint.driver_state(newest) if newest else FRESH
    cpus = max(place(stage, 0).totals["CPU"] for stage in recipe.stages)
    with (
        obeyed(recipe.folder, getattr(recipe.checkpoint, "grace", 30.0)) as stop,
        cluster(int(cpus), address),
        Tracker(
            folder, recipe.tracking, recipe, first_step=state["first"] + state["step"]
        ) as tracker,
        Profile(folder, profile) as profiled,
    ):
        stages(recipe, state, newest, tracker, profiled, _machine(address), stop)
    (folder / runfolder.DONE).touch()
    return folder


def stages(
    recipe: Recipe,
    state: Mapping[str, Any],
    newest: Path | None,
    tracker: Tracker,
    profiled: Profile,
    machine: Machine,
    stop: Stop | None = None,
) -> None:
    """Run what is left of the recipe, from the checkpoint `newest` and its driver's `state` on."""
    folder, first = recipe.folder.absolute(), state["first"]
    before: Sampling | None = None
    for index in range(state["stage"], len(recipe.stages)):
        stage, path = recipe.stages[index], str(begin(recipe, index).absolute())
        with (
            Fleet(stage, path, recipe.seed, recipe.deterministic, recipe.faults) as fleet,
            StageRun(recipe, index, first, path, fleet, tracker, folder, stop) as run,
        ):
            if fleet.opened is not None:
                tracker.say(thinking(stage, fleet.opened))
            traces.supply(run, path)
            if newest and index == state["stage"]:
                run.restore(newest, state)
            elif before is not None and stage.kind == "rl":
                run.follow(before)
            tracker.console.advise(Adviser(recipe, index, machine))
            profiled.watch(run)
            LOOPS[stage.kind](run)
            before = run.sampling if stage.kind == "rl" else None
        first += stage.steps
        _point(folder / "model", checkpoint.complete(folder / "checkpoints")[-1] / "model")


def _open(recipe: Recipe) -> Path | None:
    """Begin the folder, or find where an unfinished run of the same recipe left off."""
    folder = recipe.folder
    newest = checkpoint.newest(folder / "checkpoints")
    if newest is None:  # an attempt that got nowhere leaves nothing behind
        made = (path for name in ("start-*", "traces-*") for path in folder.glob(name))
        for leftover in (folder / "eval", folder / "rollouts", *made):
            shutil.rmtree(leftover, ignore_errors=True)
    runfolder.settle(recipe, newest, checkpoint.driver_state(newest) if newest else FRESH, print)
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


def _point(link: Path, target: Path) -> None:
    """`run/model` is the newest model, whatever step it was made at."""
    link.unlink(missing_ok=True)
    link.symlink_to(target.relative_to(link.parent))
