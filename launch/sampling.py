"""How responses are sampled and how long they may be, where the command line does not say: as the
model's folder does."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.eval import defaults
from trainer.modelfolder import GENERATION, ModelFolder


@dataclass(frozen=True, slots=True)
class Sampling:
    """Of one model, for one command."""

    temperature: float
    """0 is greedy; the next two are then off."""
    top_p: float
    top_k: int
    max_tokens: int | None
    """Cap of a response, by the command line or the folder; None: neither says one."""
    of_folder: tuple[str, ...] = ()
    """What the folder says of these and the command line does not."""


def sampling(args: argparse.Namespace, model: ModelFolder) -> Sampling:
    """What the command line says, else generation_config.json, else all tokens at temperature 1.

    Raises:
        ValueError: the file says what cannot be sampled.
    """
    told = defaults.told(model)
    cap, greedy = told.pop("max_tokens", None), args.temperature == 0
    asked = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if greedy:
        for name in asked.keys() - {"temperature"}:
            option = f"--{name.replace('_', '-')}"
            warnings.warn(f"{option} has no effect with --temperature 0", stacklevel=2)
        told, asked = {}, {"temperature": 0.0}
    found = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, **told, **asked}
    said = [name for name in told if name not in asked]
    if args.max_tokens is None and cap is not None:
        said.append("max_tokens")
    return Sampling(**found, max_tokens=args.max_tokens or cap, of_folder=tuple(said))


def said(settings: Mapping[str, Any]) -> str:
    """One line of what was used.

    Args:
        settings: temperature, top_p, top_k, max_tokens and `of_folder`.
    """
    heat, top_p, top_k = (settings.get(name) for name in ("temperature", "top_p", "top_k"))
    how = [f"temperature {heat:g}" if heat else "temperature 0 (greedy)"]
    how += [f"top_p {top_p:g}"] if top_p is not None and top_p < 1 else []
    how += [f"top_k {top_k}"] if top_k else []
    line = f"{', '.join(how)}; at most {settings['max_tokens']} tokens a response"
    of_folder = settings.get("of_folder") or ()
    return line + (f" ({', '.join(of_folder)}: {GENERATION})" if of_folder else "")
