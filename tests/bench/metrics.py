"""Seconds and memory of all metrics of a large evaluation: python -m tests.bench.metrics"""

from __future__ import annotations

import argparse
import resource
import time

from tests import tables
from trainer.eval import metrics

GRID = (16, 32, 48, 64, 72, 80, 88, 95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=64)
    args = parser.parse_args()
    table = tables.random(args.problems, args.samples, GRID)
    began = time.process_time()
    found = metrics.measure([table])
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(found)} metrics, {args.problems} problems x {args.samples} samples x {len(GRID)}")
    print(f"budgets: {seconds:.1f} s of one core, {peak:.0f} MB at most")


if __name__ == "__main__":
    main()
