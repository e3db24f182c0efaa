"""`laconic compare`: two evaluations of the same problems, paired, and a gate for pipelines."""

from __future__ import annotations

import argparse
import json
import sys

from trainer.eval import require
from trainer.eval.compare import compare as measure


def compare(args: argparse.Namespace) -> int:
    """Print what B gains and loses against A.

    Returns:
        1 where a requirement does not hold, else 0.

    Raises:
        ValueError: no evaluation, two that cannot be compared, or a requirement that is none.
    """
    wanted = [require.requirement(text) for text in args.require]
    found = measure(args.a, args.b, args.noninferiority_margin)
    print(json.dumps(found.as_json(), indent=1) if args.json else found.text())
    if args.out is not None:
        from trainer.report.evaluation import write

        page = write([args.a, args.b], args.out, args.a)
        print(f"report: {page}", file=sys.stderr if args.json else sys.stdout)
    failed = require.failures(wanted, found.metrics(), {"noninferiority": found.inferior()})
    for line in failed:
        print(f"laconic: required: {line}", file=sys.stderr)
    return int(bool(failed))
