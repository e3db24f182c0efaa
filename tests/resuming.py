"""A run folder with checkpoints that no training made: what `laconic resume` goes by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from trainer import checkpoint, runfolder
from trainer.config import Recipe, load


def write_rows(path: Path, first: int = 0) -> None:
    rows = [{"id": i, "problem": f"{i}+1?", "answer": str(i + 1)} for i in range(first, first + 8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def made(home: Path, model: Path, **more: Any) -> Recipe:
    """A recipe of files in `home`, named relative to it, as is usual."""
    shutil.copytree(model, home / "model")
    write_rows(home / "train.jsonl")
    write_rows(home / "test.jsonl", 100)
    recipe = {
        "name": "mine",
        "model": {"path": "model"},
        "data": {"path": {"train": "train.jsonl", "test": "test.jsonl"}},
        "steps": 5,
        "prompts_per_step": 4,
        "rollouts_per_prompt": 4,
        "rollout": {"max_tokens": 32},
        "evaluation": {"budgets": [0, 8]},
        **more,
    }
    (home / "mine.yaml").write_text(yaml.safe_dump(recipe))
    return load(home / "mine.yaml")


def state(stage: int, step: int, first: int = 0, **more: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"allocation": {}, "memory": {}, "carried": {}, "shaping": {}}
    return {"stage": stage, "step": step, "first": first, **empty, **more}


def save(folder: Path, where: dict[str, Any]) -> None:
    def write(part: Path) -> None:
        shutil.copytree(folder.parents[1] / "model", part / "model")
        shutil.copy(folder / runfolder.CONFIG, part / runfolder.KEPT_CONFIG)

    checkpoint.save(folder / "checkpoints", where["first"] + where["step"], write, where, keep=9)
