"""Do 95% intervals hold the truth 95 times in 100? Simulated evaluations whose truth is known.

    python -m tests.bench.coverage [--runs 4000] [--seed 0]

Problems have success rates of a Beta distribution (U-shaped: 0.3, 0.3; easy: 1.2, 0.2) and lengths
that grow with difficulty; each is sampled n times. A row says how often the interval held the true
value of the population, its mean half width, and for the false claims how often they were made
where the truth is just at the limit (2.5% are allowed).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samplers.selection import base, majority
from trainer.eval import adherence, claims, efficiency, statistics
from trainer.eval.statistics import Estimate

Floats = NDArray[np.float64]
U, EASY = (0.3, 0.3), (1.2, 0.2)
SHORT, HARD, NOISE = 400.0, 1600.0, 0.4
"""Tokens of what is always solved, what difficulty adds, and the sd of their logarithm."""
MEAN_NOISE = np.exp(NOISE**2 / 2)
SHARED = 0.7
"""Share of the problems that two models find equally hard; the rest is drawn afresh."""
DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluation: M problems, S samples."""

    p_M: Floats
    correct_MS: Floats
    tokens_MS: Floats

    @property
    def accuracy_M(self) -> Floats:
        return statistics.over_samples(self.correct_MS)

    @property
    def tokens_M(self) -> Floats:
        return statistics.over_samples(self.tokens_MS)


@dataclass(frozen=True, slots=True)
class Case:
    """An interval, and what it ought to hold."""

    name: str
    beta: tuple[float, float]
    problems: int
    samples: int
    interval: Callable[[np.random.Generator, Case], tuple[Estimate, float]]
    """Of one simulated evaluation: the interval, and the truth."""
    wrong: bool = False
    """It is known not to hold what it says."""
    part: int = 1
    """Run `runs / part` times: it is slow."""

    @property
    def mean(self) -> float:
        return self.beta[0] / sum(self.beta)

    @property
    def tokens(self) -> float:
        return (SHORT + HARD * (1 - self.mean)) * MEAN_NOISE

    def run(self, rng: np.random.Generator, p_M: Floats | None = None) -> Run:
        if p_M is None:
            p_M = rng.beta(*self.beta, self.problems)
        correct_MS = (rng.random((len(p_M), self.samples)) < p_M[:, None]).astype(float)
        noise_MS = np.exp(rng.normal(0, NOISE, correct_MS.shape))
        return Run(p_M, correct_MS, (SHORT + HARD * (1 - p_M))[:, None] * noise_MS)

    def pair(self, rng: np.random.Generator) -> tuple[Run, Run]:
        """Two models that are as good, and find mostly the same problems hard."""
        a = self.run(rng)
        afresh = rng.random(self.problems) > SHARED
        p_M = np.where(afresh, rng.beta(*self.beta, self.problems), a.p_M)
        return a, self.run(rng, p_M)


def by_t(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    return statistics.mean(case.run(rng).accuracy_M, within=statistics.SHARE), case.mean


def _resampled(rng: np.random.Generator, case: Case, method: statistics.Method) -> Estimate:
    accuracy_M = case.run(rng).accuracy_M
    return statistics.bootstrap(
        lambda index: accuracy_M[index].mean(axis=1),
        case.problems,
        DRAWS,
        int(rng.integers(1 << 30)),
        method=method,
    )


def by_percentile(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    return _resampled(rng, case, "percentile"), case.mean


def by_bca(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    return _resampled(rng, case, "bca"), case.mean


def binomial(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    """All samples counted as if they were independent."""
    p = float(case.run(rng).correct_MS.mean())
    half = 1.96 * np.sqrt(p * (1 - p) / (case.problems * case.samples))
    return Estimate(p, p - half, p + half, case.problems), case.mean


def fixed_set(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    """Of these very problems."""
    run = case.run(rng)
    p, half = float(run.correct_MS.mean()), 1.96 * statistics.fixed_set_error(run.correct_MS)
    return Estimate(p, p - half, p + half, case.problems), float(run.p_M.mean())


def fixed_as_population(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    """The error of these problems, taken for that of all."""
    return fixed_set(rng, case)[0], case.mean


def difference(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    a, b = case.pair(rng)
    return statistics.mean(a.accuracy_M - b.accuracy_M), 0.0  # the interval of statistics.paired


def unpaired(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    """Two intervals as if the problems were others."""
    a, b = case.pair(rng)
    errors = [statistics.population_error(run.accuracy_M) for run in (a, b)]
    value, half = float(np.mean(a.accuracy_M - b.accuracy_M)), 1.96 * np.hypot(*errors)
    return Estimate(value, value - half, value + half, case.problems), 0.0


def pass_at_4(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    a, b = case.beta
    steps = np.arange(4)
    missed = float(np.prod((b + steps) / (a + b + steps)))  # E[(1 - p)^4]
    return statistics.mean(statistics.pass_at(case.run(rng).correct_MS, 4)), 1 - missed


def majority_of_3(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    """One wrong answer: right with two votes of three, E[3 p^2 - 2 p^3]."""
    run = case.run(rng)
    ones_MS = np.ones_like(run.correct_MS, dtype=np.int64)
    values = []
    for m in range(case.problems):
        fields = (run.correct_MS[m].astype(np.int64), ones_MS[m], ones_MS[m])
        pool = base.Pool(*(field[None] for field in fields), run.tokens_MS[m][None])
        right = run.correct_MS[m]
        values.append(base.expected(majority, majority.Config(), pool, right, 3).accuracy)
    a, b = case.beta
    second = a * (a + 1) / ((a + b) * (a + b + 1))
    return statistics.mean(values), 3 * second - 2 * second * (a + 2) / (a + b + 2)


def per_solve(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    run = case.run(rng)
    found = efficiency.tokens_per_solve(run.accuracy_M, run.tokens_M)
    return found, case.tokens / case.mean


def e3(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    run = case.run(rng)
    return efficiency.e3(run.accuracy_M, run.tokens_M), case.mean**2 / case.tokens


def ockscore(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    run = case.run(rng)
    truth = 100 * case.mean - 10 * np.log1p(case.tokens / 10_000)
    return efficiency.ockscore(run.accuracy_M, run.tokens_M), truth


def token_ratio(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    a, b = case.pair(rng)
    return statistics.ratio(a.tokens_M, b.tokens_M), 1.0


def token_ratio_by_bca(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    a, b = case.pair(rng)
    seed = int(rng.integers(1 << 30))
    return statistics.ratio(a.tokens_M, b.tokens_M, DRAWS, seed, method="bca"), 1.0


def token_ratio_by_percentile(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    a, b = case.pair(rng)
    seed = int(rng.integers(1 << 30))
    return statistics.ratio(a.tokens_M, b.tokens_M, DRAWS, seed, method="percentile"), 1.0


def median(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    """Of the lengths of all samples."""
    found = statistics.quantile(case.run(rng).tokens_MS, 0.5)
    return found, _of_many(case, lambda run: float(np.median(run.tokens_MS)))


def p95(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    found = statistics.quantile(case.run(rng).tokens_MS, 0.95)
    return found, _of_many(case, lambda run: float(np.quantile(run.tokens_MS, 0.95)))


def deviation(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    found = statistics.deviation(case.run(rng).tokens_MS)
    return found, _of_many(case, lambda run: float(run.tokens_MS.std()))


def compression(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    """At a drop of 0.05, cut at 250, 500, 1000 and 2000 tokens: an answer is known at a share of
    the thought that differs from sample to sample."""

    def at_cuts(run: Run) -> tuple[Floats, Floats]:
        known_MS = run.tokens_MS * rng.random(run.tokens_MS.shape) ** 2
        cuts = [np.minimum(run.tokens_MS, cut) for cut in (250, 500, 1000, 2000, np.inf)]
        right = [(run.correct_MS * (known_MS <= cut)).mean(axis=1) for cut in cuts]
        return np.stack(right, axis=1), np.stack([cut.mean(axis=1) for cut in cuts], axis=1)

    def saved(run: Run) -> float:
        return efficiency.compression(*at_cuts(run), 0.05, draws=1).value

    found = efficiency.compression(*at_cuts(case.run(rng)), 0.05, DRAWS, int(rng.integers(1 << 30)))
    return found, _of_many(case, saved)


def slope(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    """Lengths that follow the announced number to the power 0.6, each problem in its own way."""
    wanted = np.array([256.0, 512.0, 1024.0, 2048.0])
    power_M = 0.6 + 0.2 * rng.normal(size=case.problems)
    level_M = np.exp(rng.normal(0, 0.5, case.problems))
    noise = np.exp(rng.normal(0, NOISE, (4, case.problems, case.samples)))
    used = (level_M * wanted[:, None] ** power_M)[..., None] * noise
    return adherence.slope(wanted, used), 0.6


def three_tasks(rng: np.random.Generator, case: Case) -> tuple[Estimate, float]:
    """The macro average of this case, and of two other tasks of 40 and 200 problems."""
    tasks = [
        case,
        Case("", EASY, 40, case.samples, by_t),
        Case("", (2.0, 2.0), 200, 4, by_t),
    ]
    runs = [task.run(rng).accuracy_M for task in tasks]
    errors = [statistics.population_error(run) for run in runs]
    found = claims.macro([float(r.mean()) for r in runs], errors, [len(r) for r in runs])
    return found, float(np.mean([task.mean for task in tasks]))


CASES = [
    *(
        Case("accuracy, t", beta, m, n, by_t)
        for beta, m, n in ((U, 30, 8), (U, 30, 64), (U, 100, 4), (U, 500, 4), (EASY, 100, 4))
    ),
    Case("accuracy, percentile bootstrap", U, 30, 8, by_percentile),
    Case("accuracy, BCa bootstrap", U, 30, 8, by_bca),
    Case("accuracy of these problems, fixed-set error", U, 30, 8, fixed_set),
    Case("paired difference, t", U, 30, 8, difference),
    Case("paired difference, t", U, 200, 4, difference),
    Case("pass@4, t", U, 30, 8, pass_at_4),
    Case("majority@3, t", U, 30, 8, majority_of_3, part=4),
    Case("macro average of three tasks", U, 30, 8, three_tasks),
    Case("tokens per solve, t", U, 30, 8, per_solve),
    Case("tokens per solve, t", U, 500, 4, per_solve),
    Case("E3, t", U, 30, 8, e3),
    Case("OckScore, t", U, 30, 8, ockscore),
    Case("token ratio of two models, t", U, 12, 8, token_ratio),
    Case("token ratio of two models, t", U, 30, 8, token_ratio),
    Case("token ratio of two models, t", U, 200, 4, token_ratio),
    Case("token ratio, BCa bootstrap", U, 200, 4, token_ratio_by_bca, part=4),
    Case("token ratio, percentile bootstrap", U, 12, 8, token_ratio_by_percentile, part=2),
    Case("median length", U, 30, 8, median),
    Case("median length", U, 100, 8, median),
    Case("p95 of lengths", U, 30, 8, p95),
    Case("p95 of lengths", U, 100, 4, p95),
    Case("sd of lengths, t", U, 100, 4, deviation),
    Case("sd of lengths, t", U, 500, 4, deviation),
    Case("compression at a drop of 0.05, bootstrap", U, 30, 8, compression, part=4),
    Case("slope of log L on log B, t", U, 30, 8, slope, part=4),
    Case("nearly solved: accuracy, t", (2.0, 0.1), 30, 8, by_t, wrong=True),
    Case("all samples alike: binomial", U, 30, 8, binomial, wrong=True),
    Case("all samples alike: binomial", U, 30, 64, binomial, wrong=True),
    Case("fixed-set error for all problems", U, 30, 64, fixed_as_population, wrong=True),
    Case("token ratio, BCa bootstrap", U, 12, 8, token_ratio_by_bca, wrong=True, part=2),
    Case("difference, not paired", U, 200, 4, unpaired, wrong=True),
]


def covered(case: Case, runs: int, seed: int) -> tuple[float, float]:
    """(share of the runs whose interval holds the truth, mean half width)."""
    rng = np.random.default_rng([seed, case.problems, case.samples, len(case.name)])
    hits, half = 0, 0.0
    for _ in range(runs):
        found, truth = case.interval(rng, case)
        hits += found.low <= truth <= found.high
        half += found.half_width
    return hits / runs, half / runs


def false_claims(problems: int, samples: int, runs: int, seed: int) -> dict[str, float]:
    """How often a claim is made where the truth is just at its limit."""
    case = Case("", U, problems, samples, by_t)
    rng = np.random.default_rng([seed, problems, samples])
    worse = cheaper = 0
    for _ in range(runs):
        a, b = case.pair(rng)
        worse += claims.not_worse(a.accuracy_M - 0.01, b.accuracy_M, margin=0.01).holds
        cheaper += claims.cheaper(a.tokens_M, b.tokens_M).holds
    return {"not worse by a point": worse / runs, "cheaper": cheaper / runs}


def published(p: float, n: int, k: int) -> tuple[float, float, float]:
    """Best of k at a success rate p, of n samples: (truth, unbiased, drawn with replacement)."""
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    subsets = sum(w * float(statistics.pass_at_k(n, c, k)) for c, w in enumerate(chance))
    copies = sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(chance))
    return 1 - (1 - p) ** k, subsets, copies


_MANY: dict[tuple[str, tuple[float, float]], float] = {}


def _of_many(case: Case, value: Callable[[Run], float]) -> float:
    """The truth of what has no formula: of a million problems."""
    key = case.name, case.beta
    if key not in _MANY:
        many = Case("", case.beta, 1_000_000, 1, by_t)
        _MANY[key] = value(many.run(np.random.default_rng(1)))
    return _MANY[key]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.coverage", description=__doc__)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| interval | success rates | problems | samples | runs | covers | +- |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for case in CASES:
        runs = args.runs // case.part
        share, half = covered(case, runs, args.seed)
        name = f"{case.name} (wrong)" if case.wrong else case.name
        rates = f"Beta({case.beta[0]}, {case.beta[1]})"
        print(
            f"| {name} | {rates} | {case.problems} | {case.samples} | {runs} | {share:.1%} "
            f"| {half:.4g} |",
            flush=True,
        )
    for m, n in ((30, 8), (200, 4)):
        runs = args.runs // 2
        for name, share in false_claims(m, n, runs, args.seed).items():
            print(f"| claimed wrongly: {name} | Beta{U} | {m} | {n} | {runs} | {share:.1%} | |")
    print("\n| best of k | samples | rate | truth | without replacement | with replacement |")
    print("|---|---|---|---|---|---|")
    for n, k, p in ((8, 8, 0.2), (8, 4, 0.2), (16, 8, 0.1), (64, 8, 0.1), (64, 64, 0.02)):
        row = " | ".join(f"{value:.3f}" for value in published(p, n, k))
        print(f"| {k} | {n} | {p} | {row} |")


if __name__ == "__main__":
    main()
