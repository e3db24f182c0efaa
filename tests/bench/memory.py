"""What a learner and an engine really hold, in processes of their own, beside the estimate.

    python -m tests.bench.memory      # the table of README: tiny and 100M parameters, every ZeRO

VmHWM of a fresh process is read: ru_maxrss would begin at the peak of the process that started it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samplers.types import Request
from trainer import memory
from trainer.batching import pack
from trainer.config import Stage, load
from trainer.modelfolder import ModelFolder, fetch
from trainer.types import Batch, TrainSequence

LARGE = {
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
"""100 million parameters with tied embeddings; those of tests/tiny.py otherwise."""
PROMPT, LENGTH = 32, 128
"""Tokens of a prompt, and of a whole row."""
TINY = ["model.path=base/find"]
SMALL = ["tokens_per_micro_batch=512", "rollout.engine.slots=32"]
CASES: dict[str, list[str]] = {
    "tiny": [*TINY, "tokens_per_micro_batch=4096", "rollout.engine.slots=256"],
    "100M": SMALL,
    "100M, larger": ["tokens_per_micro_batch=1024", "rollout.engine.slots=96"],
    "100M, checkpointing": [*SMALL, "learner.gradient_checkpointing=true"],
    "100M, LoRA": [*SMALL, "model.lora={rank: 16}"],
    **{
        f"100M, ZeRO-{zero}, {dtype}": [
            *SMALL,
            f"learner.zero={zero}",
            f"model.dtype={dtype}",
        ]
        for dtype in ("float32", "bfloat16")
        for zero in (0, 1, 2, 3)
        if zero or dtype == "bfloat16"
    },
}


def stage(settings: Sequence[str]) -> Stage:
    """The tiny recipe with changes, its rows as long as LENGTH."""
    return load("grpo/find", [f"rollout.max_tokens={LENGTH - PROMPT}", *settings]).stages[0]


def estimated(settings: Sequence[str]) -> dict[str, memory.Parts]:
    """Bytes of each process, as `laconic plan` has them."""
    one = stage(settings)
    shape = memory.shape(ModelFolder(fetch(one.model.path)), one.model.lora)
    assert shape is not None
    return {
        "learner": memory.learner(one, shape, "cpu", LENGTH),
        "rollout": memory.rollout(one, shape, "cpu", PROMPT, None),
    }


def measured(settings: Sequence[str]) -> dict[str, float]:
    """Peaks of resident bytes of the actors of a run, fresh processes all."""
    command = [sys.executable, "-m", "tests.bench.memory", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def large(folder: Path) -> str:
    """A model of 100M parameters in `folder`, as a setting."""
    from tests.tiny import tiny_model, tiny_tokenizer

    tiny_model("qwen3", tied=True, **LARGE).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return f"model.path={folder}"


def run(one: Stage) -> dict[str, float]:
    """Two steps of two full micro-batches, a sync after each, then every slot full to its end.

    By then gradients, moments, activations and what weights travel in were there at once.
    """
    import ray

    from launch.cluster import cluster
    from launch.fleet import Fleet

    path = fetch(one.model.path)
    vocabulary = ModelFolder(path).config["vocab_size"]
    with cluster(3), Fleet(one, str(path)) as fleet:
        for _ in range(2):
            fleet.step(batch(one, vocabulary))
            fleet.sync()
        (learner,), (engine,) = fleet.learners.team.actors, fleet.engines.team.actors
        asked = requests(one.rollout.engine.slots, vocabulary)
        ray.get(engine.__ray_call__.remote(_fill, asked))
        actors = {"learner": learner, "rollout": engine, "grader": fleet.graders.team.actors[0]}
        return {r: ray.get(a.__ray_call__.remote(_peak)) for r, a in actors.items()}


def _fill(actor: Any, asked: Sequence[Request]) -> None:
    assert len(actor.worker.engine.generate(asked)) == len(asked)


def _peak(_: Any) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def requests(count: int, vocabulary: int) -> list[Request]:
    random = np.random.default_rng(0)
    return [
        Request(i, random.integers(0, vocabulary, PROMPT).astype(np.int32), LENGTH - PROMPT, seed=i)
        for i in range(count)
    ]


def batch(one: Stage, vocabulary: int) -> Batch:
    """One optimiser step of two micro-batches that are full."""
    random, rows = np.random.default_rng(0), []
    for row in range(2 * one.tokens_per_micro_batch // LENGTH):
        mask_T = np.arange(LENGTH) >= PROMPT
        rows.append(
            TrainSequence(
                ids_T=random.integers(0, vocabulary, LENGTH).astype(np.int32),
                parent_T=np.arange(LENGTH, dtype=np.int32) - 1,
                mask_T=mask_T,
                advantages_T=np.where(mask_T, 1 - 2 * (row % 2), 0).astype(np.float32),
                behaviour_T=np.where(mask_T, -9.0, np.nan).astype(np.float32),
                versions_T=np.zeros(LENGTH, np.int32),
                prompt=row,
                group=row,
                rollout=0,
            )
        )
    return pack(rows, one.loss, tokens_per_micro_batch=one.tokens_per_micro_batch)


def table() -> None:
    """Print measured and estimated MiB of every case."""
    with tempfile.TemporaryDirectory() as folder:
        path = large(Path(folder))
        for name, settings in CASES.items():
            both = settings if settings[0] in TINY else [path, *settings]
            real, ours = measured(both), estimated(both)
            for role, parts in ours.items():
                told = sum(parts.values())
                print(
                    f"{name:<24} {role:<8} {real[role] / 2**20:6.0f} MiB measured "
                    f"{told / 2**20:6.0f} estimated {told / real[role] - 1:+6.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    if len(sys.argv) == 1:
        table()
    else:
        print(json.dumps(run(stage(sys.argv[1:]))))
