"""Success rates of a model on the training prompts of a recipe, each measured with many samples.

    python -m tests.bench.rates RECIPE [--samples 256] [--model FOLDER] [--out FILE] [a.b=c ...]

Says by difficulty how many prompts are solved (95% or more), in the tail (5% or less) or between,
which rates they have, and how many groups of the recipe's size would be all wrong (the mean of
(1-p)^n). Sampled at temperature 1 as in training, one thread; nothing is cut. `--out` gets the
rate of every prompt by its index, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from launch.inprocess import Workers
from rewards.service.pool import VerifierPool
from samplers.data import load
from samplers.engines.torch import Config as EngineConfig
from samplers.rollout import RolloutWorker
from samplers.types import Plan
from trainer.config import load as recipe
from trainer.eval.budgets import EvalConfig, evaluate
from trainer.modelfolder import fetch

ROUND = 16  # samples of a prompt made at once: all of a round are held in memory


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rates", description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="*", metavar="a.b=c")
    parser.add_argument("--samples", type=int, default=256, help=f"of a prompt; {ROUND} at once")
    parser.add_argument("--model", help="folder; the recipe's model without it")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run = recipe(args.recipe, args.settings)
    stage = run.stages[-1]
    pool = load(stage.data, "train", run.seed)
    prompts = [pool[i] for i in range(len(pool))]
    folder = str(fetch(args.model or stage.model.path))
    worker = RolloutWorker.from_pretrained(folder, EngineConfig(), stage.markers)
    rounds = max(1, args.samples // ROUND)
    right_N, tokens_N = np.zeros(len(prompts)), np.zeros(len(prompts))
    with VerifierPool(stage.verifier) as grader:
        for seed in range(rounds):
            config = EvalConfig(samples=ROUND, budgets=(), seed=seed, shown=0)
            plan = Plan(max_tokens=stage.rollout.max_tokens)
            rows = evaluate(Workers(worker, grader), prompts, config, plan).rows
            right_NS = np.array([row["correct"] for row in rows]).reshape(len(prompts), ROUND)
            right_N += right_NS.mean(axis=1) / rounds
            spent_N = np.array([row["think_tokens"] + row["answer_tokens"] for row in rows])
            tokens_N += spent_N.reshape(right_NS.shape).mean(axis=1) / rounds
    level_N = np.array([prompt.meta.get("difficulty", 0) for prompt in prompts])
    print(f"{len(prompts)} prompts, {rounds * ROUND} samples each")
    for level in np.unique(level_N):
        mine_N = level_N == level
        report(f"difficulty {level}", right_N[mine_N], tokens_N[mine_N], stage.rollouts_per_prompt)
    report("all", right_N, tokens_N, stage.rollouts_per_prompt)
    if args.out:
        args.out.write_text(json.dumps(right_N.tolist()) + "\n")


def report(
    name: str, right_N: NDArray[np.float64], tokens_N: NDArray[np.float64], group: int
) -> None:
    """One line about prompts with these success rates and mean tokens."""
    low, middle, high = np.quantile(right_N, (0.1, 0.5, 0.9))
    counts = (right_N >= 0.95).sum(), (right_N <= 0.05).sum(), (right_N == 0).sum()
    print(
        f"{name:>13}: {len(right_N):4} prompts, {counts[0]:4} solved, {counts[1]:4} in the tail "
        f"({counts[2]} never right); rate {right_N.mean():.3f} (10% {low:.3f}, half {middle:.3f}, "
        f"90% {high:.3f}); all wrong in "
        f"{((1 - right_N) ** group).mean():.0%} of groups of {group}; "
        f"{tokens_N.mean():.1f} tokens"
    )


if __name__ == "__main__":
    main()
