"""What evaluation costs: over raw generation, and offline over many saved samples.

    python -m tests.bench.evaluation overhead [rounds]
    python -m tests.bench.evaluation offline [problems] [samples]

overhead: the same jobs by the rollout worker alone, in one list, and by an evaluation (rendering
twice, lots, rows, files), in turns; and by the worker's flow alone, to see what of it is the lots.
base/find, 256 problems x 4 samples; at 4 budgets, and uncut. Turns differ by more than is to be
told apart; the last line is one run's seconds over those that it spent in the rollout worker.

offline: saved traces of a model that is right two times in three, answers as models write them
(the forms and perturbations of tests.forms over the golds of MATH-500 where they are at hand),
eight budgets and the uncut run; graded again, measured and drawn by `laconic eval FOLDER
--offline` in a process of its own, on two cores.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.eval import samples
from trainer.eval.samples import PROBLEMS, SAMPLES, SETTINGS, Row

GRID = (0, 256, 512, 1024, 2048, 4096, 8192, 16384)
CLOCK = time.process_time if os.environ.get("LACONIC_BENCH_CPU") else time.perf_counter
STEP = (
    "We are given the expression above, so we first simplify both sides. Substituting $x = 2t$ "
    "gives $4t^2 - 3t + \\frac{1}{2} = 0$, and therefore the sum of the roots is $\\frac{3}{4}$. "
)


# Overhead


def overhead(rounds: int = 7) -> None:
    """Print medians of the ratios of seconds."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for grid in ((0, 16, 32, 64), ()):
        _overhead(grid, rounds)


def _overhead(grid: tuple[int, ...], rounds: int) -> None:
    from samplers.budget import Asks
    from tests.evaluated import task, worker
    from trainer.eval.collect import _jobs
    from trainer.eval.run import evaluate
    from trainer.eval.settings import EvalSettings, ways

    engine, problems = worker("base/find"), task(256)
    settings = EvalSettings(budgets=grid, samples=4, answer_tokens=8)
    (way,) = ways(settings, Asks())
    lots = [_jobs(problems, at, way, settings, range(4)) for at in range(256)]
    jobs = [job for lot in lots for job in lot]

    def raw() -> None:
        engine.generate(jobs)

    def flow() -> None:
        with engine.flow() as flow:
            for lot in lots:
                flow.add(lot)
            while len(flow):
                flow.finished()

    def evaluation() -> None:
        with tempfile.TemporaryDirectory() as out:
            evaluate(engine, [problems], settings, Path(out), asks=Asks())

    inside, until = [0.0], engine.until

    def timed(done: Callable[[], bool]) -> None:
        started = CLOCK()
        until(done)
        inside[0] += CLOCK() - started

    engine.until = timed  # type: ignore[method-assign]
    own: list[float] = []
    sides = {"raw": raw, "flow": flow, "evaluation": evaluation}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        order = list(sides) if turn % 2 else list(reversed(sides))
        for name in order:
            started, inside[0] = CLOCK(), 0.0
            sides[name]()
            if turn:  # the first warms up
                seconds[name].append(CLOCK() - started)
                if name == "evaluation":
                    own.append(seconds[name][-1] / inside[0] - 1)
    print(f"budgets {[*grid, 'inf']}, {len(jobs)} samples, {rounds} rounds")
    for name in sides:
        ratios = [a / b for a, b in zip(seconds[name], seconds["raw"], strict=True)]
        print(
            f"  {name:10}  {statistics.median(seconds[name]):6.2f} s  "
            f"{statistics.median(ratios):.3f} of raw ({min(ratios):.3f}-{max(ratios):.3f})"
        )
    print(f"  evaluation over its own rollouts: {1 + statistics.median(own):.3f}", end="")
    print(f" ({1 + min(own):.3f}-{1 + max(own):.3f})")


# Offline


def offline(problems: int = 1000, count: int = 64) -> None:
    """Print seconds and peak memory of grading, measuring and drawing saved samples again."""
    with tempfile.TemporaryDirectory() as out:
        folder = Path(out)
        started = time.perf_counter()
        write(folder, problems, count)
        size = (folder / SAMPLES).stat().st_size / 2**20
        print(f"{problems} problems x {count} samples x {len(GRID)} budgets: {size:.0f} MiB made")
        print(f"  in {time.perf_counter() - started:.0f} s", flush=True)
        argv = [sys.executable, "-m", "launch.cli", "eval", str(folder), "--offline"]
        pinned = ["taskset", "-c", "0,1", *argv]
        started = time.perf_counter()
        done = subprocess.run(pinned, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        print(done.stdout[-600:] + done.stderr[-2000:])
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        assert done.returncode == 0
        print(f"offline: {seconds:.1f} s on 2 cores, largest process {peak:.0f} MiB")


def write(folder: Path, problems: int, count: int, seed: int = 0) -> None:
    """An evaluation of a model that there is not."""
    from samplers.budget import Asks
    from tests.evaluated import task
    from trainer.eval.run import describe
    from trainer.eval.settings import EvalSettings, ways

    golds = _golds()
    draw = random.Random(seed)
    settings = EvalSettings(budgets=GRID, samples=count, max_tokens=32768)
    described = describe(settings, [task(1, "synthetic")], ways(settings, Asks()), Asks(), {})
    described["tasks"][0]["verifier"] = "math"
    described["model"] = "synthetic"
    (folder / SETTINGS).write_text(json.dumps(described))
    with (folder / PROBLEMS).open("w") as listed, (folder / SAMPLES).open("w") as out:
        for at in range(problems):
            gold = golds[at % len(golds)]
            listed.write(samples.line(_problem(at, gold)))
            out.writelines(samples.line(row) for row in _samples(at, gold, count, draw))


def _golds() -> list[str]:
    from tests import answers

    if answers.path("math500.jsonl").is_file():
        return answers.answers("math500.jsonl")
    return answers.field()


def _problem(at: int, gold: str) -> Row:
    return {
        "task": "synthetic",
        "id": f"p{at}",
        "index": at,
        "prompt": f"Problem {at}. {STEP}",
        "messages": [{"role": "user", "content": f"Problem {at}. {STEP}"}],
        "gold": gold,
        "difficulty": 1 + at % 5,
        "verifier": "",
        "meta": {},
    }


def _samples(at: int, gold: str, count: int, draw: random.Random) -> Iterator[Row]:
    """Longer thoughts are righter; wrong answers are few and often the same."""
    from tests.forms import forms
    from tests.perturbations import perturbed

    right = [text for _, text in forms(gold)]
    wrong = [text for _, text in perturbed(gold)][:12] or [r"Thus $\boxed{-77}$."]
    needs = draw.lognormvariate(7.0, 1.2)
    for number in range(count):
        think = min(32768, int(draw.lognormvariate(7.6, 0.8)))
        closed = think < 32768
        cuts = []
        for budget in [*(b for b in GRID if b < think or not closed), "inf"]:
            spent = think if budget == "inf" else budget
            known = draw.random() < 0.9 * (spent >= needs) + 0.08
            said = draw.choice(right) if known else wrong[int(len(wrong) * draw.random() ** 2)]
            text: str | None = STEP * draw.randint(1, 4) + said
            if budget == "inf" and not closed:
                text = None
            cuts.append(_cut(budget, spent, text, draw))
        yield {
            "task": "synthetic",
            "id": f"p{at}",
            "sample": number,
            "asked": "",
            "seed": draw.getrandbits(64),
            "prompt_tokens": 80,
            "think_tokens": think,
            "closed": closed,
            "finish": "stop" if closed else "length",
            "thought_logprob": -draw.random(),
            "score": None,
            "cuts": cuts,
        }


def _cut(budget: int | str, spent: int, text: str | None, draw: random.Random) -> dict[str, Any]:
    return {
        "budget": budget,
        "think": spent,
        "tokens": 0 if text is None else len(text) // 4,
        "text": text,
        "forced": budget != "inf",
        "finish": "stop" if text is not None else "length",
        "confidence": round(draw.random(), 6),
    }


def main(argv: Sequence[str]) -> None:
    what, *numbers = argv or ["overhead"]
    {"overhead": overhead, "offline": offline}[what](*map(int, numbers))


if __name__ == "__main__":
    main(sys.argv[1:])
