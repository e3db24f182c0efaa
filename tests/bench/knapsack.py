"""Seconds that the knapsack allocator needs to divide a step's rollouts, on one core.

    OMP_NUM_THREADS=1 python -m tests.bench.knapsack

Success rates are uniform in (0, 1), 16 rollouts a prompt, bounds 2 and 128. Beside it a dynamic
programme over the total, vectorised over it, up to the largest size that takes it three minutes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from samplers.allocation.knapsack import information, solve

LOW, UP, MEAN = 2, 128, 16
SIZES = (256, 1024, 4096, 16_384, 100_000)
LONGEST = 180.0


def dynamic_programme(
    values_NK: NDArray[np.float64], low: int, total: int
) -> tuple[float, NDArray[np.intp]]:
    """Largest sum of values, and sizes [N] that reach it: any values, any shape, exhaustive.

    Args:
        values_NK: worth of low, low + 1, ... rollouts of each prompt.
    """
    spare = total - low * len(values_NK)
    best_S = np.full(spare + 1, -np.inf)
    best_S[0] = 0.0
    picks = []
    for values_K in values_NK:
        options_KS = np.full((len(values_K), spare + 1), -np.inf)
        for k, value in enumerate(values_K[: spare + 1]):
            options_KS[k, k:] = best_S[: spare + 1 - k] + value
        picks.append(options_KS.argmax(axis=0).astype(np.int16))  # or it takes gigabytes
        best_S = options_KS.max(axis=0)
    sizes, left = [], spare
    for pick_S in reversed(picks):
        sizes.append(low + int(pick_S[left]))
        left -= int(pick_S[left])
    return float(best_S[spare]), np.array(sizes[::-1], np.intp)


def main() -> None:
    rng = np.random.default_rng(0)
    plain = 0.0
    for size in SIZES:
        rates_N, total = rng.uniform(size=size), MEAN * size
        gains = statistics.median(_time(lambda: solve(rates_N, total, LOW, UP)) for _ in range(5))  # noqa: B023
        line = f"{size} prompts, {total} rollouts: {gains:.4f} s"
        # a size four times as large takes sixteen times as long
        if 16 * plain < LONGEST:
            values_NK = information(np.arange(LOW, UP + 1), rates_N[:, None])
            began = time.perf_counter()
            best, _ = dynamic_programme(values_NK, LOW, total)
            plain = time.perf_counter() - began
            ours = information(solve(rates_N, total, LOW, UP), rates_N).sum()
            line += f"; dynamic programme {plain:.2f} s, {plain / gains:.0f} times as long"
            line += f", values differ by {abs(best - ours):.1e}"
        print(line, flush=True)


def _time(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
