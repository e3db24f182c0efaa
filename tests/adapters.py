"""Learners with adapters, their batches, and what is looked at: what the tests of LoRA share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.test_learner_accumulation import sequences
from trainer.batching import pack
from trainer.learner import Learner, LearnerConfig
from trainer.lora import LoraConfig
from trainer.losses import LossConfig
from trainer.optim import OptimConfig

CE = LossConfig(name="ce")
KL = LossConfig(name="ce", kl="k2", kl_coef=0.1)
LORA = LoraConfig(rank=4, alpha=6)
ADAMW = OptimConfig(lr=1e-2, weight_decay=0.1, schedule="cosine", warmup_steps=1)
Weights = dict[str, np.ndarray]


@contextmanager
def learner(
    rank: int, folder: str, ranks: int, zero: int, optim: OptimConfig = ADAMW, **settings: Any
) -> Iterator[Learner]:
    known = LearnerConfig.model_fields.keys() & settings.keys()
    config: dict[str, Any] = {"zero": zero, "ranks": ranks, "clip_grad": 0.0}
    config |= {name: settings.pop(name) for name in known}
    given: dict[str, Any] = {"lora": LORA, "total_steps": 9, "rank": rank, "port": 0} | settings
    loss = given.pop("loss", CE)
    one = Learner(folder, LearnerConfig(**config), optim, loss, **given)
    try:
        yield one
    finally:
        one.close()


def updates(rank: int, ranks: int, loss: LossConfig = CE, seed: int = 0, tokens: int = 40) -> Any:
    rows = sequences(seed)[:: -1 if tokens % 2 else 1]
    batch = pack(rows, loss, tokens_per_micro_batch=tokens, ranks=ranks)
    return [list(step[rank]) for step in batch.updates]


def merged(one: Learner) -> Weights:
    """As the engines get them."""
    return {n: t.float().numpy() for bucket in one.buckets(4096) for n, t in bucket}


def adapter(one: Learner) -> Weights:
    from trainer import weights

    return {n: t.float().numpy() for n, t in weights.adapter(one.model, 4096).items()}


def frozen(one: Learner) -> list[bytes]:
    """The bytes of this rank's part of everything that is not trained."""
    import torch

    own = (p for p in one.model.parameters() if not p.requires_grad)
    kept = [getattr(p, "ds_tensor", p) for p in own]
    return [t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in kept]


def away_from_zero() -> Any:
    """Adapters begin with B drawn too, so that A has a gradient at once."""
    from trainer import lora

    def drawn(one: Any, key: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(key)
        with torch.no_grad():
            for p in one.parameters:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))

    patch = pytest.MonkeyPatch()
    patch.setattr(lora, "first_weights", drawn)
    return patch
