"""`laconic plan`: what a recipe would run where, and what it would take. Starts nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from launch.doctor import gpus
from launch.placement import needs_engines, place
from trainer import preflight, runfolder
from trainer.config import Stage, load
from trainer.modelfolder import ModelFolder, locate

BYTES = {"float32": 4, "bfloat16": 2}
RESIDENT = {"driver": 0.6, "learner": 1.0, "rollout": 0.7, "grader": 0.2}
"""GiB that a process of each kind holds before it holds a model (torch, Ray, transformers)."""


def plan(name: str, assignments: Sequence[str] = ()) -> str:
    """The resolved recipe and, stage by stage, processes, sizes, memory and warnings.

    Raises:
        ValueError: whatever `laconic train` would refuse before it starts a process.
    """
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always", UserWarning)
        recipe = load(name, assignments)
        preflight.check_all(recipe, thorough=False)
        lines = ["# Resolved recipe", runfolder.resolved(recipe).rstrip()]
        for index, stage in enumerate(recipe.stages):
            lines += ["", f"# Stage {index} ({stage.kind}, {stage.steps} steps)", *_stage(stage)]
    lines += ["", f"# Run folder: {recipe.folder}"]
    told = dict.fromkeys(str(w.message) for w in noticed if w.category is UserWarning)
    lines += ["", "# Warnings", *(told or ["none"])]
    return "\n".join(lines)


def _stage(stage: Stage) -> Iterator[str]:
    found = gpus()
    folder = locate(stage.model.path)
    model = None if folder is None else ModelFolder(folder)
    yield from _placed(stage, len(found))
    yield from _sizes(stage)
    yield thinking(stage, model.opens(stage.markers.start) if model and stage.markers else None)
    yield from _memory(stage, model)


def _placed(stage: Stage, gpu_count: int) -> Iterator[str]:
    placement = place(stage, gpu_count)
    yield f"processes on {placement.device}:"
    yield "  driver     1 (loop, data order, statistics, metrics); no logical CPU"
    for role, bundles in placement.bundles.items():
        if bundles:
            each = ", ".join(f"{amount:g} {kind}" for kind, amount in bundles[0].items())
            how = placement.strategies[role]
            yield f"  {role:<10} {len(bundles)} x ({each}), placed {how}"
    asked = placement.totals.get("CPU", 0)
    yield f"  Ray's logical CPUs: {asked:g}; cores this process may use: {preflight.cpus()}"


def _sizes(stage: Stage) -> Iterator[str]:
    yield "a step:"
    yield f"  prompts          {stage.prompts_per_step}"
    if stage.kind == "rl":
        rollouts = stage.prompts_per_step * stage.rollouts_per_prompt
        cap = stage.rollout.max_tokens
        yield f"  rollouts         {rollouts} ({stage.rollouts_per_prompt} per prompt)"
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


def _memory(stage: Stage, model: ModelFolder | None) -> Iterator[str]:
    """Weights, gradients, optimiser, key/value cache; the rest of a process is a round figure."""
    count = None if model is None else model.parameters
    if model is None or count is None:
        yield f"memory: unknown until '{stage.model.path}' is here"
        return
    yield f"memory, estimated ({count:,} parameters, {stage.model.dtype}):"
    for role, parts in _parts(stage, model, count):
        total = RESIDENT[role] * 2**30 + sum(parts.values())
        items = ", ".join(f"{name} {_human(size)}" for name, size in parts.items())
        yield f"  {role:<10} {_human(total)} each: process {RESIDENT[role]} GiB, {items}"


def _parts(stage: Stage, model: ModelFolder, count: int) -> Iterator[tuple[str, dict[str, float]]]:
    each, ranks, zero = BYTES[stage.model.dtype], stage.learner.ranks, stage.learner.zero
    moments = 1 if stage.optim.name == "muon" else 2
    master = 0 if each == 4 else 4  # bf16 trains on an fp32 copy
    parts: dict[str, float] = {
        "weights": count * each / (ranks if zero >= 3 else 1),
        "gradients": count * _gradient_bytes(stage) / (ranks if zero >= 2 else 1),
        "optimiser": count * (4 * moments + master) / (ranks if zero >= 1 else 1),
        # of one chunk of the head, with its gradient
        "logits": 2.0 * 4 * min(stage.learner.head_elements, _logits(stage, model)),
        "activations": stage.tokens_per_micro_batch * _activations(stage, model) * each,
    }
    yield "learner", parts
    per_token = model.kv_bytes_per_token(each)
    if needs_engines(stage):
        tokens = stage.rollout.engine.slots * (stage.rollout.max_tokens + 64)
        cache = {"key/value cache": float(tokens * per_token)} if per_token else {}
        yield "rollout", {"weights": float(count * each), **cache}


def _gradient_bytes(stage: Stage) -> int:
    """Per weight. In bfloat16 ZeRO 1 to 3 add micro-batches up in float32, ZeRO 1 beside them."""
    if stage.model.dtype == "float32":
        return 4
    return {0: 2, 1: 6}.get(stage.learner.zero, 4)


def _logits(stage: Stage, model: ModelFolder) -> int:
    return stage.tokens_per_micro_batch * int(model.config.get("vocab_size") or 0)


def _activations(stage: Stage, model: ModelFolder) -> int:
    """Numbers kept per token: about 16 widths and 4 feed-forward widths a layer (1 with
    gradient checkpointing), as in Korthikanti et al. (arXiv:2205.05198) without attention maps."""
    get = model.config.get
    width = get("hidden_size") or get("n_embd") or 0
    layers = get("num_hidden_layers") or get("n_layer") or 0
    ffn = get("intermediate_size") or get("n_inner") or 4 * width
    if stage.learner.gradient_checkpointing:
        return layers * width + 16 * width + 4 * ffn
    return layers * (16 * width + 4 * ffn)


def _human(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
