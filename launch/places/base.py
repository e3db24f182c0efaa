"""What every place is given: an order, and the site file that describes the place.

A place is a module with

    Config                            fields of its site file
    hardware(config)                  what it will give the run, or None where only it knows
    launch(order, config) -> int      writes, submits or runs; the exit code

and, where jobs go on there by themselves,

    status(job, config) -> int        prints
    logs(job, config, follow) -> int
    stop(job, config) -> int

The recipe knows nothing of any of it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from pydantic import ValidationError

from samplers import seam
from trainer.components import explain
from trainer.config import Recipe

PACKAGE = "launch.places"
NEEDS = ("Config", "hardware", "launch")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to run."""

    recipe: str
    """As it was written: the name of a recipe that ships, or a file."""
    settings: tuple[str, ...]
    resolved: Recipe
    name: str
    """Of the job."""
    dry_run: bool = False
    """Write and check everything, submit nothing."""
    detach: bool = False
    """Return as soon as it is submitted, where a place would follow it to its end."""
    place: str = "ray"
    site: Path | None = None
    """The file that describes it."""

    def train(self, address: str = "auto") -> str:
        """The command, for a shell, that trains it in a Ray cluster; run again, it goes on."""
        words = ["laconic", "train", self.recipe, *self.settings, "--address", address]
        return shlex.join(words)

    def resume(self, address: str = "auto") -> str:
        """The command that goes on with it."""
        return shlex.join(["laconic", "resume", str(self.resolved.folder), "--address", address])

    def command(self, what: str, *words: str) -> str:
        """How people look after the job: `what` is status, logs or stop."""
        where = [] if self.place == "ray" else ["--on", self.place]
        where += ["--site", str(self.site)] if self.site else []
        return shlex.join(["laconic", what, self.name, *words, *where])


def find(place: str) -> ModuleType:
    """The module of a place: ours, or by its import path a user's own.

    Raises:
        ValueError: there is none, or it lacks what every place has.
    """
    module = seam.find(PACKAGE, place)
    missing = [name for name in NEEDS if not hasattr(module, name)]
    if missing:
        raise ValueError(f"--on {place}: lacks {', '.join(missing)}; see launch/places/base.py")
    return module


def site(place: str, file: Path | None) -> object:
    """The place's `Config` as `file` fills it; without a file, its defaults.

    Raises:
        ValueError: no such place or file, or fields that the place does not know.
    """
    module = find(place)
    if file is None:
        raw: Any = {}
    else:
        try:
            raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"--site {file}: no such file") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            why = " ".join(str(error).split())
            raise ValueError(f"--site {file}: cannot be read as YAML: {why}") from None
        raw = {} if raw is None else raw
        if not isinstance(raw, dict):
            raise ValueError(f"--site {file}: a site file is a mapping of fields; got {raw!r}")
    try:
        return module.Config(**{str(key): value for key, value in raw.items()})
    except ValidationError as error:
        where = f"--site {file}" if file else f"--on {place}: a site file is needed"
        raise ValueError(
            f"{where}: {'; '.join(explain(error, module.Config).splitlines())}"
        ) from None
