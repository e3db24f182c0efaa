"""Weights on their way to the engines: copies in bounded buckets, every rank in one order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from trainer import zero


def buckets(model: Any, bucket_bytes: int = 2**28) -> Iterator[list[tuple[str, Tensor]]]:
    """Copies of the parameters as (name, tensor), about `bucket_bytes` at a time.

    Collective: every rank must exhaust it. Rank 0 gets the data; the others get as many empty
    lists. Under ZeRO-3 one bucket is gathered, copied and released before the next, so no rank
    holds more than one bucket beside its partition. A tied weight comes once, under the name it
    has first in the module, which is the one that transformers saves. A parameter larger than
    `bucket_bytes` gets a bucket of its own.
    """
    import torch

    leads = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    for group in zero.groups(model.named_parameters(), bucket_bytes):
        with zero.whole([parameter for _, parameter in group]):
            bucket = [(name, p.detach().clone()) for name, p in group] if leads else []
        yield bucket


def state(model: Any, bucket_bytes: int = 2**28) -> dict[str, Tensor]:
    """Everything transformers saves, on the CPU of rank 0 (elsewhere empty). Collective."""
    whole = {name: t.cpu() for bucket in buckets(model, bucket_bytes) for name, t in bucket}
    if whole:
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        entries = model.state_dict().items()
        whole |= {name: t.detach().cpu() for name, t in entries if name not in parameters}
    return whole
