"""Tokens per second of the torch engine against transformers generate, interleaved, one thread.

    python -m tests.bench.engine [rounds]

The model has the size of the tiny reasoner (0.3M parameters, fp32). It is random and so nearly
uniform: with one stop token in a vocabulary of 80 lengths are geometric, about 73 tokens on
average and 192 at most, like those of the trained one. 32 prompts x 8 completions.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from samplers.engines._torch import TorchEngine
from samplers.engines.base import Config
from samplers.types import Request
from tests.tiny import tiny_model

PROMPTS, COPIES, MAX_TOKENS, STOP = 32, 8, 192, 1
SIZES = {
    "vocab_size": 80, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 256,
    "max_position_embeddings": 1024, "initializer_range": 0.02,
}  # fmt: skip


def main(rounds: int = 5) -> None:
    torch.set_num_threads(1)
    model = tiny_model(**SIZES)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 80, rng.integers(18, 45)).astype(np.int32) for _ in range(PROMPTS)]
    engine = TorchEngine(copy.deepcopy(model), Config(slots=256))

    def ours(seed: int) -> int:
        requests = [
            Request(i, prompts[i // COPIES], MAX_TOKENS, (STOP,), seed=seed * 1000 + i)
            for i in range(PROMPTS * COPIES)
        ]
        return sum(len(c.ids_T) for c in engine.generate(requests))

    def theirs(seed: int) -> int:
        longest = max(map(len, prompts))
        ids = torch.zeros(PROMPTS * COPIES, longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i in range(len(ids)):
            prompt = torch.from_numpy(prompts[i // COPIES])
            ids[i, longest - len(prompt) :], mask[i, longest - len(prompt) :] = prompt, 1
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=MAX_TOKENS, do_sample=True, top_k=0,
                eos_token_id=STOP, pad_token_id=0,
            )[:, longest:]  # fmt: skip
        stops = (out == STOP).int()
        return int((stops.cumsum(1) - stops == 0).sum())

    def rate(run: Callable[[int], int], seed: int) -> float:
        start = time.perf_counter()
        tokens = run(seed)
        return tokens / (time.perf_counter() - start)

    ours(99), theirs(99)
    pairs = [(rate(ours, seed), rate(theirs, seed)) for seed in range(rounds)]
    for a, b in pairs:
        print(f"engine {a:8.0f} tok/s   transformers generate {b:8.0f} tok/s   ratio {a / b:.2f}")
    print(f"median ratio {statistics.median(a / b for a, b in pairs):.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
