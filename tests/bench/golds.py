"""False rejects and false accepts on the golds of public sets, as the README's table.

    LACONIC_DATA=FOLDER python -m tests.bench.golds [--verifier math] [--workers 4] [--faults FILE]

Every distinct gold is written in every form of tests.forms (right) and changed in every way of
tests.perturbations (wrong). Sets that are not at hand are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rewards.service.pool import VerifierPool
from tests import answers
from tests.answers import Tried, examine

HEAD = "| set | golds | forms | false rejects | wrong answers | false accepts | unknown |"


def row(name: str, tried: Tried) -> str:
    """A line of the table."""
    share = len(tried.rejected) / max(tried.forms, 1)
    return (
        f"| {name} | {tried.golds:,} | {tried.forms:,} | {len(tried.rejected)} ({share:.2%}) | "
        f"{tried.perturbations:,} | {len(tried.accepted)} | {tried.unknown} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.golds", description=__doc__)
    parser.add_argument("--verifier", default="math")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--faults", type=Path, help="file for every false verdict")
    args = parser.parse_args()
    sets = {name: answers.path(name) for name in answers.SETS}
    golds = {name: answers.answers(name) for name, path in sets.items() if path.is_file()}
    golds["in the manner of others"] = answers.field()
    print(f"{HEAD}\n|{'---|' * 7}", flush=True)
    faults: list[str] = []
    with VerifierPool(args.verifier, workers=args.workers, cache=0) as pool:
        for name, some in golds.items():
            tried = examine(some, pool.grade)
            print(row(name.partition(".")[0], tried), flush=True)
            for kind, found in (("reject", tried.rejected), ("accept", tried.accepted)):
                faults += ["\t".join((name, kind, *fault)).replace("\n", "\\n") for fault in found]
    if args.faults:
        args.faults.write_text("".join(f"{line}\n" for line in faults))


if __name__ == "__main__":
    main()
