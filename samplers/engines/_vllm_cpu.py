"""Faster weight loads for vLLM's CPU build, where every matrix is packed anew for oneDNN.

Packing takes longer than all copies of a load. Measured (100M parameters in float32, two engines):
410 ms as vLLM does it, 250 where malloc keeps its memory (`vllm.environment`), 150 with the packing
beside the copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import torch

_packed: set[tuple[Any, ...]] = set()
"""Sizes and types of matrices that oneDNN has packed before."""


@contextlib.contextmanager
def packing() -> Iterator[None]:
    """Inside, matrices are packed by a thread beside this one; all are when it ends."""
    import vllm._custom_ops as ops

    if not getattr(ops, "_supports_onednn", False):
        yield
        return
    asked: list[Future[None]] = []
    at_once = ops.create_onednn_mm

    def ask(weight_KN: torch.Tensor, primitive_cache_size: int = 128) -> Any:
        kind = (*weight_KN.shape, weight_KN.dtype)
        if kind not in _packed:  # what oneDNN refuses, vLLM has to hear: it then does without
            handler = at_once(weight_KN, primitive_cache_size)
            _packed.add(kind)
            return handler
        handler = ops.CPUDNNLGEMMHandler()
        handler.k, handler.n = weight_KN.size()
        asked.append(thread.submit(_pack, handler, weight_KN, primitive_cache_size))
        return handler

    with ThreadPoolExecutor(1) as thread, patch.object(ops, "create_onednn_mm", ask):
        yield
        for one in asked:
            one.result()


def _pack(handler: Any, weight_KN: torch.Tensor, primitive_cache_size: int) -> None:
    """What vLLM's create_onednn_mm does, on a handler that is already in its place."""
    address = torch.ops._C.create_onednn_mm_handler(weight_KN, primitive_cache_size)
    handler.handler_tensor = torch.tensor(address, dtype=torch.int64)
