"""`laconic resume`: a run that stopped goes on, from its newest checkpoint, in the folder named."""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from launch.joining import reach
from launch.run import FRESH, go
from trainer import changes, checkpoint, config, foreign, preflight, runfolder
from trainer.config import Recipe
from trainer.report.evaluation import is_evaluation
from trainer.settings import override


def resume(run: str | Path, *settings: str, address: str | None = None) -> Path:
    """Go on with the run in folder `run` and return that folder.

    What has changed since (settings, data, model, software, machine) is told with what it means.
    A finished run is returned as it is, unless `settings` give it more steps.

    Args:
        settings: `a.b=c` assignments for what is left of the run.
        address: a running Ray cluster; None starts one on this machine.

    Raises:
        ValueError: no such run, a mistake in a setting, or a change with which the run would go
            on wrongly; before any process is started.
    """
    folder = find(Path(run))
    started = changes.recorded(folder)[1]
    with _where_it_began(started), runfolder.claim(folder, "run"):
        done = (folder / runfolder.DONE).is_file()
        if done and not settings:
            return _finished(folder)
        newest = checkpoint.intact(folder / "checkpoints", "driver")
        state = checkpoint.driver_state(newest) if newest else FRESH
        if told := foreign.code(folder):
            print(told)
        recipe = runfolder.stored(folder)
        if settings:
            recipe = changed(recipe, settings, state["stage"])
        if done and not (newest and _left(recipe, state)):
            warnings.warn(f"{', '.join(settings)}: no effect on what is done", stacklevel=2)
            return _finished(folder)
        if address is not None:
            reach(address)
        preflight.check_all(recipe, here=not address, first=state["stage"])
        return go(recipe, address)


def _finished(folder: Path) -> Path:
    print(f"{folder} is finished")
    return folder


def changed(recipe: Recipe, settings: Sequence[str], stage: int) -> Recipe:
    """The recipe with settings; one without a number of a stage is for the only one that is left.

    Raises:
        ValueError: several are left, or a mistake in a setting.
    """
    words = []
    for text in settings:
        head = text.partition("=")[0].split(".")[0]
        if head not in Recipe.model_fields:
            if stage < len(recipe.stages) - 1:
                raise ValueError(
                    f"'{text}': stages {stage} to {len(recipe.stages) - 1} are left; write "
                    f"stages.{stage}.{text} for one of them"
                )
            text = f"stages.{stage}.{text}"
        words.append(text)
    return config.resolve(override(recipe.model_dump(mode="json"), words)).within(recipe.folder)


def _left(recipe: Recipe, state: dict[str, Any]) -> bool:
    """Whether there is anything to train."""
    index = state["stage"]
    last = index >= len(recipe.stages) - 1
    return not last or state["step"] < recipe.stages[-1].steps


@contextmanager
def _where_it_began(started: str) -> Iterator[None]:
    """Paths of the recipe, and modules that it names, were found from there."""
    if not started or not Path(started).is_dir():
        if started:
            warnings.warn(
                f"{started}, where the run was started, is gone: paths and modules of your own "
                f"are looked for in {os.getcwd()}",
                stacklevel=4,
            )
        yield
        return
    with chdir(started):
        if started not in sys.path:  # last, as when it was started
            sys.path.append(started)
        yield


def find(path: Path) -> Path:
    """The run folder that `path` names, or the newest checkpoint of which it names.

    Raises:
        ValueError: it is none, with what would be right.
    """
    path = Path(os.path.abspath(path.expanduser()))
    if (path / runfolder.CONFIG).is_file():
        return path
    inside = next((p for p in path.parents[:3] if (p / runfolder.CONFIG).is_file()), None)
    if inside is not None and path.exists():
        return _of_checkpoint(path, inside)
    raise ValueError(f"{path} {_advice(path)}")


def _of_checkpoint(path: Path, run: Path) -> Path:
    newest = checkpoint.newest(run / "checkpoints")
    if newest == path:
        return run
    if path.parent.name != "checkpoints":
        raise ValueError(f"{path} is inside of a run: laconic resume {run}")
    newer = f" ({newest.name})" if newest else ""
    raise ValueError(
        f"{path} is not the newest checkpoint of its run{newer}, which is gone on from: laconic "
        f"resume {run}; to go back, remove the newer ones first, or begin a new run with "
        f"model.path={path}/model"
    )


def _advice(path: Path) -> str:
    """Why nothing can be resumed there, and what would be right."""
    if not path.exists():
        return f"does not exist{_nearest(path)}"
    if is_evaluation(path):
        return "is an evaluation: the `laconic eval` command that began it goes on with it"
    runs = sorted(p.parent.name for p in path.glob(f"*/{runfolder.CONFIG}"))
    if runs:
        some = ", ".join(runs[:3]) + (", ..." if len(runs) > 3 else "")
        return (
            f"holds runs ({some}): resume one of them, as {path / runs[0]}; or give the `laconic "
            "sweep` command again, which goes on with all that are not finished"
        )
    return f"has no {runfolder.CONFIG}: it is no run folder{_nearest(path)}"


def _nearest(path: Path) -> str:
    if str(path.name) and (name := _recipe(path)):
        return f"; '{name}' is a recipe: laconic train {name}"
    runs = [str(p.parent) for p in path.parent.glob(f"*/{runfolder.CONFIG}")]
    near = difflib.get_close_matches(str(path), runs, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _recipe(path: Path) -> str:
    """The shipped recipe of that name, if it is one: `grpo/find` from anywhere."""
    name = "/".join(path.parts[-2:])
    return name if name in config.shipped() else ""
