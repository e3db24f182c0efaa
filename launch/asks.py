"""How a model is told of a budget, from a command line: --ask and --efforts, or its own folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from samplers import seam
from samplers.budget import Asks
from samplers.budgets.base import BUDGET, Asking
from samplers.files import nearest
from samplers.render import Renderer
from trainer.export import trained
from trainer.modelfolder import ModelFolder


def asks(args: argparse.Namespace, model: ModelFolder, renderer: Renderer) -> Asks:
    """By hand, as its export or its run says, or by its chat template.

    Raises:
        ValueError: what is said by hand is no way of asking.
    """
    found = trained.told(model.path, renderer)
    changed: dict[str, Any] = {}
    if args.ask is not None:
        changed["budget"] = asking(yaml_map(args.ask, "--ask"), "--ask")
        said = [changed["budget"].model_dump().values(), changed["budget"].template.values()]
        if not any(isinstance(text, str) and BUDGET in text for part in said for text in part):
            raise ValueError(
                f"--ask: {args.ask!r} nowhere says {BUDGET}, so no number is announced"
            )
    if args.efforts is not None:
        changed["efforts"] = _efforts(args.efforts, found.efforts)
    return found.model_copy(update=changed)


def _efforts(text: str, known: Mapping[str, Asking]) -> dict[str, Asking]:
    """A map of how each is asked for, or names of those that the model knows."""
    if text.lstrip().startswith("{"):
        spelled = yaml_map(text, "--efforts")
        return {str(n): asking(spec, f"--efforts {n}") for n, spec in spelled.items()}
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            there = ", ".join(known) or "none; say how each is asked: '{low: {suffix: ...}}'"
            raise ValueError(
                f"--efforts: this model cannot be asked for '{name}'{nearest(name, known)}; it "
                f"knows {there}"
            )
    return {name: known[name] for name in names}


def yaml_map(text: str, option: str) -> dict[str, Any]:
    """A map on the command line."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{option}: {text!r} is no YAML map; write '{{suffix: ...}}'")
    return found


def spec(text: str | None, option: str) -> Any:
    """A component on the command line: its name, or a map with one."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    found = yaml_map(text, option)
    for name in found:
        if not isinstance(name, str):  # of yes, no, on, off, and numbers
            raise ValueError(f'{option}: {text!r}: YAML reads a name as {name}; quote it, as "no"')
    return found


def asking(settings: Any, option: str) -> Asking:
    """One way of asking."""
    try:
        return Asking(**settings)
    except ValidationError as error:
        raise ValueError(f"{option}: {seam.mistakes(error, Asking.model_fields)}") from None
    except TypeError:
        raise ValueError(f"{option}: {settings!r} is no map; write '{{suffix: ...}}'") from None
