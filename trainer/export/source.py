"""What is exported: a model folder, and the run that made it where there is one."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from samplers.render import ThinkingConfig
from trainer import checkpoint, foreign
from trainer.config import Stage, resolve
from trainer.lora import ADAPTER
from trainer.modelfolder import ModelFolder, fetch
from trainer.runfolder import CONFIG

SAVED = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True)
class Source:
    """One model to export."""

    model: Path
    """Folder with config.json, weights and tokenizer."""
    name: str
    """For people: the run's name and seed, the folder's, or that of the hub."""
    run: Path | None = None
    stage: Stage | None = None
    """The stage of the run that made these weights."""
    step: int | None = None

    @property
    def id(self) -> str:
        """Tells a second export of the same source from one of another; says no path."""
        place = str((self.run or self.model).resolve())
        return hashlib.sha256(place.encode()).hexdigest()[:16]

    @property
    def adapter(self) -> Path | None:
        """The adapter beside the merged weights, if the run left it there."""
        folder = self.model / ADAPTER
        return folder if (folder / "adapter_config.json").is_file() else None

    def thinking(self, otherwise: ThinkingConfig | None) -> ThinkingConfig | None:
        """The run's markers, or those given for a model without a run."""
        return otherwise if self.stage is None else self.stage.markers


def find(name: str) -> Source:
    """The model that `name` stands for: a run, a checkpoint, a model folder or a hub name.

    Raises:
        ValueError: nothing there, a run without a complete checkpoint, an adapter without its
            model, no weights or no chat template.
    """
    path = Path(name).expanduser()
    if (path / CONFIG).is_file() and not (path / "config.json").is_file():
        path = _newest(path)
    if (path / "driver.json").is_file():
        if not (path / checkpoint.COMPLETE).is_file():
            raise ValueError(
                f"'{path}' is a checkpoint that was not written to its end; give an earlier one, "
                "or the run's folder for its newest complete one"
            )
        if wrong := checkpoint.damage(path, "model/"):
            raise ValueError(
                f"'{path}' is damaged: {wrong[0]}; give another checkpoint of the run, or restore "
                "the file from a copy"
            )
        path = path / "model"
    model = _resolved(path) if path.is_dir() else fetch(name)
    _complete(model)
    run = _run_of(model)
    if run is None:
        return Source(model, path.resolve().name if path.is_dir() else name)
    stage, step, called = _stage(run, model)
    return Source(model, called, run, stage, step)


def _newest(run: Path) -> Path:
    newest = checkpoint.intact(run / "checkpoints", "model/")
    if newest is None:
        raise ValueError(f"run '{run}' has no complete checkpoint yet; let it finish")
    return newest


def _resolved(path: Path) -> Path:
    """`path`, or the model that our own adapter lies in; refuses another's adapter."""
    return fetch(str(path)) if (path / "adapter_config.json").is_file() else path


def stage_of(model: Path) -> Stage | None:
    """The stage of the run that made `model`, a folder in its checkpoint; None: no run did.

    Raises:
        ValueError: the run's config.yaml cannot be read.
    """
    run = _run_of(model)
    return None if run is None else _stage(run, model)[0]


def _complete(model: Path) -> None:
    folder = ModelFolder(model)
    if not folder.causal:  # reads config.json, and says where there is none
        raise ValueError(f"'{model}' holds no causal language model; give one (...ForCausalLM)")
    if not any(next(model.glob(pattern), None) for pattern in SAVED):
        raise ValueError(f"'{model}' holds no weights (*.safetensors); give a trained model")
    if not folder.chat_template:
        raise ValueError(
            f"'{model}' has no chat template, in which an exported model is told of its budget; "
            "add chat_template.jinja to the folder"
        )


def _run_of(model: Path) -> Path | None:
    """The run that holds this model in a checkpoint."""
    for parent in list(model.resolve().parents)[:3]:
        if (parent / CONFIG).is_file() and (parent / "checkpoints").is_dir():
            return parent
    return None


def _stage(run: Path, model: Path) -> tuple[Stage, int | None, str]:
    """The stage that made the model, its step and the run's name."""
    config = run / CONFIG
    if told := foreign.code(run):
        warnings.warn(told, stacklevel=2)
    try:
        recipe = resolve(yaml.safe_load(config.read_text()))
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"{config}: {why}; mend it, or copy the model's folder out of the run and say by hand "
            "how it is asked (--ask, --efforts)"
        ) from None
    driver = model.resolve().parent / "driver.json"
    state: dict[str, Any] = json.loads(driver.read_text()) if driver.is_file() else {}
    index = min(int(state.get("stage", len(recipe.stages) - 1)), len(recipe.stages) - 1)
    step = state["first"] + state["step"] if {"first", "step"} <= state.keys() else None
    return recipe.stages[index], step, f"{recipe.name} (seed {recipe.seed})"


def room(out: Path, source: Source, former: Callable[[Path], dict[str, Any] | None]) -> None:
    """Raise ValueError unless `out` can be written: new, empty, or an export of the same source.

    Args:
        former: reads what an exported folder says of itself, None where it is none.
    """
    import os
    import tempfile

    if out.exists() and not out.is_dir():
        raise ValueError(f"'{out}' is a file; name a folder")
    if out.is_dir() and any(out.iterdir()):
        own = (former(out) or {}).get("source", {}).get("id") == source.id
        inside = source.model.resolve().is_relative_to(out.resolve())
        if not own or inside:
            raise ValueError(
                f"'{out}' is not empty, and no former export of {source.name}; name a new folder, "
                "or remove it"
            )
    parent = next(p for p in (out.absolute().parent, *out.absolute().parents) if p.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=parent):
            pass
    except OSError as error:
        raise ValueError(
            f"'{out}' cannot be written: {parent}: {os.strerror(error.errno or 0)}; name another "
            "folder"
        ) from None
