"""Real runs of which processes are killed at chosen moments, and what tells two runs apart.

A moment is an event that can be seen from outside (see `MOMENTS`) and seconds after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from trainer.metrics import MACHINE

STEPS = 6
SMALL = (
    "prompts_per_step=2",
    "rollouts_per_prompt=4",
    "tokens_per_micro_batch=512",
    "rollout.max_tokens=48",
    "rollout.workers=2",
    "learner.ranks=2",
    "grader={workers: 1, processes: 2}",
    "evaluation={every: 3, problems: 12, budgets: [8, 24], answer_tokens: 4}",
    "checkpoint.every=2",
    "tracking.samples=100",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": ("length/find",),
    "memory": ("memory/find",),
    "curriculum": (
        "grpo/find",
        "budget={name: curriculum, of: {name: fixed, think: 38, answer: 8}, "
        "fields: {think: [[0, 38], [3, 24]]}}",
    ),
    "gvm": (
        "gvm/find",
        "allocation={name: gvm, every: 3, pilot: 2, least: 1}",
        "loss={name: ppo_clip, kl: k3, kl_coef: 1.0e-3}",
    ),
    "knapsack": ("knapsack/find", "data={task: find, limit: 4}", "allocation.up=16"),
    "reinforce_ada": ("reinforce_ada/find", "allocation={rounds: 2, per_round: 4}"),
    "chunked": ("chunked/find", "budget.chunk=24"),
    "lora": ("lora/find",),
    "ema": ("grpo/find", "loss={kl: k3, kl_coef: 1.0e-2, reference: ema}"),
    "zero2": ("length/find", "learner.zero=2"),
    "zero3": ("length/find", "learner.zero=3"),
    "stages": ("stages.yaml",),
}
STAGES = """
extends: length/find
stages:
  - kind: sft
    steps: 3
    model: {path: base/fresh}
    loss: {name: ce}
    supervised: {pool: 16}
    shaping: []
  - {steps: 3, allocation: {name: knapsack, up: 16}, data: {limit: 4}}
"""
ROLES: dict[str, Callable[[list[str]], bool]] = {
    "learner": lambda words: words[0].startswith("ray::LearnerActor"),
    "engine": lambda words: words[0].startswith("ray::RolloutActor"),
    "grader": lambda words: words[0].startswith("ray::GraderActor"),
    "verifier": lambda words: "rewards.service.template" in " ".join(words[:3]),
    "raylet": lambda words: words[0].endswith("/raylet"),
    "gcs": lambda words: words[0].endswith("/gcs_server"),
}
"""How a process below the driver's is known by its command line."""
FATAL = ("driver", "raylet", "gcs")
"""Roles without which a run ends: it is resumed."""


@dataclass(frozen=True)
class Kill:
    """`role` is killed `after` seconds past the moment (what, which)."""

    role: str
    what: str = "begun"
    which: int = 0
    after: float = 0.0

    def __str__(self) -> str:
        return f"{self.role} {self.after:.2f} s after {self.what} {self.which}"


@dataclass
class Told:
    """What became of a run of which processes were killed."""

    folder: Path
    seconds: float = 0.0
    kills: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)


class Running:
    """A `laconic` command in a session of its own."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self.folder, self.began = folder, time.monotonic()
        self.marks = folder.parent / "marks"
        self.seen = _size(self.marks)
        self.output = folder.parent / f"output-{time.monotonic_ns()}"
        with self.output.open("w") as out:
            self.process = psutil.Popen(
                [sys.executable, "-m", "launch.cli", *words],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def of(self, role: str) -> list[psutil.Process]:
        """Its processes of that role."""
        if role == "driver":
            return [self.process]
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self.process.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    words = process.cmdline()
                    if words and ROLES[role](words):
                        found.append(process)
        if role == "verifier":  # workers are forked from a template, of the same command line
            pids = {process.pid for process in found}
            found = [process for process in found if _parent(process) in pids]
        return sorted(found, key=lambda process: process.pid)

    def reached(self, what: str, which: int) -> bool:
        """Whether a moment has come: see `MOMENTS`."""
        if what == "begun":
            return True
        if what == "step":
            return _lines(self.folder / "metrics.jsonl") > which
        if what == "checkpoint":
            made = self.folder / "checkpoints" / f"step-{which:06d}"  # whole: it was too quick
            return made.with_suffix(".partial").exists() or made.exists()
        with contextlib.suppress(FileNotFoundError):
            return f"{what} {which}" in self.marks.read_text()[self.seen :].splitlines()
        return False

    def wait(self, true: Callable[[], object], seconds: float = 120.0) -> bool:
        """Whether it came true before the command ended."""
        until = time.monotonic() + seconds
        while not true():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < until, self.output.read_text()[-2000:]
            time.sleep(0.002)
        return True

    def kill(self, kill: Kill, pick: random.Random, number: int = signal.SIGKILL) -> str | None:
        """Who was killed; None: it had ended before."""
        alive = self.wait(lambda: self.reached(kill.what, kill.which))
        time.sleep(kill.after)
        if not alive or not self.wait(lambda: self.of(kill.role)):
            return None
        victim = pick.choice(self.of(kill.role) or [self.process])
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(number)
        return f"{kill} (process {victim.pid}, {time.monotonic() - self.began:.1f} s)"

    def end(self, seconds: float = 240.0) -> int:
        code: int = self.process.wait(seconds)
        return code

    def text(self) -> str:
        return self.output.read_text()


MOMENTS = ("begun", "step", "checkpoint", "loading", "loaded")
"""The command has begun; a line of step N is in metrics.jsonl; checkpoint N is being written; the
weights of version N (step N's) are on their way to an engine, or are there: it evaluates next,
where that is due."""


def words(variant: str, output: Path, *settings: str) -> list[str]:
    recipe, *own = VARIANTS[variant]
    steps = [f"steps={STEPS}"]
    if variant == "stages":
        steps = []
        (output / recipe).write_text(STAGES)
        recipe = str(output / recipe)
    engine = f"rollout.engine={{name: tests.marking_engine, file: {output / 'marks'}}}"
    shaping = {"plain": "arora_zanette, ", "memory": "{name: memory, explore_min_keys: 0}, "}
    where = "stages.1.shaping" if variant == "stages" else "shaping"
    witness = f"{where}=[{shaping.get(variant, '')}tests.witness]"
    return [
        recipe,
        f"output={output}",
        "name=run",
        engine,
        witness,
        *steps,
        *SMALL,
        *own,
        *settings,
    ]


def undisturbed(variant: str, output: Path, *settings: str) -> Told:
    """The run that all others are compared with."""
    return disturbed(variant, output, [], *settings)


def disturbed(
    variant: str, output: Path, kills: Sequence[Kill], *settings: str, seed: int = 0
) -> Told:
    """Train with kills, one after the other; what ends the command is followed by `resume`."""
    output.mkdir(parents=True, exist_ok=True)
    told, pick = Told(output / "run-seed0"), random.Random(seed)
    first = ["train", *words(variant, output, *settings)]
    waiting, began = list(kills), time.monotonic()
    ended = True
    while ended:
        resumable = (told.folder / "config.yaml").is_file()
        run = Running(["resume", str(told.folder)] if resumable else first, told.folder)
        try:
            ended = _suffer(run, waiting, pick, told)
        finally:
            told.output.append(run.text())
            stop(run.process)
    told.seconds = time.monotonic() - began
    return told


def _suffer(run: Running, waiting: list[Kill], pick: random.Random, told: Told) -> bool:
    """Whether a kill has ended it, as it should; else it came to its own end."""
    while waiting:
        done = run.kill(waiting[0], pick)
        if done is None:
            break
        told.kills.append(done)
        if waiting.pop(0).role in FATAL:
            run.end()
            return True
    assert run.end() == 0, f"{told.kills}: {run.text()[-3000:]}"
    return False


def stop(process: psutil.Popen) -> None:
    """Whatever happens in a test, nothing of it stays."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait(10)


# What tells two runs apart


def differences(one: Path, two: Path) -> list[str]:
    """Where two runs of one recipe differ though they should not, times and faults excepted."""
    found = [f"{run}: steps {have}" for run in (one, two) if (have := steps(run)) != expected(run)]
    for a, b in zip(metrics(one), metrics(two), strict=False):
        found += [
            f"step {a['step']}: {k}: {a.get(k)} and {b.get(k)}"
            for k in sorted({*a, *b})
            if a.get(k) != b.get(k)
        ]
    for name in ("rollouts", "eval"):
        found += _files(one / name, two / name)
    return found + _files(_last(one), _last(two))


def expected(folder: Path) -> list[int]:
    """Every step once."""
    return list(range(1 + max(steps(folder), default=0)))


def steps(folder: Path) -> list[int]:
    """Of the lines of metrics.jsonl as they are."""
    return [json.loads(line)["step"] for line in _text(folder / "metrics.jsonl").splitlines()]


def metrics(folder: Path) -> list[dict]:
    lines = _text(folder / "metrics.jsonl").splitlines()
    drop = (*MACHINE, "faults/")
    return [{k: v for k, v in json.loads(s).items() if not k.startswith(drop)} for s in lines]


def seen(folder: Path) -> dict:
    """What `tests.witness` has seen."""
    state = json.loads((_last(folder) / "driver.json").read_text())
    witness: dict = state["shaping"]["witness"]
    return witness


def rows(folder: Path, step: int) -> list[dict]:
    """The rollouts of a step that were written down."""
    return [json.loads(line) for line in _text(folder / f"rollouts/step-{step}.jsonl").splitlines()]


def faults(folder: Path) -> list[dict]:
    return [json.loads(line) for line in _text(folder / "faults.jsonl").splitlines()]


def _last(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-??????"))


def _files(one: Path, two: Path) -> list[str]:
    """Of two folders: what only one has, and what differs."""
    names = [
        {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} for root in (one, two)
    ]
    found = [f"only one run has {one.name}/{name}" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1] - {"COMPLETE", "recipe.yaml"}):
        if (one / name).read_bytes() != (two / name).read_bytes():
            found += _inside(one / name, two / name) or [f"{one.name}/{name}: not the same bytes"]
    return found


def _inside(one: Path, two: Path) -> list[str]:
    if one.suffix != ".safetensors":
        return []
    from safetensors.numpy import load_file

    a, b = load_file(one), load_file(two)
    return [f"{one.name}: {k}" for k in a if k not in b or not np.array_equal(a[k], b[k])]


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _lines(path: Path) -> int:
    """The step of the last whole line, and 1; 0 without one."""
    lines = _text(path).splitlines()
    with contextlib.suppress(ValueError, IndexError):
        return 1 + int(json.loads(lines[-1])["step"])
    return 0


def _size(path: Path) -> int:
    return len(_text(path))


def _parent(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        pid: int = process.ppid()
        return pid
    return 0


# Random moments


def drawn(seed: int, count: int) -> Iterator[tuple[str, list[Kill]]]:
    """Variants and kills. Every role and every moment comes up in turn."""
    chance = random.Random(seed)
    roles = ("driver", "learner", "engine", "grader", "verifier", "raylet", "gcs")
    variants = list(VARIANTS)
    chance.shuffle(variants)
    for i in range(count):
        kills = [_one(chance, roles[i % len(roles)])]
        if i % 3 == 2:  # twice in a row
            kills.append(_one(chance, chance.choice(roles)))
        yield variants[i % len(variants)], kills


def _one(chance: random.Random, role: str) -> Kill:
    what = chance.choice(("begun", "step", "step", "checkpoint", "loading", "loaded"))
    step = chance.randrange(STEPS - 1)
    which = {
        "begun": 0,
        "step": step,
        "checkpoint": chance.choice((2, 4)),
        "loading": 1 + step,
        "loaded": chance.choice((3, 3, 1 + step)),  # 3: its evaluation
    }[what]
    longest = {"begun": 12.0, "step": 0.5, "checkpoint": 0.1, "loading": 0.1, "loaded": 0.3}[what]
    return Kill(role, what, which, chance.uniform(0, longest))


def seed() -> int:
    return int(os.environ.get("LACONIC_KILLS_SEED", "0"))
