"""Tokens per second of our rollouts on vLLM over vLLM's own `LLM.generate`, in turns, one thread.

    python -m tests.bench.vllm_engine [rounds]

Both sides make the same tokens from the same requests with the same settings (checked): per-request
seeds, logprobs of the sampled tokens, prefix caching, an empty cache at the start of every round.
`engine` is ours without, `rollouts` with the rollout worker above it, which also renders, cuts
thoughts, forks answers and decodes them. Forked: a thought of at most 64 tokens, then an answer
from the kept prefix as soon as its thought has ended; `LLM.generate` is called twice, for the
thoughts and for the answers.

Random models, nearly uniform over 80 tokens: lengths are geometric. 32 prompts x 8 rollouts.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from samplers import render
from samplers.engines import base, vllm
from samplers.render import Renderer
from samplers.rollout import RolloutWorker
from samplers.types import Ids, Job, Plan, Prompt, Request
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS, COPIES = 32, 8
TINY = {
    "vocab_size": 80, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 256,
}  # fmt: skip
MIDDLE = {
    "vocab_size": 80, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 1024,
}  # fmt: skip
MODELS = {"0.3M": (TINY, 192), "21M": (MIDDLE, 96)}
"""Sizes, and the longest response."""
CLOCK = time.process_time if os.environ.get("LACONIC_BENCH_CPU") else time.perf_counter
Call = list[tuple[Ids, Request]]
"""Whole prompts and requests of one LLM.generate."""


class Recorded:
    """An engine that remembers whole prompts: what `LLM.generate` is to be asked."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.calls = engine, ([], [])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            ids, prefix = request.ids, request.prefix
            if prefix is not None:
                ids = np.concatenate([self.engine._kept[prefix[0]][: prefix[1]], ids])
            self.calls[prefix is not None].append((ids, request))
        self.engine.add(requests)


def main(rounds: int = 5) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name, (sizes, longest) in MODELS.items():
        model = tiny_model(**sizes, max_position_embeddings=1024, initializer_range=0.02)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            engine: Any = base.start(folder, vllm.Config(slots=PROMPTS * COPIES))
            raw = start_raw(folder)
            raw.llm_engine.engine_core._finalizer.detach()  # its end would be the others' too
        for kind, plan in (("plain", Plan(longest)), ("forked", Plan(longest, think=64))):
            compare(f"{name} {kind}", engine, raw, plan, rounds)


def start_raw(folder: str) -> Any:
    """vLLM's offline front end with the engine's own arguments, but for the rows for scoring."""
    from vllm import LLM

    from samplers.engines import _vllm_start

    config = vllm.Config(slots=PROMPTS * COPIES)
    arguments = _vllm_start.arguments(folder, config, trust=False, context=1024)
    del arguments["worker_extension_cls"]
    return LLM(**arguments | {"max_num_seqs": config.slots})


def compare(what: str, engine: Any, raw: Any, plan: Plan, rounds: int) -> None:
    thinking = None if plan.think is None else render.ThinkingConfig()
    renderer = Renderer(tiny_tokenizer(), thinking or "none")
    recorded = Recorded(engine)
    wanted = by_worker(RolloutWorker(recorded, renderer), plan)  # type: ignore[arg-type]
    worker, calls = RolloutWorker(engine, renderer), [c for c in recorded.calls if c]
    sides: dict[str, Callable[[], int]] = {
        "rollouts": lambda: by_worker(worker, plan),
        "engine": lambda: by_engine(engine, calls),
        "LLM.generate": lambda: by_raw(raw, calls),
    }
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, run in sides.items():
            start = CLOCK()
            made = run()
            seconds = CLOCK() - start
            assert made == wanted, f"{side} made {made} tokens, not {wanted}"
            if number:  # the first warms up
                rates[side].append(made / seconds)
    shown = [f"{side} {statistics.median(r):6.0f} tok/s" for side, r in rates.items()]
    base_rates = rates["LLM.generate"]
    ratios = [
        f"{side} {statistics.median(a / b for a, b in zip(r, base_rates, strict=True)):.2f}"
        for side, r in rates.items()
    ]
    print(f"{what}: {', '.join(shown)}; ratio {', '.join(ratios[:-1])}", flush=True)


def jobs(plan: Plan) -> list[Job]:
    rng = np.random.default_rng(0)
    texts = [
        "".join(rng.choice(list("0123456789+-*"), rng.integers(18, 45))) for _ in range(PROMPTS)
    ]
    return [
        Job(Prompt(p, str(p), (), text, "", ""), plan, p, i, seed=p * COPIES + i)
        for p, text in enumerate(texts)
        for i in range(COPIES)
    ]


def by_worker(worker: RolloutWorker, plan: Plan) -> int:
    before = worker.engine.counters["sampled"]
    worker.generate(jobs(plan))
    return worker.engine.counters["sampled"] - before


def by_engine(engine: Any, calls: Sequence[Call]) -> int:
    made = 0
    for call in calls:
        requests = [
            Request(i, ids, r.max_tokens, r.stop_ids, r.temperature, r.seed)
            for i, (ids, r) in enumerate(call)
        ]
        made += sum(len(c.ids_T) for c in engine.generate(requests))
    return made


def by_raw(raw: Any, calls: Sequence[Call]) -> int:
    from samplers.engines import _vllm_params

    raw.reset_prefix_cache()
    made = 0
    for call in calls:
        outputs = raw.generate(
            [{"prompt_token_ids": ids.tolist()} for ids, _ in call],
            [_vllm_params.sampling(request) for _, request in call],
            use_tqdm=False,
        )
        made += sum(len(o.outputs[0].token_ids) for o in outputs)
    return made


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
