"""`make bench`: what the README's figures of speed come from. Run nothing else beside it."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from importlib import metadata

from tests.bench import learner, nested, overlap, step, sync, workers


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--trl", default=".venv-trl/bin/python", help="python that has TRL")
    parser.add_argument("--recipe", default="grpo/find")
    parser.add_argument("--pairs", type=int, default=3, help="blocks of each side, in turns")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a block")
    parser.add_argument("--micro-batch", type=int, default=32, help="TRL's, in sequences")
    parser.add_argument("--core", type=int, help="pin all processes of both sides to this core")
    args = parser.parse_args()
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("torch", "transformers"))
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}; {versions}", flush=True)
    step.compare(args.trl, args.recipe, args.pairs, args.steps, args.micro_batch, args.core)
    print(flush=True)
    overlap.compare(args.recipe, args.pairs, 2 * args.steps)
    print(flush=True)
    nested.compare("torch")
    print(flush=True)
    for engine in workers.installed():
        workers.compare(engine)
        print(flush=True)
        sync.ways(engine)
    print(flush=True)
    if "vllm" in workers.installed():  # in a process of its own, which vLLM takes over
        subprocess.run([sys.executable, "-m", "tests.bench.nested", "vllm"], check=True)
        print(flush=True)
        subprocess.run([sys.executable, "-m", "tests.bench.vllm_engine"], check=True)
        print(flush=True)
    learner.compare(args.recipe, repeats=2 * args.steps)  # last: it joins a process group


if __name__ == "__main__":
    main()
