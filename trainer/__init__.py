"""The loop, credit, losses, learners, weights, checkpoints, tracking, evaluation, reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def train(recipe: Any, *settings: str, address: str | None = None) -> Path:
    """Train a recipe from Python: `from trainer import train; train("grpo/find", "seed=1")`.

    What starts processes is found by its entry point: nothing here imports a storey above.

    Args and errors: those of `laconic train` (launch/run.py). Returns the run folder.
    """
    from importlib.metadata import entry_points

    start = next(iter(entry_points(group="laconic", name="train")))
    folder: Path = start.load()(recipe, *settings, address=address)
    return folder
