"""What the learner costs above a bare transformers training step over the same micro-batches.

The bare step is the least one can do: forward, logprobs of the trained tokens by cross entropy,
backward, clipping, AdamW. The learner does the same through DeepSpeed, and entropies, clip
fractions, the engine gap and a policy loss besides. Both take turns, in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from samplers import render
from samplers.tasks import find
from samplers.types import Plan
from trainer.batching import pack
from trainer.config import load
from trainer.learner import Learner
from trainer.modelfolder import fetch
from trainer.rows import supervised_row
from trainer.types import MicroBatch, TrainSequence

SEQUENCES = 256


def compare(recipe: str, repeats: int) -> None:
    """Print tokens per second of both, and the median ratio of the turns."""
    torch.set_num_threads(1)
    stage = load(recipe).stages[0]
    path = str(fetch(stage.model.path))
    batch = pack(
        sequences(path, SEQUENCES),
        stage.loss,
        tokens_per_micro_batch=stage.tokens_per_micro_batch,
    )
    (ranks,) = batch.updates
    optim = stage.optim.model_copy(update={"lr": 1e-9})
    learner = Learner(
        path,
        stage.learner,
        optim,
        stage.loss,
        total_steps=10**6,
        attention=stage.model.attention,
    )
    try:
        bare = bare_step(path, ranks[0], stage.model.attention)
        sides: list[Callable[[], object]] = [bare, lambda: learner.step([ranks[0]])]
        seconds = [[_time(side) for side in sides] for _ in range(repeats + 1)][1:]
    finally:
        learner.close()
    a, b = (statistics.median(turn[i] for turn in seconds) for i in (0, 1))
    ratio = statistics.median(turn[0] / turn[1] for turn in seconds)
    print(f"{batch.rows} sequences, {batch.tokens} tokens, {len(ranks[0])} micro-batches")
    print(f"bare transformers step: {batch.tokens / a:.0f} tokens/s")
    print(f"learner: {batch.tokens / b:.0f} tokens/s, {ratio:.2f} of it")


def sequences(path: str, count: int) -> list[TrainSequence]:
    """Demonstrations of task find as if they were rollouts: as long, with made-up advantages."""
    renderer, plan, random = render.load(path, None), Plan(max_tokens=192), np.random.default_rng(0)
    out = []
    for i in range(count):
        prompt, text = find.demonstration(find.Config(), i)
        row = supervised_row(
            renderer.render(prompt, plan),
            np.append(renderer.encode(text), renderer.eos_ids[0]).astype(np.int32),
            prompt.index,
        )
        np.copyto(row.advantages_T, random.normal(), where=row.mask_T)
        np.copyto(row.behaviour_T, -0.1, where=row.mask_T)
        out.append(row)
    return out


def bare_step(path: str, micro_batches: Sequence[MicroBatch], attention: str) -> Callable[[], None]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation=attention
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)
    inputs = [
        [torch.from_numpy(np.asarray(a)) for a in (m.ids_BT, m.index_N, m.targets_N, m.weights_N)]
        for m in micro_batches
    ]

    def step() -> None:
        for ids_BT, index_N, targets_N, weights_N in inputs:
            hidden_FH = model.model(ids_BT.long(), use_cache=False).last_hidden_state.flatten(0, 1)
            logits_NV = model.lm_head(hidden_FH[index_N.long()])
            loss_N = cross_entropy(logits_NV, targets_N.long(), reduction="none")
            (loss_N * weights_N).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
