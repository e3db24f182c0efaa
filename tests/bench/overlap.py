"""A step that overlaps generation and training, over the longer of the two alone.

    python -m tests.bench.overlap [recipe] [pairs] [steps]

Both sides go the whole way: `laconic train`, Ray, an engine and a learner as processes of their own
with one thread each. By turns (max_staleness 0) the step is their sum; one step ahead it should be
the longer one. A learning rate of nearly 0 keeps lengths what they are, and so many epochs are
trained that both take about the same time, which is where overlapping has most to lose. Blocks are
interleaved and figures are medians, because machines slow down and speed up.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from trainer.config import load

SETTINGS = ("optim.lr=1e-9", "evaluation=null", "name=bench", "deterministic=false")
ROOT = str(Path(__file__).resolve().parents[2])
Step = dict[str, float]


def compare(recipe: str, pairs: int, steps: int) -> None:
    """Run the blocks and print a table.

    Raises:
        RuntimeError: a block failed, with the end of what it printed.
    """
    epochs = balance(recipe, steps)
    heads = ("pair", "generate", "train", "sync", "by turns")
    heads += ("ahead: generate", "train", "step", "step / max")
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    ratios = []
    for pair in range(pairs):
        turns = block(recipe, steps, f"epochs={epochs}", f"seed={pair}")
        ahead = block(recipe, steps, f"epochs={epochs}", f"seed={pair}", "max_staleness=1")
        alone = {name: median(turns, name) for name in ("generate", "train", "sync", "step")}
        longer = max(alone["generate"], alone["train"])
        ratios.append(median(ahead, "step") / longer)
        beside = [median(ahead, name) for name in ("generate", "train", "step")]
        cells = [f"{seconds:.2f}" for seconds in (*alone.values(), *beside)]
        print(f"| {pair + 1} | {' | '.join(cells)} | {ratios[-1]:.2f} |", flush=True)
    print(f"\nahead / max(generate, train), epochs={epochs}: {statistics.median(ratios):.2f}")


def balance(recipe: str, steps: int) -> int:
    """Epochs with which training takes about as long as generation."""
    found = block(recipe, steps, "epochs=1")
    return max(1, round(median(found, "generate") / median(found, "train")))


def block(recipe: str, steps: int, *settings: str) -> list[Step]:
    """Steps of one process tree, without the first (a warm-up) and the last (nothing is ahead)."""
    with TemporaryDirectory(prefix="laconic-bench-") as name:
        output = [f"output={name}", f"steps={steps + 2}"]
        settings = (*SETTINGS, *settings)
        command = [sys.executable, "-m", "launch.cli", "train", recipe, *settings, *output]
        env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=ROOT)
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\nfailed:\n{done.stderr[-2000:]}")
        lines = (load(recipe, (*settings, *output)).folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in lines.splitlines()][1:-1]


def median(steps: list[Step], phase: str) -> float:
    return statistics.median(step[f"time/{phase}"] for step in steps)


if __name__ == "__main__":
    given = [*sys.argv[1:], *("grpo/find", "3", "8")[len(sys.argv) - 1 :]]
    compare(given[0], int(given[1]), int(given[2]))
