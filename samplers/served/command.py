"""The command that serves a model with hard thinking budgets, for each engine: pure functions."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from samplers.engines.vllm import CPU_BLOCK

CPU_BATCH = 4096
"""Tokens of one forward on a CPU."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What is served, and where."""

    model: str
    """A folder or hub name."""
    name: str
    """What requests call it."""
    host: str = "127.0.0.1"
    port: int = 8000
    markers: tuple[str, str] | None = ("<think>", "</think>")
    """None: no thoughts, so no hard budgets either."""
    parser: str = "hf"
    """How the engine splits thought and answer; `hf` reads the tokenizer's response_template."""
    dtype: str = "auto"
    max_model_len: int | None = None
    """Longest prompt plus response; None: what the engine makes of the model's config."""
    extra: Sequence[str] = ()
    """Flags of the engine itself; they come last, so they win."""


@dataclass(frozen=True, slots=True)
class Command:
    words: tuple[str, ...]
    environment: Mapping[str, str]
    """Beside what the process inherits."""

    @property
    def text(self) -> str:
        """As it can be pasted into a shell."""
        said = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*said, shlex.join(self.words)])


def vllm(
    serving: Serving, kind: Literal["cpu", "cuda"], python: str = "python", kv_mb: int = 256
) -> Command:
    """vLLM's server.

    The forced end is the bare marker: with a phrase before it, the V1 runner writes the phrase into
    answers whose thought had ended by itself. Logprobs are those after temperature, as in training.

    Args:
        kind: what vLLM is built for; its CPU build has no `vllm serve`.
        kv_mb: MiB of KV cache, on a CPU.
    """
    start = (
        [python, "-m", "vllm.entrypoints.openai.api_server", "--model"]
        if kind == "cpu"
        else ["vllm", "serve"]
    )
    words = [*start, serving.model, "--served-model-name", serving.name]
    words += ["--host", serving.host, "--port", str(serving.port), "--dtype", serving.dtype]
    if serving.max_model_len is not None:
        words += ["--max-model-len", str(serving.max_model_len)]
    words += ["--generation-config", "auto", "--logprobs-mode", "processed_logprobs"]
    if serving.markers is not None:
        start_str, end_str = serving.markers
        config = {"reasoning_start_str": start_str, "reasoning_end_str": end_str}
        words += ["--reasoning-parser", serving.parser, "--reasoning-config", json.dumps(config)]
    # It reports nothing to anybody.
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
    if kind == "cpu":
        longest = max(CPU_BATCH, serving.max_model_len or 0)
        words += ["--enforce-eager", "--kv-cache-memory-bytes", str(kv_mb * 2**20)]
        words += ["--block-size", str(CPU_BLOCK)]
        # A CPU's random generators do not rewind: a seeded prompt must not be cut in two.
        words += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(longest)]
        # Compiling takes longer than it saves; servers shall not all bind to the same cores.
        environment |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        environment |= {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    return Command((*words, *serving.extra), environment)


def sglang(serving: Serving, python: str = "python") -> Command:
    """SGLang's server, from its source code (0.5.23): never run by us.

    Strict thinking is what lets a request say `custom_params: {"thinking_budget": N}`.
    """
    words = [python, "-m", "sglang.launch_server", "--model-path", serving.model]
    words += ["--served-model-name", serving.name]
    words += ["--host", serving.host, "--port", str(serving.port), "--dtype", serving.dtype]
    if serving.max_model_len is not None:
        words += ["--context-length", str(serving.max_model_len)]
    if serving.markers is not None:
        parser = "qwen3" if serving.parser == "hf" else serving.parser.replace("_", "-")
        words += ["--reasoning-parser", parser, "--enable-strict-thinking"]
    return Command((*words, *serving.extra), {})
