"""Allocators on a pool of mixed difficulty, at equal rollouts and at equal generated tokens.

    laconic sweep pool/uniform pool/knapsack ... --seeds 0-4 output=FOLDER
    python -m tests.bench.pool FOLDER [--base pool-uniform] [--arms ARM ...] [--figure FILE]

Reads the runs' metrics. Everything that was sampled counts as spent, pilots and discarded groups
too. Between evaluations accuracy is interpolated, and read where every run has spent as much.
Differences are paired by seed; intervals are 95% t intervals over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.eval.statistics import Estimate, mean, paired
from trainer.report.table import p_value
from trainer.tracking import read

Floats = NDArray[np.float64]
SPENT = ("rollouts", "tokens", "seconds")
LEVELS = {"tail": "eval/difficulty-3/accuracy", "all": "eval/accuracy"}


class Curve(NamedTuple):
    """One run: accuracy at each evaluation, and what was spent until then."""

    spent: Mapping[str, Floats]
    accuracy: Mapping[str, Floats]
    effective: float
    """Share of all rollouts that lay in groups with right and wrong ones."""
    steps: int


def curve(folder: Path) -> Curve:
    """Seconds are those of the steps without their evaluations."""
    totals = dict.fromkeys(SPENT, 0.0)
    spent: dict[str, list[float]] = {name: [] for name in SPENT}
    accuracy: dict[str, list[float]] = {name: [] for name in LEVELS}
    effective = 0.0
    rows = read(folder)
    for row in rows:
        totals["rollouts"] += row.get("rollouts", 0)
        totals["tokens"] += row.get("tokens/sampled", 0)
        totals["seconds"] += row["time/step"] - row.get("time/evaluate", 0.0)
        if row["step"] == 0:
            totals["seconds"] = 0.0
        effective += row.get("gradient/effective_responses", 0.0) * row.get("rollouts", 0)
        if LEVELS["tail"] in row:
            for name in SPENT:
                spent[name].append(totals[name])
            for name, metric in LEVELS.items():
                accuracy[name].append(row[metric])
    return Curve(
        {name: np.array(values) for name, values in spent.items()},
        {name: np.array(values) for name, values in accuracy.items()},
        effective / totals["rollouts"],
        int(rows[-1]["step"]),
    )


def curves(folder: Path) -> dict[str, dict[int, Curve]]:
    """[arm][seed] of every run in `folder`."""
    found: dict[str, dict[int, Curve]] = {}
    for path in sorted(folder.glob("*-seed*")):
        arm, _, seed = path.name.rpartition("-seed")
        found.setdefault(arm, {})[int(seed)] = curve(path)
    return found


def at(runs: Sequence[Curve], what: str, level: str, amount: float) -> Floats:
    """[seeds] accuracy when so much of `what` was spent."""
    return np.array([np.interp(amount, c.spent[what], c.accuracy[level]) for c in runs])


def needed(one: Curve, what: str, level: str, accuracy: float) -> float:
    """What was spent when the run was first as good; inf where it never was."""
    values, spent = one.accuracy[level], one.spent[what]
    above = np.flatnonzero(values >= accuracy)
    if not len(above):
        return float("inf")
    i = int(above[0])
    if i == 0:
        return float(spent[0])
    share = (accuracy - values[i - 1]) / (values[i] - values[i - 1])
    return float(spent[i - 1] + share * (spent[i] - spent[i - 1]))


def table(found: Mapping[str, Mapping[int, Curve]], base: str) -> str:
    """Markdown: each arm against `base`, over the seeds that they share."""
    every = [c for runs in found.values() for c in runs.values()]
    budget = {name: min(c.spent[name][-1] for c in every) for name in SPENT}
    head = (
        f"At {budget['rollouts']:.0f} rollouts, and at {budget['tokens']:.0f} generated tokens:\n\n"
        "| arm | in mixed groups | all, equal rollouts | tail, equal rollouts | less the base's | "
        "tail, equal tokens | less the base's | rollouts, tokens, seconds to the base's end | s a "
        "step |\n|" + "---|" * 9
    )
    lines = []
    for arm, runs in found.items():
        seeds = sorted(set(runs) & set(found[base]))
        ours, theirs = [runs[s] for s in seeds], [found[base][s] for s in seeds]
        cells = [arm.removeprefix("pool-"), told(mean([c.effective for c in ours]))]
        cells.append(told(mean(at(ours, "rollouts", "all", budget["rollouts"]))))
        for what in ("rollouts", "tokens"):
            a, b = (at(side, what, "tail", budget[what]) for side in (ours, theirs))
            cells += [told(mean(a)), "" if arm == base else compared(a, b)]
        goal = float(np.mean([c.accuracy["tail"][-1] for c in theirs]))
        shares = []
        for what in SPENT:
            share = needed_by_mean(ours, what, goal) / needed_by_mean(theirs, what, goal)
            shares.append(f"{share:.2f}" if np.isfinite(share) else "-")
        cells.append(", ".join(shares))
        cells.append(f"{np.mean([c.spent['seconds'][-1] / c.steps for c in ours]):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([head, *lines])


def needed_by_mean(runs: Sequence[Curve], what: str, goal: float) -> float:
    """What the mean over seeds needs to be as good: single runs may never be, by noise."""
    end = max(c.spent[what][-1] for c in runs)
    grid = np.linspace(0, end, 601)
    level = np.mean([at(runs, what, "tail", amount) for amount in grid], axis=1)
    one = Curve({what: grid}, {"tail": level}, 0.0, 0)
    return needed(one, what, "tail", goal - 1e-9)


def compared(a: Floats, b: Floats) -> str:
    """Difference of the pairs, its interval and the p of a paired t test."""
    found = paired(a, b)
    low, high = found.difference.low, found.difference.high
    return f"{found.difference.value:+.3f} [{low:+.3f}, {high:+.3f}], p {p_value(found.p_t)}"


def told(estimate: Estimate) -> str:
    half = (estimate.high - estimate.low) / 2
    return f"{estimate.value:.3f}" + (f" +-{half:.3f}" if np.isfinite(half) else "")


def draw(found: Mapping[str, Mapping[int, Curve]], out: Path) -> None:
    """Tail accuracy against rollouts and against tokens: means over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from trainer.report import style

    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.9), sharey=True)
    for axis, what in zip(axes, ("rollouts", "tokens"), strict=True):
        for i, (arm, runs) in enumerate(found.items()):
            several = list(runs.values())
            end = min(c.spent[what][-1] for c in several)
            grid = np.linspace(0, end, 61)
            lines = np.array([at(several, what, "tail", x) for x in grid])
            axis.plot(
                grid / 1000, lines.mean(axis=1), color=style.colour(i), lw=1.6,
                ls="-" if i < len(style.SERIES) else "--", marker=style.marker(i), markevery=10,
                ms=4, label=arm.removeprefix("pool-"),
            )  # fmt: skip
        axis.set_xlabel(f"{what} sampled, thousands")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=style.RULE, lw=0.6)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("accuracy on the tail, held out")
    axes[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pool", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="pool-uniform")
    parser.add_argument("--arms", nargs="*", help="in this order; all without it")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = curves(args.folder)
    chosen = args.arms or [args.base, *(arm for arm in found if arm != args.base)]
    found = {arm: found[arm] for arm in chosen}
    print(table(found, args.base))
    if args.figure:
        draw(found, args.figure)


if __name__ == "__main__":
    main()
