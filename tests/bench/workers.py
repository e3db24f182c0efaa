"""Tokens per second of two one-thread rollout workers over one, each with its slots full.

    python -m tests.bench.workers [engine ...]

Through the real fleet: Ray actors, columns, dispatch by load. Each worker gets four times as many
rollouts as it has slots, 32 prompts' groups of 8 after each other. The workers of both sides are
the same processes: one alone, then both, in turns.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time

from launch.cluster import cluster
from launch.dispatch import Dispatch
from launch.fleet import Fleet
from samplers.data import PromptStream
from samplers.data import load as load_data
from samplers.types import Job, Plan
from trainer.config import load
from trainer.modelfolder import fetch

SLOTS, GROUP = 256, 8


def compare(engine: str, rounds: int = 5, fill: int = 4) -> None:
    """Print tokens per second of one and of two workers, and the median ratio."""
    recipe = load(
        "grpo/find",
        ("deterministic=false", "rollout.workers=2", "evaluation=null",
         f"rollout.engine={{name: {engine}, slots: {SLOTS}, threads: 1}}"),
    )  # fmt: skip
    (stage,) = recipe.stages
    stream = PromptStream(load_data(stage.data, "train", 0), 0, True)
    cap = stage.rollout.max_tokens

    def jobs(workers: int) -> list[Job]:
        draws = [stream.next() for _ in range(workers * SLOTS * fill // GROUP)]
        return [
            Job(prompt, Plan(cap), draw, i, seed=draw * GROUP + i)
            for draw, prompt in draws
            for i in range(GROUP)
        ]

    model = str(fetch(stage.model.path))
    with cluster(cpus=4), Fleet(stage, model, deterministic=False) as fleet:
        sides = {n: Dispatch(n, SLOTS, fleet.engines._send, fleet.engines._take) for n in (1, 2)}

        def rate(workers: int) -> float:
            asked = jobs(workers)
            started = time.perf_counter()
            made = sides[workers].run(asked)
            return sum(r.sampled_tokens for r in made) / (time.perf_counter() - started)

        fleet.rollout(jobs(2))  # both warm
        ratios = []
        for _ in range(rounds):
            one, two = rate(1), rate(2)
            ratios.append(two / one)
            print(f"{engine}: one {one:7.0f} tok/s   two {two:7.0f} tok/s   {ratios[-1]:.2f}")
    print(f"{engine}: two workers over one, median {statistics.median(ratios):.2f}", flush=True)


def installed() -> list[str]:
    return ["torch", *(["vllm"] if importlib.util.find_spec("vllm") else [])]


if __name__ == "__main__":
    for name in sys.argv[1:] or installed():
        compare(name)
