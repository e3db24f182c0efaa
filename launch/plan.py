"""`laconic plan`: what a recipe would run where, and what it would take. Starts nothing.

Neither torch nor Ray, vLLM or DeepSpeed is needed: it answers on a login node, for this machine as
it is or for a cluster that is described.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import yaml

from launch import hardware as machines
from launch import transport
from launch.fits import Fit, Load, deficits, fit, human, ranges
from launch.hardware import Hardware
from launch.placement import Placement, width
from trainer import compatibility, memory, preflight, runfolder
from trainer.config import Recipe, Stage, load
from trainer.modelfolder import ModelFolder, facts, locate

PROMPT = 512
"""Tokens of the longest prompt where neither the prompts nor the tokenizer are here."""
NAMES = {"learner": "learner", "rollout": "engine", "grader": "grader", "driver": "driver"}


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage of a plan."""

    stage: Stage
    model: ModelFolder | None
    fit: Fit
    prompt: int
    """Tokens of the longest prompt."""
    guessed: bool
    """Nobody knows the prompts here: `prompt` is assumed."""
    transport: str | None
    """How weights come to the engines; None: there are none."""
    deficits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe resolved and placed; `str` of it is what people read."""

    recipe: Recipe
    hardware: Hardware
    stages: tuple[StagePlan, ...]
    deficits: tuple[str, ...]
    """What stands in the way of running it there, a line each; empty: it fits."""
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        lines = ["# Resolved recipe", runfolder.resolved(self.recipe).rstrip()]
        for index, part in enumerate(self.stages):
            lines += ["", f"# Stage {index} ({part.stage.kind}, {part.stage.steps} steps)"]
            lines += _stage(part, self.hardware)
        lines += ["", f"# Run folder: {self.recipe.folder}"]
        if self.deficits:
            lines += ["", "# Missing", *self.deficits]
        return "\n".join([*lines, "", "# Warnings", *(self.warnings or ["none"])])

    def json(self) -> str:
        """The same for programs; sizes in bytes."""
        stages = [_data(part) for part in self.stages]
        recipe = yaml.safe_load(runfolder.resolved(self.recipe))
        out = {"recipe": recipe, "stages": stages}
        return json.dumps(out | {"missing": self.deficits, "warnings": self.warnings}, indent=1)


def plan(name: str, assignments: Sequence[str] = (), hardware: Hardware | None = None) -> Plan:
    """Resolve and place recipe `name`; without `hardware`, on this machine as it is.

    Raises:
        ValueError: a mistake in the recipe, or a cluster that its processes cannot be placed on.
    """
    hardware = hardware or machines.this_machine()
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always", UserWarning)
        recipe = load(name, assignments)
        preflight.check_all(recipe, thorough=False, here=False)
        if hardware.here:
            preflight.crowded(recipe)
        stages = tuple(_planned(stage, recipe, hardware) for stage in recipe.stages)
    missing = [line for part in stages for line in part.deficits]
    told = dict.fromkeys(str(w.message) for w in noticed if w.category is UserWarning)
    return Plan(recipe, hardware, stages, tuple(dict.fromkeys(missing)), tuple(told))


def _planned(stage: Stage, recipe: Recipe, hardware: Hardware) -> StagePlan:
    folder = locate(stage.model.path) or facts(stage.model.path)
    model = None if folder is None else ModelFolder(folder)
    longest = None if model is None else preflight.longest_prompt(stage, recipe, model)
    prompt = longest or PROMPT
    lines = preflight.lacks(stage) if hardware.here else []
    lines += deficits(stage, model, hardware, prompt)
    fitted = fit(stage, model, hardware, prompt)
    sync = _transport(stage, fitted.placement) if fitted.placement.seats["rollout"] else None
    return StagePlan(stage, model, fitted, prompt, longest is None, sync, tuple(lines))


def _stage(part: StagePlan, hardware: Hardware) -> Iterator[str]:
    stage, model = part.stage, part.model
    yield from _processes(stage, part.fit.placement, hardware)
    yield from _seats(part.fit, hardware)
    if part.transport:
        shape, room = part.fit.shape, ""
        if part.transport == "shm" and shape is not None:
            room = f" ({human(memory.ring(stage, shape))} of the host's memory)"
        yield f"  weights travel by {part.transport}{room}"
    yield from _sizes(part)
    opened = None
    if model is not None and model.chat_template is not None and stage.markers is not None:
        opened = model.opens(stage.markers.start)
    yield thinking(stage, opened)
    yield from _memory(part)


def _processes(stage: Stage, placement: Placement, hardware: Hardware) -> Iterator[str]:
    yield f"processes on {placement.device}:"
    yield "  driver     1 (loop, data order, statistics, metrics); no logical CPU"
    for role, bundles in placement.bundles.items():
        if bundles:
            each = ", ".join(f"{amount:g} {kind}" for kind, amount in bundles[0].items())
            how = placement.strategies[role]
            yield f"  {role:<10} {len(bundles)} x ({each}), placed {how}"
    asked = f"  Ray's logical CPUs: {placement.totals.get('CPU', 0):g}"
    yield asked + (f"; cores here: {preflight.cpus()}" if hardware.here else "")


def _seats(fitted: Fit, hardware: Hardware) -> Iterator[str]:
    """A line for each run of GPUs that hold the same kinds of processes and as much."""
    placement = fitted.placement
    yield "place:"
    loads = fitted.loads or _unsized(placement, hardware)
    for alike in _alike(loads):
        where = f"node {alike[0].node}"
        if alike[0].gpu is not None:
            where += f" GPU {ranges([one.gpu for one in alike])}"
        what = _people([name for load in alike for name in load.processes])
        line = f"  {where:<16} {what:<36}"
        if fitted.loads:
            has = "" if alike[0].has is None else f" of {human(alike[0].has)}"
            line += f" {human(max(one.needs for one in alike))}{has}"
        yield line.rstrip()
    if placement.device == "cuda":
        for node in range(len(hardware.cluster.gpus)):
            names = ["driver"] if node == 0 else []
            seats = placement.seats["grader"]
            names += [f"grader {i}" for i, seat in enumerate(seats) if seat.node == node]
            if names:
                yield f"  {f'node {node} CPU':<16} {_people(names)}"


def _unsized(placement: Placement, hardware: Hardware) -> list[Load]:
    """Loads of a model whose size is not known."""
    held: dict[tuple[int, int | None], list[str]] = {}
    for role, seats in placement.seats.items():
        for index, seat in enumerate(seats):
            for gpu in seat.gpus or ((None,) if placement.device == "cpu" else ()):
                held.setdefault((seat.node, gpu), []).append(f"{role} {index}")
    return [Load(n, g, tuple(names), 0.0, hardware.gpu_bytes) for (n, g), names in held.items()]


def _alike(loads: Sequence[Load]) -> list[list[Load]]:
    """Runs of loads on one node with processes of the same roles and the same sum."""

    def key(one: Load) -> tuple[int, list[str], int]:
        return one.node, sorted(name.split()[0] for name in one.processes), round(one.needs)

    return [list(run) for _, run in groupby(loads, key)]


def _people(names: Sequence[str]) -> str:
    """'learner 0, learner 1, rollout 0' as 'learner 0-1, engine 0'."""
    by_role: dict[str, list[int]] = {}
    for name in names:
        role, _, index = name.partition(" ")
        by_role.setdefault(NAMES[role], []).extend([int(index)] if index else [])
    return ", ".join(
        f"{role} {ranges(sorted(set(indices)))}".strip() for role, indices in by_role.items()
    )


def _transport(stage: Stage, placement: Placement) -> str:
    """How weights will come to the engines.

    Raises:
        ValueError: they cannot, from where the learners are to where the engines are.
    """
    seats = {
        role: [
            transport.Seat(str(seat.node), tuple(map(str, seat.gpus)), readers=width(stage))
            for seat in placement.seats[role]
        ]
        for role in ("learner", "rollout")
    }
    engine = stage.rollout.engine.name
    return transport.choose(stage.sync.transport, engine, seats["learner"], seats["rollout"])


def _sizes(part: StagePlan) -> Iterator[str]:
    stage = part.stage
    yield "a step:"
    yield f"  prompts          {stage.prompts_per_step}"
    if stage.kind == "rl":
        rollouts, trained = compatibility.spends(stage), stage.rollouts_per_prompt
        each = f"{rollouts} ({trained} per prompt)"
        if rollouts > stage.prompts_per_step * trained:
            each = f"up to {rollouts} ({trained} per prompt train)"
        cap = stage.rollout.max_tokens
        known = "assumed: data or tokenizer are not here" if part.guessed else "the longest"
        yield f"  rollouts         {each}"
        yield f"  prompt tokens    {part.prompt} ({known})"
        yield f"  response tokens  at most {rollouts * cap:,} ({cap} per rollout)"
    updates = stage.updates_per_batch * stage.epochs
    yield f"  optimiser steps  {updates}"
    yield f"  micro-batch      {stage.tokens_per_micro_batch:,} tokens per rank"


def thinking(stage: Stage, opened: bool | None) -> str:
    """What of a response is thought. `opened`: the chat template opens it; None: nobody knows."""
    if stage.markers is None:
        return "thinking: none (the whole response is the answer)"
    who = "the chat template opens it" if opened else "the model has to open it"
    if not stage.data.chat:
        who = "prompts are plain text, which no template opens"
    elif opened is None:
        who = "who opens it is told when the run starts"
    return f"thinking: from {stage.markers.start} to {stage.markers.end}; {who}"


def _memory(part: StagePlan) -> Iterator[str]:
    """A table: what for, and how much of each process."""
    stage, fitted = part.stage, part.fit
    if fitted.shape is None:
        yield f"memory: unknown until '{stage.model.path}' is here"
        return
    count = f"{fitted.shape.parameters:,} parameters"
    if stage.model.lora is not None:
        count += f", {fitted.shape.trained:,} of them trained"
    yield f"memory, estimated ({count}, {stage.model.dtype}), of one process at its peak:"
    roles = list(fitted.parts)
    per = dict.fromkeys(roles, "")
    if "rollout" in roles and width(stage) > 1:
        per["rollout"] = "/GPU"
    yield "  " + " " * 16 + "".join(f"{NAMES[role] + per[role]:>13}" for role in roles)
    items = list(dict.fromkeys(name for parts in fitted.parts.values() for name in parts))
    for item in [*items, "total"]:
        cells = [
            sum(parts.values()) if item == "total" else parts.get(item)
            for parts in fitted.parts.values()
        ]
        yield (
            f"  {item:<16}" + "".join(f"{'' if c is None else human(c):>13}" for c in cells)
        ).rstrip()
    if fitted.cached is not None:
        rows = fitted.cached // fitted.length
        yield (
            f"  an engine's cache holds {max(0, fitted.cached):,} tokens: {rows:,} whole responses "
            f"at once, of up to {stage.rollout.engine.slots} rows"
        )


def _data(part: StagePlan) -> dict[str, Any]:
    stage, fitted = part.stage, part.fit
    rollouts = compatibility.spends(stage)
    return {
        "kind": stage.kind,
        "steps": stage.steps,
        "device": fitted.placement.device,
        "processes": [
            {"role": role, "index": index, "node": seat.node, "gpus": seat.gpus, "bundle": bundle}
            for role, seats in fitted.placement.seats.items()
            for index, (seat, bundle) in enumerate(
                zip(seats, fitted.placement.bundles[role], strict=True)
            )
        ],
        "step": {
            "prompts": stage.prompts_per_step,
            "rollouts": rollouts,
            "prompt_tokens": part.prompt,
            "response_tokens": rollouts * stage.rollout.max_tokens,
            "optimiser_steps": stage.updates_per_batch * stage.epochs,
        },
        "transport": part.transport,
        "parameters": None if fitted.shape is None else fitted.shape.parameters,
        "trained": None if fitted.shape is None else fitted.shape.trained,
        "memory": fitted.parts,
        "loads": [
            {"node": one.node, "gpu": one.gpu, "processes": one.processes}
            | {"needs": one.needs, "has": one.has, "missing": one.missing}
            for one in fitted.loads
        ],
        "cached_tokens": fitted.cached,
    }
