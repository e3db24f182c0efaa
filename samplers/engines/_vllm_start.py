"""How vLLM is started: its environment, its arguments, what it refuses, and what a model holds."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

from samplers.engines import vllm as settings

SCORE_ROWS = 16
"""Rows scored at once, beside those that are sampled."""
CPU_BATCH = 4096
"""Tokens of one forward on a CPU; vLLM's own default offline."""


def parameters(model: Any, trust: bool) -> tuple[Mapping[str, tuple[int, ...]], list[str], Any]:
    """Shapes by transformers names, the names that a load needs, and the text configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust)
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    shapes = {name: tuple(tensor.shape) for name, tensor in bare.state_dict().items()}
    return shapes, [n for n, _ in bare.named_parameters()], config.get_text_config(decoder=True)


def context_of(text: Any) -> int:
    return int(getattr(text, "max_position_embeddings", None) or CPU_BATCH)


def environment(config: settings.Config) -> None:
    """Read by vLLM when it is imported or started; quiet, and nothing reported to anybody."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="CRITICAL",
        VLLM_NO_USAGE_STATS="1",
        VLLM_DO_NOT_TRACK="1",
    )
    if settings.build() == "cpu":
        # Compiling takes longer than it saves; engines shall not all bind to the same cores.
        os.environ.update(
            TORCHDYNAMO_DISABLE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", TORCH_CPP_LOG_LEVEL="ERROR"
        )
        if config.threads:
            os.environ["OMP_NUM_THREADS"] = str(config.threads)


def launch(arguments: dict[str, Any], config: settings.Config) -> Any:
    """vLLM's engine. What it changes of this process besides is put back."""
    environment(config)
    import torch

    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # a CPU has no Triton
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

    if config.threads and settings.build() == "cpu":
        torch.set_num_threads(config.threads)
    set_threads, preload = torch.set_num_threads, os.environ.get("LD_PRELOAD")
    try:
        llm = LLMEngine.from_engine_args(EngineArgs(**arguments))
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ValueError(refusal(error, config)) from error
    finally:
        torch.set_num_threads = set_threads
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload
    return llm


def refusal(error: Exception, config: settings.Config) -> str:
    """One line of what vLLM said, which may be a report of pydantic's or many pages."""
    reports = error.errors() if hasattr(error, "errors") else ()
    said = " ".join(str(reports[0]["msg"] if reports else error).split())
    said = said.removeprefix("Value error, ")
    if unknown := re.match(r"Model architectures \['(\w+)'\] are not supported", said):
        return f"rollout.engine=vllm: vLLM has no model {unknown[1]}; set rollout.engine=torch"
    names = ["tensor_parallel", "slots", "kv_cache_mb", "kv_cache_dtype", "max_batched_tokens"]
    names = names if settings.build() == "cpu" else ["gpu_memory", *names]
    asked = ", ".join(f"{name}={getattr(config, name)}" for name in names)
    return f"rollout.engine=vllm: cannot start with {asked}: {said[:400]}"


def arguments(model: Any, config: settings.Config, trust: bool, context: int) -> dict[str, Any]:
    """vLLM's EngineArgs for our settings."""
    cpu = settings.build() == "cpu"
    megabytes = config.kv_cache_mb or (settings.CPU_KV_MB if cpu else None)
    out: dict[str, Any] = {
        "model": str(model),
        "trust_remote_code": trust,
        "skip_tokenizer_init": True,
        "dtype": config.dtype,
        "max_num_seqs": config.slots + SCORE_ROWS,
        "max_model_len": -1,  # the model's context, or what the KV cache holds
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "generation_config": "vllm",
        "tensor_parallel_size": config.tensor_parallel,
        "kv_cache_dtype": config.kv_cache_dtype,
        "enforce_eager": cpu or config.eager,
        "worker_extension_cls": "samplers.engines._vllm_worker.Extension",
        "use_tqdm_on_load": False,
    }
    if config.dtype != "float32":
        out["hf_overrides"] = {"head_dtype": "float32"}
    if megabytes is not None:
        out["kv_cache_memory_bytes"] = megabytes * 2**20
    if config.block_size or cpu:
        out["block_size"] = config.block_size or settings.CPU_BLOCK
    if config.max_batched_tokens:
        out["max_num_batched_tokens"] = config.max_batched_tokens
    if cpu:
        # vLLM cannot take back the draw of a seeded row whose prompt it has cut in two: a CPU's
        # random generators do not rewind.
        out["enable_chunked_prefill"] = False
        out["max_num_batched_tokens"] = max(config.max_batched_tokens or CPU_BATCH, context)
    else:
        out["gpu_memory_utilization"] = config.gpu_memory
        out["enable_sleep_mode"] = config.sleep
    return out
