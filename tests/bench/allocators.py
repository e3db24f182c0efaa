"""Which allocator wins where: pools of known success rates, the real allocators, the real driver.

    python -m tests.bench.allocators FOLDER [--seeds 8] [--jobs 2]    # simulate what FOLDER lacks
    python -m tests.bench.allocators FOLDER --report                  # tables and the figure

Every arm trains the same policy (`tests/bench/bernoulli.py`) with the same algorithm and learning
rate; the allocation alone differs. Steps of all arms cost about as many rollouts as uniform's:
an allocator that pays more for a prompt takes fewer prompts, by a run on a seed of its own, so
that nobody wins by the number of optimiser steps. Arms are compared at what uniform has paid in
all, in rollouts and in tokens, discarded ones and pilots included.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from samplers import seam
from samplers.data import PromptStream
from samplers.types import Group, Plan
from tests.bench.bernoulli import Level, Pool, Regime
from trainer.collect import Rounds, collect

BEYOND = 1.5
"""Runs go on until they have paid so many times what uniform pays in all."""
CALIBRATION = 1000
"""A seed that no comparison uses."""
KNOWN = {
    "solved": ((0.95, 0.995), 100),
    "medium": ((0.25, 0.75), 200),
    "hard": ((0.05, 0.25), 300),
    "tail": ((0.01, 0.05), 400),
    "unsolvable": ((0.0, 0.0), 400),
}
"""Success rates at the start and mean tokens of each level."""


def levels(**shares: float) -> tuple[Level, ...]:
    return tuple(Level(name, share, *KNOWN[name]) for name, share in shares.items())


MIXED = levels(solved=0.6, medium=0.2, tail=0.2)
REGIMES = {
    "medium": Regime("all of medium difficulty", levels(medium=1), 2048, 64, 8, 48, 0.01),
    "tail": Regime("60% solved, 20% at 1-5%", MIXED, 2048, 64, 8, 128, 0.02),
    "unsolvable": Regime(
        "70% beyond reach", levels(unsolvable=0.7, medium=0.2, tail=0.1), 2048, 64, 8, 128, 0.02
    ),
    "drift": Regime(
        "large pool, fast drift",
        levels(solved=0.3, medium=0.3, hard=0.2, tail=0.2), 4096, 128, 8, 48, 0.03,
    ),
    "small": Regime("small pool, groups of 4", MIXED, 128, 32, 4, 256, 0.02),
}  # fmt: skip


class Arm(NamedTuple):
    spec: dict[str, Any]
    rollouts: int
    """Rollouts per prompt: those that train where more are sampled."""


def arms(n: int) -> dict[str, Arm]:
    """Allocators by name, where uniform gives `n` rollouts to a prompt: papers' proportions."""
    ada = {"name": "reinforce_ada", "per_round": n}
    positive = {**ada, "exit": "positive_focused"}
    return {
        "uniform": Arm({"name": "uniform"}, n),
        "knapsack": Arm({"name": "knapsack"}, n),
        "knapsack, ema": Arm({"name": "knapsack", "estimate": "ema"}, n),
        "dynamic": Arm({"name": "dynamic"}, n),
        "ada balanced": Arm({**ada, "exit": "balanced"}, n // 2),
        "ada positive": Arm(positive, n // 2),
        "ada positive, keeps all": Arm(positive, 4 * n),
        "oversample": Arm({"name": "oversample", "samples": 4 * n}, n),
        "gvm": Arm({"name": "gvm", "pilot": n}, n),
    }


Curve = dict[str, list[float]]


def run(regime: Regime, arm: Arm, seed: int, prompts: int, most: int, sgd: bool) -> Curve:
    """Train until `most` rollouts, and as many tokens as these cost uniform, are paid.

    Returns: before the first step and after each what was paid (rollouts, tokens), rollouts with an
        advantage other than 0 (effective), and mean success (all, and by level).
    """
    pool = Pool(regime, seed, sgd)
    module, config = seam.resolve("samplers.allocation", arm.spec)
    allocator = module.Allocator(config, prompts, arm.rollouts)
    stream, making = PromptStream(pool.dataset, seed), Rounds(pool.make)
    carried: list[Group] = []
    made: dict[int, int] = {}
    effective = 0
    rows = [{"rollouts": 0, "tokens": 0, "effective": 0, **pool.success()}]
    while pool.rollouts < most or pool.tokens < most * tokens(regime):
        groups, carried, discarded, made = collect(
            allocator,
            stream,
            lambda prompt, n, key: [Plan(4096)] * n,
            making,
            pool.verify,
            lambda groups, what: pool.measure(groups),
            seed=seed,
            temperature=1.0,
            carried=carried,
            made=made,
        )
        allocator.observe([*groups, *discarded])
        effective += pool.learn(groups)
        paid = {"rollouts": pool.rollouts, "tokens": pool.tokens, "effective": effective}
        rows.append({**paid, **pool.success()})
        if len(rows) > 100 * regime.steps:
            raise RuntimeError(f"{arm}: {len(rows)} steps paid {pool.rollouts} of {most} rollouts")
    return {name: [round(row[name], 5) for row in rows] for name in rows[0]}


def rollouts(regime: Regime) -> int:
    """Of uniform's whole run."""
    return regime.steps * regime.prompts * regime.rollouts


def tokens(regime: Regime) -> float:
    """Of one rollout, where all prompts get the same number."""
    return sum(level.share * level.tokens for level in regime.levels)


@cache
def prompts(name: str, arm: str, sgd: bool) -> int:
    """Prompts per step with which a step of the arm costs about as much as one of uniform's."""
    regime = REGIMES[name]
    found = regime.prompts
    if arm == "uniform" or arm.startswith("knapsack"):
        return found  # they pay what uniform pays, by construction
    for _ in range(2):
        one = arms(regime.rollouts)[arm]
        curve = run(regime, one, CALIBRATION, found, rollouts(regime), sgd)
        cost = curve["rollouts"][-1] / (len(curve["rollouts"]) - 1)
        found = max(2, round(found * regime.prompts * regime.rollouts / cost))
    return found


def cells(name: str, arm: str, sgd: bool, seeds: list[int]) -> list[dict[str, Any]]:
    """One arm in one regime; `seeds` are those that are to be run."""
    regime, count, out = REGIMES[name], prompts(name, arm, sgd), []
    for seed in seeds:
        most = round(BEYOND * rollouts(regime))
        curve = run(regime, arms(regime.rollouts)[arm], seed, count, most, sgd)
        key = {"regime": name, "arm": arm, "sgd": sgd, "seed": seed}
        out.append({**key, "prompts": count, "curve": curve})
    return out


def simulate(folder: Path, seeds: int, jobs: int, names: list[str], sgd: bool) -> None:
    """Run what the folder lacks, and append it to runs.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {(r["regime"], r["arm"], r["sgd"], r["seed"]) for r in load(folder)}
    with ProcessPoolExecutor(jobs) as pool, (folder / "runs.jsonl").open("a") as file:
        futures = []
        for name in names:
            for arm in arms(8):
                left = [s for s in range(seeds) if (name, arm, sgd, s) not in done]
                if left:
                    futures.append(pool.submit(cells, name, arm, sgd, left))
        for future in as_completed(futures):
            for row in future.result():
                file.write(json.dumps(row) + "\n")
                file.flush()


def load(folder: Path) -> list[dict[str, Any]]:
    path = folder / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--regimes", nargs="*", default=list(REGIMES), choices=list(REGIMES))
    parser.add_argument("--sgd", action="store_true", help="plain steps instead of Adam's")
    parser.add_argument("--report", action="store_true", help="only tables and figure")
    given = parser.parse_args()
    if not given.report:
        simulate(given.folder, given.seeds, given.jobs, given.regimes, given.sgd)
    from tests.bench import allocators_report

    allocators_report.write(load(given.folder), given.folder)


if __name__ == "__main__":
    main()
