"""A metric: a value, its interval over problems, and two errors that answer different questions.

`se_fixed` is the noise of sampling on these very problems; it goes to 0 with more samples. `se_pop`
is that of the mean over problems like these; it goes to 0 with more problems alone. Problems are
the unit: samples of one problem are averaged first. What is NaN is left out.

Shape suffixes: M problems, S samples of a problem (padded with NaN).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trainer.eval import claims, statistics
from trainer.eval.statistics import SHARE, Estimate, Floats

Range = tuple[float, float] | None
STEP = 1e-5
"""Relative step of the differences behind the errors of functions of means."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A value with a 95% interval; `low` and `high` are NaN where one problem says nothing."""

    value: float
    low: float
    high: float
    n: int
    """Problems behind it."""
    samples: int
    """Samples behind it."""
    se_fixed: float | None = None
    """Standard error on these problems; None where it is undefined or unknown."""
    se_pop: float | None = None
    """Standard error over problems like these."""

    @property
    def half_width(self) -> float:
        """Of its longer side: what "+-" may stand before."""
        return max(self.high - self.value, self.value - self.low)

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.value, self.low, self.high, self.n)


NOTHING = Metric(math.nan, math.nan, math.nan, 0, 0)
"""Of no problem."""


def from_samples(values_MS: ArrayLike, within: Range = None) -> Metric:
    """Mean over problems of the mean over samples, with a t interval (`statistics.mean`)."""
    values = _samples(values_MS)
    centre_M = statistics.over_samples(values)
    count = int((~np.isnan(values)).sum())
    return over_problems(centre_M, count, fixed_error(values), within)


def over_problems(
    values_M: ArrayLike, samples: int, fixed: float | None = None, within: Range = None
) -> Metric:
    """Mean of what is known of whole problems only, with a t interval (`statistics.mean`)."""
    centre_M = np.asarray(values_M, dtype=np.float64)
    found = statistics.mean(centre_M, within=within)
    return _metric(found, samples, fixed, _population(centre_M))


def pass_at_k(correct_MS: ArrayLike, k: int) -> Metric:
    """Any of k right; a problem with fewer than k known samples is left out.

    The error on these problems is that of leaving out one sample at a time.
    """
    correct = _samples(correct_MS)
    n_M, c_M = (~np.isnan(correct)).sum(axis=1), np.nansum(correct, axis=1)
    enough_M = n_M >= k
    values_M = statistics.pass_at(correct, k)
    fixed = None
    if enough_M.any() and (n_M[enough_M] > k).all():
        n, c = n_M[enough_M], c_M[enough_M]
        # Where no sample is right (or wrong) there is none to leave out: its share is 0.
        without = [statistics.pass_at_k(n - 1, np.clip(c - r, 0, n - 1), k) for r in (1, 0)]
        share = c / n
        centre = share * without[0] + (1 - share) * without[1]
        spread = share * (without[0] - centre) ** 2 + (1 - share) * (without[1] - centre) ** 2
        fixed = float(np.sqrt(((n - 1) * spread).sum()) / len(n))
    return over_problems(values_M, int(n_M[enough_M].sum()), fixed, SHARE)


def of_means(
    estimator: Callable[..., Estimate], *values_MS: ArrayLike, shared: bool = True
) -> Metric:
    """A function of means over problems, with errors by its slopes at those means.

    Args:
        estimator: maps one array [M] of problems' means for each of `values_MS` to an estimate that
            depends on the means over problems alone, as a ratio of sums does.
        values_MS: each [M, S] over the same problems; a problem unknown in one is left out of all.
        shared: sample s is the same generation in all of them; else all were sampled apart.
    """
    arrays = [_samples(values) for values in values_MS]
    means = np.stack([statistics.over_samples(values) for values in arrays])
    known_M = ~np.isnan(means).any(axis=0)
    if not known_M.any():
        return NOTHING
    arrays, means = [values[known_M] for values in arrays], means[:, known_M]
    counts = [int((~np.isnan(values)).sum()) for values in arrays]
    samples = max(counts) if shared else sum(counts)
    estimate = estimator(*means)
    slopes = _slopes(estimator, means.mean(axis=1))
    if not np.isfinite(slopes).all() or not math.isfinite(estimate.value):
        return of_estimate(estimate, samples)
    parts = [slope * values for slope, values in zip(slopes, arrays, strict=True)]
    fixed: float | None
    if shared:
        fixed = fixed_error(sum(parts[1:], parts[0]))
    else:
        each = [fixed_error(part) for part in parts]
        known = [error for error in each if error is not None]
        fixed = math.hypot(*known) if len(known) == len(each) else None
    return _metric(estimate, samples, fixed, _population(slopes @ means))


def quantile(values_MS: ArrayLike, q: float) -> Metric:
    """Quantile of all samples; its standard errors are not told."""
    return _of_all(lambda values: statistics.quantile(values, q), values_MS)


def deviation(values_MS: ArrayLike) -> Metric:
    """Standard deviation of all samples; its standard errors are not told."""
    return _of_all(statistics.deviation, values_MS)


def _of_all(estimator: Callable[[Floats], Estimate], values_MS: ArrayLike) -> Metric:
    values = _samples(values_MS)
    known = ~np.isnan(values)
    values = values[known.any(axis=1)]
    return of_estimate(estimator(values), int(known.sum())) if len(values) else NOTHING


def of_estimate(estimate: Estimate, samples: int) -> Metric:
    """A metric whose errors are not told."""
    return _metric(estimate, samples, None, None)


def macro(parts: Sequence[Metric]) -> Metric:
    """Mean over tasks, each counting once."""
    value = float(np.mean([part.value for part in parts]))
    fixed, pop = (_pooled([getattr(p, name) for p in parts]) for name in ("se_fixed", "se_pop"))
    low = high = math.nan
    if pop is not None:
        errors = [p.se_pop or 0.0 for p in parts]
        found = claims.macro([p.value for p in parts], errors, [p.n for p in parts])
        low, high = found.low, found.high
        if any((p.se_pop or 0.0) < statistics.SAME and p.low < p.high for p in parts):
            # Where a task's problems all agree its error says nothing, but its interval does: the
            # ends are pooled instead (Zou and Donner 2008, Stat. in Medicine 27).
            low = value - math.hypot(*(p.value - p.low for p in parts)) / len(parts)
            high = value + math.hypot(*(p.high - p.value for p in parts)) / len(parts)
    n, samples = sum(part.n for part in parts), sum(part.samples for part in parts)
    return Metric(value, low, high, n, samples, fixed, pop)


def as_json(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """For a JSON file, which has no NaN (null there) and no infinity ("inf")."""
    return {
        name: {field: _plain(getattr(m, field)) for field in Metric.__dataclass_fields__}
        for name, m in metrics.items()
    }


def from_json(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
    """The inverse of `as_json`; what was not told is NaN, or None for an error."""
    return {name: _read(m) for name, m in found.items()}


def _read(m: Mapping[str, Any]) -> Metric:
    value, low, high = (_number(m.get(field)) for field in ("value", "low", "high"))
    fixed, pop = (
        None if m.get(error) is None else _number(m[error]) for error in ("se_fixed", "se_pop")
    )
    return Metric(value, low, high, int(m.get("n", 0)), int(m.get("samples", 0)), fixed, pop)


def _metric(estimate: Estimate, samples: int, fixed: float | None, pop: float | None) -> Metric:
    return Metric(estimate.value, estimate.low, estimate.high, estimate.n, samples, fixed, pop)


def _samples(values_MS: ArrayLike) -> Floats:
    values = np.asarray(values_MS, dtype=np.float64)
    assert values.ndim == 2, values.shape
    return values


def fixed_error(values_MS: Floats) -> float | None:
    """(1/M) sqrt(sum_i var_i / n_i); None where a problem has one sample only."""
    known = ~np.isnan(values_MS)
    counts_M = known.sum(axis=1)
    values, known, counts_M = (part[counts_M > 0] for part in (values_MS, known, counts_M))
    if not counts_M.size or counts_M.min() < 2:
        return None
    off = np.where(known, values - statistics.over_samples(values)[:, None], 0)
    variance_M = (off**2).sum(axis=1) / (counts_M - 1)
    return float(np.sqrt((variance_M / counts_M).sum()) / len(counts_M))


def _population(values_M: Floats) -> float | None:
    error = statistics.population_error(values_M)
    return None if math.isnan(error) else error


def _slopes(estimator: Callable[..., Estimate], means: Floats) -> Floats:
    """Central differences at the means, as if they were those of one problem."""
    out = []
    for i, step in enumerate(np.maximum(np.abs(means), 1e-3) * STEP):
        off = np.zeros(len(means))
        off[i] = step
        up, down = (estimator(*(means + sign * off)[:, None]).value for sign in (1, -1))
        out.append((up - down) / (2 * step))
    return np.array(out)


def _pooled(errors: Sequence[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    return math.hypot(*known) / len(errors) if known and len(known) == len(errors) else None


def _plain(value: float | None) -> float | str | None:
    if value is None or math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)
