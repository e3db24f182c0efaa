"""What arms reach for the tokens they generate: tokens until an area, area after tokens.

An arm's value is the mean over its seeds, read off the line between a seed's evaluations.

Shape suffix: E evaluations of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.eval import statistics
from trainer.eval.statistics import Comparison, Estimate
from trainer.report.data import Arm, Run
from trainer.report.options import Options

AREA = "cap_area"


@dataclass(frozen=True)
class Line:
    """One arm."""

    name: str
    seeds: int
    value: Estimate
    """NaN where a seed has none: `missing` says so."""
    missing: str
    contrast: Comparison | None
    """This arm less the one compared with, paired by seed."""


@dataclass(frozen=True)
class Block:
    """One question and what each arm answers."""

    title: str
    against: str
    digits: int
    lines: list[Line]


def curve(run: Run, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(tokens_E, values_E): generated until each evaluation, and what it measured.

    An evaluation under another response cap than the last one's measured something else.
    """
    cap = run.evaluations[-1].cap if run.evaluations else 0
    points = [
        (run.generated(e.step), e.estimate(metric).value)
        for e in run.evaluations
        if e.step >= run.started and e.cap == cap
    ]
    both = np.array(points, dtype=np.float64).reshape(-1, 2)
    both = both[~np.isnan(both[:, 1])]
    return both[:, 0], both[:, 1]


def until(tokens_E: NDArray[np.float64], values_E: NDArray[np.float64], target: float) -> float:
    """Tokens at which the line first reaches `target`; NaN if it never does."""
    there = np.flatnonzero(values_E >= target)
    if not there.size:
        return float("nan")
    i = int(there[0])
    if i == 0:
        return float(tokens_E[0])
    share = (target - values_E[i - 1]) / (values_E[i] - values_E[i - 1])
    return float(tokens_E[i - 1] + share * (tokens_E[i] - tokens_E[i - 1]))


def after(tokens_E: NDArray[np.float64], values_E: NDArray[np.float64], tokens: float) -> float:
    """The line's value at `tokens`; NaN beyond its ends."""
    tokens_E, values_E = last_each(tokens_E, values_E)
    if not tokens_E.size or not tokens_E[0] <= tokens <= tokens_E[-1]:
        return float("nan")
    return float(np.interp(tokens, tokens_E, values_E))


def last_each(
    tokens_E: NDArray[np.float64], values_E: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of evaluations after equally many tokens the last: a supervised stage samples nothing more
    while it trains on what it began with."""
    last_E = np.append(np.diff(tokens_E) > 0, True)[: tokens_E.size]
    return tokens_E[last_E], values_E[last_E]


def blocks(found: Sequence[Arm], options: Options) -> list[Block]:
    """The questions that `options` asks, each over all runs that were evaluated after training."""
    trained = [(arm, [run for run in arm.runs if run.final]) for arm in found if arm.finals]
    out = []
    if options.reach is not None:
        values = {
            arm.name: {run.seed: until(*curve(run, AREA), options.reach) for run in runs}
            for arm, runs in trained
        }
        title = f"generated tokens until the area is {options.reach:g}"
        out.append(_block(title, values, options.against, 0, "never"))
    for metric, word, digits in (
        (AREA, "area", 3),
        ("accuracy", "accuracy", 3),
        ("think_tokens/mean", "thinking tokens", 1),
    ):
        if options.at_tokens is not None:
            values = {
                arm.name: {run.seed: after(*curve(run, metric), options.at_tokens) for run in runs}
                for arm, runs in trained
            }
            title = f"{word} at {options.at_tokens:,} generated tokens"
            out.append(_block(title, values, options.against, digits, "ended before"))
    return [block for block in out if block.lines]


def notes(found: Sequence[Arm]) -> list[str]:
    """Lines about what the runs generated."""
    runs = [run for arm in found for run in arm.runs if run.final]
    least = min((run.generated(run.final.step) for run in runs if run.final), default=0.0)
    out = [f"every run generated {least:,.0f} tokens or more"] if runs else []
    for arm in found:
        each = [run.scored(run.final.step) for run in arm.runs if run.final]
        if sum(each):
            out.append(f"{arm.name}: {np.mean(each):,.0f} tokens a run scored at cuts, beside them")
    return out


def _block(
    title: str,
    values: Mapping[str, Mapping[int, float]],
    against: str | None,
    digits: int,
    word: str,
) -> Block:
    first = against if against and against in values else next(iter(values), "")
    lines = []
    for name, by_seed in values.items():
        without = int(np.isnan(list(by_seed.values())).sum())
        missing = f"{without} of {len(by_seed)} {word}" if without else ""
        value = statistics.mean([] if without else list(by_seed.values()))
        contrast = None if name == first else _paired(by_seed, values[first])
        lines.append(Line(name, len(by_seed), value, missing, contrast))
    return Block(title, first, digits, lines)


def _paired(mine: Mapping[int, float], other: Mapping[int, float]) -> Comparison | None:
    """Over the seeds of both; None with fewer than two, or where a seed of either has no value."""
    seeds = sorted(mine.keys() & other.keys())
    values = [*mine.values(), *other.values()]
    if len(seeds) < 2 or np.isnan(values).any():
        return None
    return statistics.paired([mine[s] for s in seeds], [other[s] for s in seeds])
