"""What numbers depend on besides the recipe: data, model files, graders, versions, machine.

Facts are texts by name, flat, so that two sets of them compare as two recipes do. They stand in
a run's environment.json from its start on, and in the manifest of each of its checkpoints.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from rewards import grader
from samplers import seam
from samplers.data import digest
from trainer import golds, supervised
from trainer.config import Recipe, Stage
from trainer.modelfolder import CONFIG, TOKENIZER, WEIGHTS, fetch, fingerprint
from trainer.traces import base as traces

STACK = ("laconic", "torch", "transformers", "deepspeed", "ray", "peft", "vllm", "numpy")
SOURCE = ("samplers", "rewards", "trainer", "launch")
ROOT = Path(__file__).resolve().parents[2]
FILE = "environment.json"
OF_THE_RUN, STARTED = "facts", "started"
"""Keys of environment.json: of its recipe's data and model; where the run was started."""
_GPUS = Path("/proc/driver/nvidia/gpus")


def facts(recipe: Recipe, first: int = 0) -> dict[str, str]:
    """Fingerprints of what the recipe reads, stage by stage from `first` on.

    Raises:
        ValueError: data or model are not there, or not as they have to be.
    """
    found: dict[str, str] = {}
    if not first:
        folder = fetch(recipe.stages[0].model.path)
        kinds = {"config": CONFIG, "tokenizer": TOKENIZER, "weights": WEIGHTS}
        found = {f"model.{name}": fingerprint(folder, some) for name, some in kinds.items()}
    for index, stage in enumerate(recipe.stages):
        if index >= first:
            told = _of_stage(stage, recipe.seed, index)
            made = recipe.folder / f"traces-{index}"
            if made.is_dir():
                told["examples"] = traces.read(made).fingerprint
            found |= {f"stages.{index}.{name}": text for name, text in told.items()}
    return found


def of_state(state: Mapping[str, Any]) -> dict[str, str]:
    """Those that a checkpoint's driver state has by itself."""
    stream, stage = state.get("stream", {}), f"stages.{state['stage']}"
    found = {
        f"{stage}.dataset.train": stream.get("fingerprint"),
        f"{stage}.examples": stream.get("stream", {}).get("fingerprint"),
    }
    return {name: text for name, text in found.items() if text}


def _of_stage(stage: Stage, seed: int, index: int) -> dict[str, str]:
    found = {
        "dataset.train": _trained(stage, seed, index),
        "grader": grader.load(stage.verifier).name,
    }
    if stage.evaluation is not None and stage.evaluation.every:
        found["dataset.test"] = golds.load(stage, "test", seed).fingerprint
    return found | {f"code.{name}": _source(name) for name in _theirs(stage)}


def _trained(stage: Stage, seed: int, index: int) -> str:
    if stage.kind == "rl" or stage.supervised.traces is not None:
        return golds.training(stage, seed, index).fingerprint
    changes: list[Mapping[str, Any]] = [phase.settings for phase in stage.supervised.curriculum]
    sets = [supervised.examples(stage.supervised, stage.data, c, seed) for c in [*changes, {}]]
    return digest(" ".join(one.fingerprint for one in sets))


def _theirs(stage: Stage) -> list[str]:
    """Modules of the user's own that the stage names."""
    specs = [stage.verifier, *stage.shaping, stage.budget, stage.allocation, stage.algorithm]
    some = (stage.data.task, stage.supervised.traces, stage.rollout.engine.name)
    names = [seam.split(spec)[0] for spec in (*specs, *some) if spec]
    return sorted({name.partition(":")[0] for name in names if {".", ":"} & set(name)})


def _source(module: str) -> str:
    """Of the module's own file; what that imports is not looked at."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        return ""
    return hashlib.blake2b(Path(spec.origin).read_bytes(), digest_size=8).hexdigest()


def versions() -> dict[str, str]:
    """Of the software and the machine: ours with a hash of its source and, in a git checkout, the
    revision (`-dirty`: with changes that are not committed)."""
    found = {}
    for name in STACK:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found |= {"code": _code(), "python": platform.python_version(), "machine": _machine()}
    if revision := _revision():
        found["revision"] = revision
    return found


@cache
def _code() -> str:
    found = hashlib.blake2b(digest_size=8)
    for name in SOURCE:
        for path in sorted((ROOT / name).rglob("*.py")):
            found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()


@cache
def _revision() -> str:
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    free = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, env=free)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if not done.returncode else ""


@cache
def _machine() -> str:
    """'x86_64, AMD EPYC 9654, 2 x NVIDIA H100': without importing anything that wakes a GPU."""
    parts = [platform.machine(), _field(Path("/proc/cpuinfo"), "model name")]
    kinds = [_field(path, "Model") for path in sorted(_GPUS.glob("*/information"))]
    parts += [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
    return ", ".join(filter(None, parts))


def _field(path: Path, name: str) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")


def write(folder: Path, found: Mapping[str, str]) -> None:
    """environment.json of the run in `folder`, started here and now."""
    whole = {**versions(), OF_THE_RUN: dict(found), STARTED: {"cwd": os.getcwd()}}
    text = json.dumps(whole, indent=1)
    beside = folder / f"{FILE}.partial"
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(folder / FILE)


def recorded(folder: Path) -> tuple[dict[str, str], str]:
    """The facts in a run's environment.json, and where the run was started; empty: not known."""
    try:
        stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}, ""
    if not isinstance(stored, dict):
        return {}, ""
    found, started = stored.pop(OF_THE_RUN, None), stored.pop(STARTED, None)
    found, started = (one if isinstance(one, dict) else {} for one in (found, started))
    return {**stored, **found}, str(started.get("cwd", ""))
