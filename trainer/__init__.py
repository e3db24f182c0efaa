"""The loop, credit, losses, learners, weights, checkpoints, tracking, evaluation, reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def train(recipe: Any, *settings: str, address: str | None = None) -> Path:
    """Train a recipe from Python: `from trainer import train; train("grpo/find", "seed=1")`.

    What starts processes is found by its entry point: nothing here imports a storey above.

    Args and errors: those of `laconic train` (launch/run.py). Returns the run folder.
    """
    folder: Path = _launched("train")(recipe, *settings, address=address)
    return folder


def resume(run: Any, *settings: str, address: str | None = None) -> Path:
    """Go on with a run that stopped: `from trainer import resume; resume("runs/grpo-find-seed0")`.

    Args and errors: those of `laconic resume` (launch/resume.py). Returns the run folder.
    """
    folder: Path = _launched("resume")(run, *settings, address=address)
    return folder


def _launched(name: str) -> Any:
    from importlib.metadata import entry_points

    found = next(iter(entry_points(group="laconic", name=name)), None)
    if found is None:
        raise ImportError("laconic is installed as it was before: run pip install -e . again")
    return found.load()
