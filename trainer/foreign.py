"""Code that a run's configuration names: maybe a stranger's, so it is told before any of it runs.

Components are named by import path, and a model may bring code of its own. Nothing is run here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from trainer.changes import SOURCE

CONFIG = "config.yaml"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)*(:\w+)?")
"""What may be an import path, if it has a dot or a colon."""


def code(run: Path) -> str:
    """A line for people: what else than Laconic the run in a folder runs; '': nothing.

    Raises:
        ValueError: some of it lies in the run's own folder.
    """
    run = Path(os.path.abspath(run))
    try:
        tree = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # told by who reads it as a recipe
        return ""
    told = {}
    for field, value in _leaves(tree):
        if field == "trust_remote_code" and value is True:
            told[field] = "that of the model's folder (model.trust_remote_code)"
        if not isinstance(value, str):
            continue
        places, whole = _places(value)
        for place in places:
            if run in place.parents or run.resolve() in place.resolve().parents:
                raise ValueError(
                    f"{run / CONFIG} names {value}, which lies in the run's own folder ({place}) "
                    "and may have come with it; if you trust it, move it elsewhere and put that "
                    "place on PYTHONPATH"
                )
        if whole:
            told[value] = f"{value} ({places[-1]})"
    return f"{run} runs code that is not Laconic's: {', '.join(told.values())}" if told else ""


def _leaves(tree: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, str(key))
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value, field)
    else:
        yield field, tree


def _places(text: str) -> tuple[list[Path], bool]:
    """The files that importing `my_pkg.my_file:fn` would run, and whether there is such a module.

    None for what is no import path, or of ours.
    """
    head, *rest = text.partition(":")[0].split(".")
    if not {".", ":"} & set(text) or not _MODULE.fullmatch(text) or head in SOURCE:
        return [], False
    files: list[Path] = []
    with suppress(ImportError, ValueError):
        spec, name = find_spec(head), head
        for part in (*rest, None):
            if spec is None:
                return files, False
            if spec.origin and spec.has_location:
                files.append(Path(os.path.abspath(spec.origin)))
            if part is not None:
                name, inside = f"{name}.{part}", spec.submodule_search_locations
                spec = None if inside is None else PathFinder.find_spec(name, list(inside))
        return files, bool(files)
    return files, False
