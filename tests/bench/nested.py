"""Seconds of rollouts answered at several budgets over plain ones of the same thoughts, in turns.

    python -m tests.bench.nested [torch|vllm] [rounds]

The tiny reasoner (base/find) answers with two tokens (one letter and the end): 32 prompts x 8
rollouts, one thread. Its thoughts are cut at 128 tokens, and, of harder problems than it was
made for, at 384. Plain answers once, behind the whole thought. Checked: both think the same tokens.
Beside the ratio of seconds stands that of the tokens sampled: short thoughts are the hard case, for
the answers' share of the tokens is what they cost.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Sequence

from samplers.engines import base, vllm
from samplers.render import ThinkingConfig
from samplers.rollout import RolloutWorker
from samplers.tasks import find
from samplers.types import Job, Plan, Rollout
from trainer.modelfolder import fetch

PROMPTS, COPIES = 32, 8
TASKS = {128: find.Config(), 384: find.Config(candidates=(8, 8), ops=(3, 3))}
"""Thinking limit -> problems."""


def plans(limit: int) -> dict[str, Plan]:
    grid = tuple(range(limit // 8, limit + 1, limit // 8))
    cap = limit + 64
    return {
        "plain": Plan(cap, think=limit, answer=8),
        "8 cuts x 1": Plan(cap, cuts=grid, answer=8),
        "4 cuts x 4": Plan(cap, cuts=grid[1::2], answers_per_cut=4, answer=8),
        "8 cuts, gold probed": Plan(cap, cuts=grid, answer=8, probe="{answer}"),
    }


CLOCK = time.process_time if os.environ.get("LACONIC_BENCH_CPU") else time.perf_counter


def compare(name: str, rounds: int = 9) -> None:
    """Print the median ratios of each nested plan, for short and for long thoughts."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    kind = vllm.Config if name == "vllm" else base.Config
    worker = RolloutWorker.from_pretrained(
        str(fetch("base/find")), kind(name=name, slots=PROMPTS * COPIES), ThinkingConfig()
    )
    gc.collect()
    gc.freeze()  # or a collection that looks at all of torch falls into one round or another
    for limit in TASKS:
        _compare(name, worker, limit, rounds)


def _compare(name: str, worker: RolloutWorker, limit: int, rounds: int) -> None:
    asking = plans(limit)
    seconds: dict[str, list[float]] = {what: [] for what in asking}
    tokens = dict.fromkeys(asking, 0)
    length = 0.0
    for number in range(rounds + 1):
        thoughts = None
        for what, plan in asking.items():
            asked = jobs(plan, TASKS[limit], number)
            started = CLOCK()
            made = worker.generate(asked)
            if number:  # the first warms up
                seconds[what].append(CLOCK() - started)
                tokens[what] += sum(rollout.sampled_tokens for rollout in made)
            thoughts = thoughts or shown(made)
            assert shown(made) == thoughts, "the thoughts differ"
            length = statistics.mean(rollout.think_tokens for rollout in made)
    plain = seconds.pop("plain")
    head = f"{name}, thoughts of {length:.0f} tokens"
    print(f"{head}: plain {1000 * statistics.median(plain):.0f} ms")
    for what, nested in seconds.items():
        ratios = sorted(n / p for n, p in zip(nested, plain, strict=True))
        print(
            f"{head}: {what}: {statistics.median(ratios):.2f} of plain's seconds "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}), {tokens[what] / tokens['plain']:.2f} of its "
            "tokens",
            flush=True,
        )


def jobs(plan: Plan, config: find.Config, number: int) -> list[Job]:
    return [
        Job(find.prompt(config, "train", p), plan, p, i, seed=(number * PROMPTS + p) * COPIES + i)
        for p in range(PROMPTS)
        for i in range(COPIES)
    ]


def shown(made: Sequence[Rollout]) -> list[bytes]:
    return [rollout.thought.ids_T.tobytes() for rollout in made]


if __name__ == "__main__":
    compare(sys.argv[1] if sys.argv[1:] else "torch", *map(int, sys.argv[2:3]))
