"""Time of a weight sync from one learner to two engines, over that of copying its bytes twice.

    python -m tests.bench.sync [torch] [vllm]

A real fleet: actors in Ray, DeepSpeed, shared memory; a random llama of 100 million parameters in
float32. The copy is torch's, by one thread, between two tensors of 400 MB in this process that
were touched before. Syncs and copies take turns; the first two, which touch memory for the first
time, do not count.

Then the same by TCP, on this host's loopback, with and without checksums: what the way costs both
ends, without the network between them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import torch

from launch.cluster import cluster
from launch.fleet import Fleet
from tests.bench.memory import LARGE
from trainer.config import load

WARM = 2
WAYS = {
    "shared memory": {},
    "shared memory, checksum": {"sync__checksum": True},
    "tcp": {"sync__transport": "tcp"},
    "tcp, checksum": {"sync__transport": "tcp", "sync__checksum": True},
}


def ways(engine: str, repeats: int = 12) -> None:
    """Compare each way with the copies, and so with shared memory."""
    ratios = {}
    for name, settings in WAYS.items():
        print(f"{name}: ", end="")
        ratios[name] = compare(engine, repeats, **settings)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio / ratios['shared memory']:.2f} of shared memory's time")


def compare(engine: str, repeats: int = 12, **settings: object) -> float:
    """Print both times, and return the median of their ratios."""
    from tests.tiny import tiny_model, tiny_tokenizer

    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="laconic-bench-") as folder:
        model = tiny_model("llama", tied=True, **LARGE)
        size = sum(p.nbytes for p in model.parameters())
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        del model
        stage = load(
            "grpo/find",
            (
                f"model.path={folder}",
                f"rollout.engine={engine}",
                "rollout.workers=2",
                *(f"{k.replace('__', '.')}={v}" for k, v in settings.items()),
            ),
        ).stages[0]
        with cluster(cpus=4), Fleet(stage, folder) as fleet:
            source, target = torch.ones(size // 4), torch.ones(size // 4)

            def twice() -> None:
                for _ in range(2):
                    target.copy_(source)

            turns = [(_time(fleet.sync), _time(twice)) for _ in range(WARM + repeats)][WARM:]
    ratio = statistics.median(sync / copy for sync, copy in turns)
    sync, copy = (statistics.median(turn[i] for turn in turns) for i in (0, 1))
    print(f"{engine}, two engines: sync {1e3 * sync:.0f} ms of {size / 1e6:.0f} MB")
    print(f"the bytes copied twice: {1e3 * copy:.0f} ms; median ratio {ratio:.2f}", flush=True)
    return ratio


def _time(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    for name in sys.argv[1:] or ["torch"]:
        ways(name)
