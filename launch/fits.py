"""Whether a stage fits: the memory of each process, of each GPU, and what would free some.

The estimates are trainer/memory.py's; here they meet a placement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launch.hardware import Hardware, ranges
from launch.placement import Place, Placement, Role, place
from samplers.engines import vllm
from trainer import memory
from trainer.config import Stage
from trainer.faults import NAMES
from trainer.lora import LoraConfig
from trainer.memory import Parts, Shape
from trainer.modelfolder import ModelFolder

RESTING = ("process", "weights", "optimiser", "reference")
"""What a learner holds while engines on its GPU generate."""
WORTH = 0.02
"""Settings that free less than this share of a GPU are not worth a word."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one GPU (or, without GPUs, one node's memory) has to hold."""

    node: int
    gpu: int | None
    """None: the node's own memory."""
    processes: tuple[str, ...]
    needs: float
    has: float | None
    """None: unknown."""

    @property
    def missing(self) -> float:
        return 0.0 if self.has is None else max(0.0, self.needs - self.has)


@dataclass(frozen=True, slots=True)
class Fit:
    """A stage on given hardware."""

    placement: Placement
    shape: Shape | None
    """None: a model of which nothing is known here."""
    parts: Mapping[str, Parts]
    """Bytes of one process of each role, by what they are for."""
    loads: tuple[Load, ...]
    cached: int | None
    """Tokens that one engine's KV cache holds."""
    length: int
    """Tokens of the longest row: prompt and response."""

    @property
    def missing(self) -> float:
        """Bytes that the fullest GPU or node lacks."""
        return max((load.missing for load in self.loads), default=0.0)


def fit(stage: Stage, model: ModelFolder | None, hardware: Hardware, prompt: int) -> Fit:
    """Place the stage and estimate what every process holds.

    Args:
        prompt: tokens of the longest prompt.

    Raises:
        ValueError: it cannot be placed at all.
    """
    placement = place(stage, hardware.cluster)
    length = prompt + stage.rollout.max_tokens
    known = None if model is None else memory.shape(model, stage.model.lora)
    if known is None:
        return Fit(placement, None, {}, (), None, length)
    device = placement.device
    parts = {"learner": memory.learner(stage, known, device, length)}
    cached = None
    sizes = {_gpu_bytes(placement, seat.node) for seat in placement.seats["rollout"]}
    engines = {size: memory.rollout(stage, known, device, prompt, size) for size in sizes}
    if engines:  # the smallest GPU is the one that counts
        parts["rollout"] = engines[min(sizes, key=lambda size: size or 0.0)]
        cached = memory.cached_tokens(stage, known, parts["rollout"]["key/value cache"])
    if device == "cpu":
        parts |= {role: {"process": memory.PROCESS["cpu"][role]} for role in ("driver", "grader")}
    if device == "cuda":
        loads = tuple(_on_gpus(stage, placement, parts["learner"], engines))
    else:
        loads = tuple(_on_nodes(placement, parts))
    return Fit(placement, known, parts, loads, cached, length)


def _gpu_bytes(placement: Placement, node: int) -> float | None:
    return placement.cluster.nodes[node].gpu_bytes


def _on_gpus(
    stage: Stage, placement: Placement, learner: Parts, engines: Mapping[float | None, Parts]
) -> Iterator[Load]:
    """By GPU. Engines that sleep take turns with a learner on the same one.

    Args:
        engines: what one holds, by the memory of its GPUs.
    """
    held: dict[Place, list[tuple[Role, int]]] = {}
    for role in ("learner", "rollout"):
        for index, seat in enumerate(placement.seats[role]):
            for gpu in seat.gpus:
                held.setdefault((seat.node, gpu), []).append((role, index))
    sleeps = isinstance(stage.rollout.engine, vllm.Config) and stage.rollout.engine.sleep
    for (node, gpu), processes in sorted(held.items()):
        has, roles = _gpu_bytes(placement, node), [role for role, _ in processes]
        engine, count = engines.get(has, {}), roles.count("rollout")
        rank, held_by_one = sum(learner.values()), sum(engine.values())
        needs = rank * roles.count("learner") + held_by_one * count
        if sleeps and len(set(roles)) == 2:
            resting = sum(learner.get(name, 0.0) for name in RESTING)
            needs = max(rank + count * engine["process"], resting + count * held_by_one)
        names = tuple(f"{role} {index}" for role, index in processes)
        yield Load(node, gpu, names, needs, has)


def _on_nodes(placement: Placement, parts: Mapping[str, Parts]) -> Iterator[Load]:
    """Without GPUs: the memory of each node; the driver is on the first."""
    for node, here in enumerate(placement.cluster.nodes):
        names = ["driver"] if node == 0 else []
        for role, seats in placement.seats.items():
            names += [f"{role} {i}" for i, seat in enumerate(seats) if seat.node == node]
        each = [parts[name.split()[0]] for name in names]
        needs = sum(sum(one.values()) for one in each)
        shared = [one.get(memory.SHARED, 0.0) for one in each]
        needs -= sum(shared) - max(shared, default=0.0)  # in all of them, and there once
        yield Load(node, None, tuple(names), needs, here.host_bytes)


def deficits(stage: Stage, model: ModelFolder | None, hardware: Hardware, prompt: int) -> list[str]:
    """What does not fit, a line each: where, how much is missing, what would free how much."""
    now = fit(stage, model, hardware, prompt)
    out = _caches(stage, now, hardware)
    short = [load for load in now.loads if load.missing]
    for needs, has in dict.fromkeys((load.needs, load.has or 0.0) for load in short):
        alike = [load for load in short if (load.needs, load.has) == (needs, has)]
        what = f"needs {human(needs)} and has {human(has)}: {human(needs - has)} missing"
        who = ", ".join(alike[0].processes).replace("rollout", NAMES["rollout"])
        out.append(f"{_where(alike)} {what} ({who}{', ...' if len(alike) > 1 else ''})")
    if short:
        freed = [(f, name) for name, f in _remedies(stage, model, hardware, prompt, now)]
        told = [f"{name} {human(f)}" for f, name in sorted(freed, reverse=True)]
        out.append(f"would free there: {'; '.join(told) or 'nothing known here; more GPUs'}")
    return out


def _caches(stage: Stage, now: Fit, hardware: Hardware) -> list[str]:
    """An engine must hold one whole response, or it can never finish one."""
    config = stage.rollout.engine
    if now.cached is None or now.cached >= now.length or not isinstance(config, vllm.Config):
        return []
    cache = now.parts["rollout"]["key/value cache"]
    each = cache / now.cached if now.cached > 0 else None
    found = f"engine: its KV cache of {human(cache)} holds {max(0, now.cached):,} tokens, "
    found += f"and a prompt with its response has up to {now.length:,}"
    if each:
        found += f": {human((now.length - now.cached) * each)} missing"
    if config.kv_cache_mb:
        return [f"{found}; raise rollout.engine.kv_cache_mb={config.kv_cache_mb}"]
    if all(node.gpu_bytes is None for node in hardware.cluster.nodes):
        return []
    return [
        f"{found}; raise rollout.engine.gpu_memory={config.gpu_memory:g} or "
        f"rollout.engine.tensor_parallel={config.tensor_parallel}, or set "
        "rollout.engine.kv_cache_dtype=fp8"
    ]


def _remedies(
    stage: Stage, model: ModelFolder | None, hardware: Hardware, prompt: int, now: Fit
) -> Iterator[tuple[str, float]]:
    """Settings, and the bytes that each alone frees on the fullest GPU or node."""
    fullest = max(now.loads, key=lambda load: load.missing)
    for name, changes in _changes(stage):
        try:
            other = fit(_with(stage, changes), model, hardware, prompt)
        except ValueError:  # it cannot be placed so
            continue
        there = [o for o in other.loads if (o.node, o.gpu) == (fullest.node, fullest.gpu)]
        freed = fullest.needs - (there[0].needs if there else 0.0)
        if freed > WORTH * (fullest.has or fullest.needs):
            yield name, freed


def _changes(stage: Stage) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings that may free memory, as they would be written and as they are put."""
    learner, engine = stage.learner, stage.rollout.engine
    half = stage.tokens_per_micro_batch // 2
    if not learner.gradient_checkpointing:
        yield "learner.gradient_checkpointing=true", {"learner.gradient_checkpointing": True}
    yield f"tokens_per_micro_batch={half}", {"tokens_per_micro_batch": max(1, half)}
    yield (
        f"rollout.max_tokens={stage.rollout.max_tokens // 2}",
        {"rollout.max_tokens": max(1, stage.rollout.max_tokens // 2)},
    )
    yield (
        f"learner.head_elements={learner.head_elements // 4}",
        {"learner.head_elements": max(1, learner.head_elements // 4)},
    )
    for zero in range(learner.zero + 1, 4):
        if learner.ranks > 1 and stage.optim.name != "muon":
            yield f"learner.zero={zero}", {"learner.zero": zero}
    if learner.ranks > 1 or learner.zero:
        yield f"learner.ranks={2 * learner.ranks}", {"learner.ranks": 2 * learner.ranks}
    if stage.model.dtype == "float32":
        yield "model.dtype=bfloat16", {"model.dtype": "bfloat16"}
    if stage.model.lora is None and stage.optim.name == "adamw":
        yield "model.lora=true", {"model.lora": LoraConfig()}
    if isinstance(engine, vllm.Config):
        lower = round(engine.gpu_memory / 2, 2)
        yield f"rollout.engine.gpu_memory={lower:g}", {"rollout.engine.gpu_memory": lower}
        if not engine.sleep:
            yield "rollout.engine.sleep=true", {"rollout.engine.sleep": True}
    yield (
        f"rollout.engine.slots={engine.slots // 2}",
        {"rollout.engine.slots": max(1, engine.slots // 2)},
    )
    if stage.rollout.workers > 1:
        fewer = stage.rollout.workers // 2
        yield f"rollout.workers={fewer}", {"rollout.workers": fewer}


def _with(stage: Stage, changes: Mapping[str, Any]) -> Stage:
    """The stage with fields changed by dotted name; nothing is validated again."""
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        chain: list[Any] = [stage]
        for name in path:
            chain.append(getattr(chain[-1], name))
        changed = chain.pop().model_copy(update={last: value})
        for name in reversed(path):
            changed = chain.pop().model_copy(update={name: changed})
        stage = changed
    return stage


def _where(loads: list[Load]) -> str:
    """'node 0 GPU 0, 2; node 1-3 GPU 0'."""
    nodes: dict[int, list[int]] = {}
    for load in loads:
        nodes.setdefault(load.node, []).extend([] if load.gpu is None else [load.gpu])
    alike: dict[str, list[int]] = {}
    for node, gpus in nodes.items():
        alike.setdefault(f" GPU {ranges(gpus)}" if gpus else "", []).append(node)
    return "; ".join(f"node {ranges(some)}{gpus}" for gpus, some in alike.items())


def human(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if abs(size) >= 2**28 else f"{size / 2**20:.1f} MiB"
