"""Time of a GRPO step, ours against TRL's, in interleaved blocks.

Both sides get the same model, the same prompts in the same order, 32 x 8 rollouts of at most 192
tokens, one thread per process, and a learning rate of nearly 0, so that lengths stay what they
are. Ours goes the whole way: `laconic train`, Ray, a rollout worker and a DeepSpeed learner as
processes of their own, which work in turns. A block is one process tree: it starts, warms up for a
step and is then timed; TRL and ours take turns, and the figures are medians over pairs, because
machines slow down and speed up.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from trainer.config import Recipe, load

HERE = Path(__file__).resolve().parent
SETTINGS = ("optim.lr=1e-9", "evaluation=null", "name=bench")
PARTS = ("seconds", "generate", "train", "other")
OURS, TRL = "laconic", "TRL"


@dataclass(frozen=True, slots=True)
class Block:
    """Medians over the steps of one block, in seconds; tokens sampled a step; memory."""

    seconds: float
    generate: float
    train: float
    other: float
    """Neither generation nor training: scoring, weight sync, data, logging."""
    tokens: float
    peak_mb: float
    """Most memory of the whole process tree at any time (proportional set size where known)."""

    @classmethod
    def of(cls, steps: Sequence[dict[str, float]], peak_mb: float) -> Block:
        def median(value: Callable[[dict[str, float]], float]) -> float:
            return statistics.median(map(value, steps))

        return cls(
            median(lambda s: s["seconds"]),
            median(lambda s: s["generate"]),
            median(lambda s: s["train"]),
            median(lambda s: s["seconds"] - s["generate"] - s["train"]),
            median(lambda s: s["tokens"]),
            peak_mb,
        )


def compare(
    trl_python: str, recipe: str, pairs: int, steps: int, micro_batch: int, core: int | None
) -> None:
    """Run the blocks and print the table.

    Args:
        trl_python: interpreter of the environment of requirements-trl.txt.
        steps: timed steps of a block, after its warm-up step.
        micro_batch: TRL's sequences per micro-batch.
        core: pin every process of both sides to this core; None leaves them free.

    Raises:
        RuntimeError: a block failed, with the end of what it printed.
    """
    blocks: dict[str, list[Block]] = {TRL: [], OURS: []}
    for pair in range(pairs):
        with TemporaryDirectory(prefix="laconic-bench-") as name:
            folder = Path(name)
            resolved = load(recipe, (*SETTINGS, f"seed={pair}", f"output={folder}"))
            blocks[TRL].append(_trl(trl_python, resolved, folder, steps, micro_batch, core))
            blocks[OURS].append(_ours(recipe, resolved, steps, core))
        for side, done in blocks.items():
            print(f"pair {pair + 1}/{pairs}: {_line(side, done[-1:])}", flush=True)
    print("\n" + table(blocks))


def _ours(recipe: str, resolved: Recipe, steps: int, core: int | None) -> Block:
    output = [f"seed={resolved.seed}", f"output={resolved.output}", f"steps={steps + 1}"]
    command = [sys.executable, "-m", "launch.cli", "train", recipe, *SETTINGS, *output]
    _, peak_mb = _run(command, core)
    lines = map(json.loads, (resolved.folder / "metrics.jsonl").read_text().splitlines())
    names = {"seconds": "step", "generate": "generate", "train": "train"}
    found = [
        {"tokens": line["tokens/sampled"]} | {k: line[f"time/{v}"] for k, v in names.items()}
        for line in lines
        if "tokens/sampled" in line
    ]
    return Block.of(found[1:], peak_mb)


def _trl(
    python: str, recipe: Recipe, folder: Path, steps: int, micro_batch: int, core: int | None
) -> Block:
    from trainer.modelfolder import fetch

    stage = recipe.stages[0]
    sizes = {
        "steps": steps,
        "prompts-per-step": stage.prompts_per_step,
        "rollouts-per-prompt": stage.rollouts_per_prompt,
        "max-tokens": stage.rollout.max_tokens,
        "micro-batch": micro_batch,
        "lr": stage.optim.lr,
        "seed": recipe.seed,
    }
    model, prompts = str(fetch(stage.model.path)), folder / "prompts.jsonl"
    _dump_prompts(recipe, model, prompts, (steps + 1) * stage.prompts_per_step)
    flags = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    out, peak_mb = _run([python, str(HERE / "trl_step.py"), model, str(prompts), *flags], core)
    found = [json.loads(line) for line in out.splitlines() if line.startswith('{"step"')]
    return Block.of(found[1:], peak_mb)


def _dump_prompts(recipe: Recipe, model: str, path: Path, count: int) -> None:
    """The first prompts that our run will draw, rendered, as {"prompt", "answer"} lines."""
    from samplers import render
    from samplers.data import PromptStream
    from samplers.data import load as load_data
    from samplers.types import Plan

    stage = recipe.stages[0]
    renderer, plan = render.load(model, stage.markers), Plan(max_tokens=1)
    dataset = load_data(stage.data, "train", recipe.seed)
    stream = PromptStream(dataset, recipe.seed, stage.data.shuffle)
    with path.open("w") as file:
        for _ in range(count):
            prompt = stream.next()[1]
            text = renderer.decode(renderer.render(prompt, plan))
            file.write(json.dumps({"prompt": text, "answer": prompt.answer}) + "\n")


def _run(command: Sequence[str], core: int | None) -> tuple[str, float]:
    """What the command printed, and the most memory that its process tree ever had, in MB."""
    env = dict(os.environ, OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    env["PYTHONPATH"] = str(HERE.parent.parent)
    pin = None if core is None else lambda: os.sched_setaffinity(0, {core})
    process = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=pin,
    )
    peak, done = [0.0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, done))
    watcher.start()
    try:
        out, _ = process.communicate()
    finally:
        done.set()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}\nfailed:\n{out[-2000:]}")
    return out, peak[0]


def _watch(pid: int, peak: list[float], done: threading.Event) -> None:
    while not done.wait(0.25):
        peak[0] = max(peak[0], tree_mb(pid))


def tree_mb(pid: int) -> float:
    """Memory of a process and all below it now, in MB; shared pages are counted once."""
    total = 0
    try:
        root = psutil.Process(pid)
        members = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0.0
    for process in members:
        try:
            memory = process.memory_full_info()
        except psutil.Error:
            continue
        total += getattr(memory, "pss", None) or memory.rss
    return total / 2**20


def table(blocks: dict[str, list[Block]]) -> str:
    """Markdown: medians per side, and the ratio of each pair (median, and the range)."""
    head = "| side | " + " | ".join(f"{part} s" for part in PARTS) + " | tokens | peak MB |"
    lines = [head.replace("seconds s", "step s"), "|" + " --- |" * (len(PARTS) + 3)]
    lines += [_line(side, done) for side, done in blocks.items()]
    pairs = list(zip(blocks[TRL], blocks[OURS], strict=True))
    cells = []
    for part in ("seconds", "generate", "train", None, "tokens", "peak_mb"):
        if part is None:
            cells.append("")
            continue
        ratios = [getattr(a, part) / getattr(b, part) for a, b in pairs]
        span = f" ({min(ratios):.2f}-{max(ratios):.2f})" if len(ratios) > 1 else ""
        cells.append(f"{statistics.median(ratios):.2f}{span}")
    return "\n".join([*lines, f"| {TRL} / {OURS} | " + " | ".join(cells) + " |"])


def _line(side: str, blocks: Sequence[Block]) -> str:
    def median(name: str) -> float:
        return statistics.median(getattr(block, name) for block in blocks)

    cells = [f"{median(part):.2f}" for part in PARTS]
    cells += [f"{median('tokens'):.0f}", f"{median('peak_mb'):.0f}"]
    return f"| {side} | " + " | ".join(cells) + " |"
