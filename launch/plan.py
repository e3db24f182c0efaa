"""`laconic plan`: what a recipe would run where, and what it would take. Starts nothing.

Neither torch nor Ray, vLLM or DeepSpeed is needed: it answers on a login node, for this machine as
it is or for a cluster that is described.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from launch import costs, floorplan, measured, throughputs, transport
from launch import hardware as machines
from launch.costs import Estimate
from launch.fits import Fit, Load, deficits, fit, human
from launch.hardware import KIND, Hardware, ranges
from launch.placement import Placement, width
from launch.throughputs import Table
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
    cost: Estimate | None
    """None while nothing is known of the model."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe resolved and placed; `str` of it is what people read."""

    recipe: Recipe
    hardware: Hardware
    stages: tuple[StagePlan, ...]
    deficits: tuple[str, ...]
    """What stands in the way of running it there, a line each; empty: it fits."""
    warnings: tuple[str, ...]
    run: Path | None = None
    """The folder of a run, if it is a run's plan."""

    def __str__(self) -> str:
        lines = ["# Resolved recipe", runfolder.resolved(self.recipe).rstrip()]
        for index, part in enumerate(self.stages):
            lines += ["", f"# Stage {index} ({part.stage.kind}, {part.stage.steps} steps)"]
            lines += _stage(part, self.hardware)
        told = [part.cost for part in self.stages if part.cost and part.cost.run]
        if len(told) == len(self.stages) > 1:
            lines += ["", f"# Cost of all stages: {costs.spent(told)}"]
        lines += ["", f"# Run folder: {self.recipe.folder}"]
        if self.run:
            lines += measured.against(self.run, [(p.stage, p.cost) for p in self.stages])
        if self.deficits:
            lines += ["", "# Missing", *self.deficits]
        return "\n".join([*lines, "", "# Warnings", *(self.warnings or ["none"])])

    def json(self) -> str:
        """The same for programs; sizes in bytes."""
        stages = [_data(part) for part in self.stages]
        recipe = yaml.safe_load(runfolder.resolved(self.recipe))
        nodes = [{"gpus": n.gpus, "kind": n.kind} for n in self.hardware.cluster.nodes]
        out = {"recipe": recipe, "nodes": nodes, "stages": stages}
        return json.dumps(out | {"missing": self.deficits, "warnings": self.warnings}, indent=1)


def plan(
    name: str,
    assignments: Sequence[str] = (),
    hardware: Hardware | None = None,
    table: Table | None = None,
    response: float | None = None,
) -> Plan:
    """Resolve and place recipe `name`, or that of the run folder `name`.

    Args:
        hardware: None: this machine as it is.
        table: measured throughputs; None: those that ship.
        response: tokens of a response, if somebody knows.

    Raises:
        ValueError: a mistake in the recipe, or a cluster that its processes cannot be placed on.
    """
    hardware, table = hardware or machines.this_machine(), table or throughputs.read()
    run = Path(name) if (Path(name) / runfolder.CONFIG).is_file() else None
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always", UserWarning)
        recipe = load(run / runfolder.CONFIG if run else name, assignments)
        recipe = recipe.within(run) if run else recipe
        files = hardware.here or hardware.files
        preflight.check_all(recipe, thorough=False, here=False, files=files)
        if hardware.here:
            preflight.crowded(recipe)
        stages = tuple(
            _planned(stage, recipe, hardware, table, response) for stage in recipe.stages
        )
    missing = [line for part in stages for line in part.deficits]
    told = dict.fromkeys(str(w.message) for w in noticed if w.category is UserWarning)
    return Plan(recipe, hardware, stages, tuple(dict.fromkeys(missing)), tuple(told), run)


def _planned(
    stage: Stage, recipe: Recipe, hardware: Hardware, table: Table, response: float | None
) -> StagePlan:
    folder = locate(stage.model.path) or facts(stage.model.path)
    model = None if folder is None else ModelFolder(folder)
    longest = None if model is None else preflight.longest_prompt(stage, recipe, model)
    prompt = longest or PROMPT
    lines = preflight.lacks(stage) if hardware.here else []
    lines += deficits(stage, model, hardware, prompt)
    fitted = fit(stage, model, hardware, prompt)
    sync = _transport(stage, fitted.placement) if fitted.placement.seats["rollout"] else None
    cores = preflight.cpus() if hardware.here else None
    cost = costs.estimate(stage, fitted, prompt, table, response, cores)
    return StagePlan(stage, model, fitted, prompt, longest is None, sync, tuple(lines), cost)


def _stage(part: StagePlan, hardware: Hardware) -> Iterator[str]:
    stage, model = part.stage, part.model
    yield from _processes(stage, part.fit.placement, hardware)
    yield from _place(part.fit)
    if part.transport:
        shape, room = part.fit.shape, ""
        if part.transport in ("shm", "tcp") and shape is not None:
            room = f" ({human(memory.ring(stage, shape))} of the host's memory)"
        yield f"  weights travel by {part.transport}{room}"
    yield from _sizes(part)
    opened = None
    if model is not None and model.chat_template is not None and stage.markers is not None:
        opened = model.opens(stage.markers.start)
    yield thinking(stage, opened)
    yield from _memory(part)
    if part.cost:
        yield from costs.lines(part.cost)


def _processes(stage: Stage, placement: Placement, hardware: Hardware) -> Iterator[str]:
    yield f"processes on {placement.device}:"
    yield "  driver     1 (loop, data order, statistics, metrics); no logical CPU"
    for role, bundles in placement.bundles.items():
        if bundles:
            nodes = sorted({seat.node for seat in placement.seats[role]})
            yield f"  {role:<10} {len(bundles)} x ({_asked(bundles)}) on {_nodes(nodes)}"
    asked = f"  Ray's logical CPUs: {placement.totals.get('CPU', 0):g}"
    yield asked + (f"; cores here: {preflight.cpus()}" if hardware.here else "")


def _nodes(nodes: Sequence[int]) -> str:
    return f"node{'s' * (len(nodes) > 1)} {ranges(nodes)}"


def _asked(bundles: Sequence[Mapping[str, float]]) -> str:
    """'1 CPU, 0.5 GPU' of each; where they differ, from least to most."""
    out = []
    for what in ("CPU", "GPU"):
        amounts = sorted({bundle[what] for bundle in bundles if what in bundle})
        if amounts:
            out.append("-".join(f"{one:g}" for one in (amounts[0], *amounts[1:][-1:])) + f" {what}")
    kinds = {key.removeprefix(KIND) for bundle in bundles for key in bundle if key.startswith(KIND)}
    return ", ".join(out) + "".join(f" of kind {kind}" for kind in kinds)


def _place(fitted: Fit) -> Iterator[str]:
    """The table, and a line for each sort of GPUs that hold the same roles and as much."""
    placement = fitted.placement
    yield f"place ({floorplan.legend(placement)}):"
    yield from floorplan.table(placement)
    engines = range(len(placement.seats["rollout"]) if placement.device == "cuda" else 0)
    apart = sorted(set(engines).difference(placement.colocated))
    if placement.colocated:
        yield f"  on GPUs of learner ranks: engine {ranges(placement.colocated)}"
    if apart:
        yield f"  on GPUs of their own: engine {ranges(apart)}"
    rows = []
    for (gpus, _, needs, has), loads in _alike(fitted.loads).items():
        where = _nodes(sorted({load.node for load in loads})) + (f" GPU {gpus}" if gpus else "")
        what = _people([name for load in loads for name in load.processes])
        rows.append((where, what, human(needs) + ("" if has is None else f" of {human(has)}")))
    if rows:
        yield "each holds:"
    widths = [max(least, *(len(row[i]) for row in rows)) for i, least in ((0, 16), (1, 36)) if rows]
    for where, what, needs_and_has in rows:
        yield f"  {where:<{widths[0]}} {what:<{widths[1]}} {needs_and_has}"


def _alike(
    loads: Sequence[Load],
) -> dict[tuple[str, tuple[str, ...], float, float | None], list[Load]]:
    """By the GPUs' numbers, the roles and sizes: runs on one node, and the same on others."""

    def key(one: Load) -> tuple[int, tuple[str, ...], int, float | None]:
        roles = tuple(sorted(name.split()[0] for name in one.processes))
        return one.node, roles, round(one.needs), one.has

    out: dict[tuple[str, tuple[str, ...], float, float | None], list[Load]] = {}
    for (_, roles, _, has), run in groupby(loads, key):
        some = list(run)
        gpus = "" if some[0].gpu is None else ranges([one.gpu for one in some])
        needs = float(round(max(one.needs for one in some)))
        out.setdefault((gpus, roles, needs, has), []).extend(some)
    return out


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
    return transport.choose(stage.sync, engine, seats["learner"], seats["rollout"])


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
        "colocated": fitted.placement.colocated,
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
        "cost": part.cost and costs.data(part.cost),
    }
