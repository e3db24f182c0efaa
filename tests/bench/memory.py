"""What a learner and an engine really hold, in processes of their own, against the estimate.

    python -m tests.bench.memory            # the table: tiny and 100M parameters
    python -m tests.bench.memory learner FOLDER '{"zero": 0, ...}'   # one process, figures as JSON

VmHWM of a fresh process is read: ru_maxrss would begin at the peak of the process that started it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from samplers.types import Request
from trainer.batching import pack
from trainer.losses import LossConfig
from trainer.types import MicroBatch, TrainSequence

SIZES = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 2048,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "initializer_range": 0.02,
}
"""100 million parameters, embeddings tied."""


def measure(kind: str, folder: str | Path, **settings: Any) -> dict[str, float]:
    """Bytes resident: `peak` of a fresh process of that kind, and `start`, before its model."""
    command = [sys.executable, "-m", "tests.bench.memory", kind, str(folder), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def status(field: str) -> float:
    """A figure of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1]) * 1024
    raise KeyError(field)


def learner(folder: str, settings: dict[str, Any]) -> dict[str, float]:
    """Two optimiser steps of two full micro-batches: gradients, moments and activations at once."""
    import ray  # noqa: F401

    from trainer.learner import Learner, LearnerConfig
    from trainer.optim import OptimConfig

    start = 0.0
    tokens, length = settings.pop("tokens"), settings.pop("length")
    vocab, dtype = settings.pop("vocab"), settings.pop("dtype", "float32")
    config = LearnerConfig(**settings)
    one = Learner(folder, config, OptimConfig(), LossConfig(), total_steps=9, dtype=dtype)
    built = status("VmRSS")
    for _ in range(2):
        one.step(updates(tokens, length, vocab))
    return {"start": start, "built": built, "peak": status("VmHWM"), "now": status("VmRSS")}


def updates(tokens: int, length: int, vocab: int) -> list[tuple[MicroBatch, ...]]:
    """One optimiser step of two micro-batches of `tokens`."""
    random, rows = np.random.default_rng(0), []
    for row in range(2 * tokens // length):
        mask_T = np.arange(length) >= 32
        rows.append(
            TrainSequence(
                ids_T=random.integers(0, vocab, length).astype(np.int32),
                parent_T=np.arange(length, dtype=np.int32) - 1,
                mask_T=mask_T,
                advantages_T=np.where(mask_T, 1 - 2 * (row % 2), 0).astype(np.float32),
                behaviour_T=np.where(mask_T, -9.0, np.nan).astype(np.float32),
                versions_T=np.zeros(length, np.int32),
                prompt=row,
                group=row,
                rollout=0,
            )
        )
    batch = pack(rows, LossConfig(), tokens_per_micro_batch=tokens)
    return [tuple(step[0]) for step in batch.updates]


def rollout(folder: str, settings: dict[str, Any]) -> dict[str, float]:
    """Every slot full to its last token, weights loaded once in between."""
    import ray  # noqa: F401

    from samplers.engines.torch import Config
    from samplers.engines.torch import start as start_engine

    length, prompt, vocab = (settings.pop(name) for name in ("length", "prompt", "vocab"))
    config = Config(**settings)
    begun = status("VmRSS")
    engine = start_engine(folder, config)
    built = status("VmRSS")
    random = np.random.default_rng(0)
    requests = [
        Request(i, random.integers(0, vocab, prompt).astype(np.int32), length - prompt, seed=i)
        for i in range(config.slots)
    ]
    assert len(engine.generate(requests)) == config.slots
    return {"start": begun, "built": built, "peak": status("VmHWM"), "now": status("VmRSS")}


if __name__ == "__main__":
    kind, folder, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    print(json.dumps({"learner": learner, "rollout": rollout}[kind](folder, settings)))
