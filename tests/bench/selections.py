"""What choosing among saved samples costs to evaluate, and what each selection buys.

    python -m tests.bench.selections [--problems 1000] [--samples 64] [--seed 0]

Simulated problems: U-shaped success rates, up to a dozen wrong answers of which one is commoner,
some samples without an answer, right thoughts shorter than wrong ones, a score that knows a little.
One core; the answers are means over problems.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from samplers.selection import base

KS = (1, 2, 4, 8, 16, 32)
SPECS: tuple[Any, ...] = (
    "majority",
    "short-1",
    "short-3",
    "best_of_n",
    {"name": "best_of_n", "weighted": True},
    "best_of_majority",
)


def problem(rng: np.random.Generator, samples: int) -> tuple[base.Pool, np.ndarray]:
    """One problem's samples, and which are right (answer 0)."""
    right = rng.random(samples) < rng.beta(0.3, 0.3)
    wrong = np.minimum(rng.geometric(0.3, samples), 12)
    answer = np.where(right, 0, np.where(rng.random(samples) < 0.1, -1, wrong))
    think = np.rint(rng.lognormal(6.5, 0.5, samples) * np.where(right, 1, 1.4)).astype(np.int64)
    score = 1 / (1 + np.exp(-rng.normal(np.where(right, 0.5, 0), 1)))
    return base.Pool(answer[None], think[None], think[None] + 60, score[None]), right.astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.selections", description=__doc__)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    problems = [problem(rng, args.samples) for _ in range(args.problems)]
    draws, whole = base.draws_for(args.problems), 0.0
    print(
        f"{args.problems} problems of {args.samples} samples, {draws} draws where draws are needed"
    )
    print("| accuracy / tokens / latency | " + " | ".join(f"k = {k}" for k in KS) + " | seconds |")
    print("|---" * (len(KS) + 2) + "|", flush=True)
    for spec in SPECS:
        module, config = base.resolve(spec)
        start, cells = time.process_time(), []
        for k in KS:
            found = [base.expected(module, config, *p, k, draws) for p in problems]
            mean = np.mean([(e.accuracy, e.tokens, e.latency) for e in found], axis=0)
            cells.append(f"{mean[0]:.3f} / {mean[1]:.0f} / {mean[2]:.0f}")
        spent = time.process_time() - start
        whole += spent
        name = spec if isinstance(spec, str) else f"{spec['name']}, weighted"
        print(f"| {name} | " + " | ".join(cells) + f" | {spent:.1f} |", flush=True)
    print(f"{whole:.1f} s in all")


if __name__ == "__main__":
    main()
