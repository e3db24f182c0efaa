"""Small real evaluation folders, made by the embedded engine in a few seconds."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from samplers.budget import Asks
from samplers.engines.torch import Config
from samplers.render import ThinkingConfig
from samplers.rollout import RolloutWorker
from samplers.tasks import find
from trainer.eval import samples
from trainer.eval.folder import Folder, open_folder
from trainer.eval.problems import Task
from trainer.eval.run import evaluate
from trainer.eval.settings import EvalSettings
from trainer.eval.table import Table
from trainer.modelfolder import fetch

TOLD = Asks(budget={"suffix": ";{budget}"})
MODES = Asks(
    efforts={
        name: {"suffix": f"<b{i}>"} for i, name in enumerate(("none", "low", "medium", "high"), 1)
    }
)
KINDS: dict[str, tuple[str, Asks, dict[str, Any]]] = {
    "truncate": ("base/find", Asks(), {"budgets": (0, 16, 48), "max_tokens": 128}),
    "prompt": ("base/told", TOLD, {"budgets": (32, 96), "max_tokens": 192, "mode": "prompt"}),
    "both": ("base/told", TOLD, {"budgets": (32, 96), "max_tokens": 192, "mode": "both"}),
    "effort": ("base/modes", MODES, {"max_tokens": 300, "mode": "effort"}),
}


@functools.lru_cache(maxsize=4)
def worker(model: str) -> RolloutWorker:
    """The embedded engine with a shipped model."""
    return RolloutWorker.from_pretrained(str(fetch(model)), Config(), ThinkingConfig())


def task(problems: int, name: str = "find", first: int = 0) -> Task:
    """Test problems of find."""
    prompts = tuple(find.prompt(find.Config(), "test", i) for i in range(first, first + problems))
    return Task(name, "find", prompts, "exact")


def evaluation(
    kind: str, out: Path, problems: int = 12, samples: int = 4, **settings: Any
) -> Folder:
    """A folder of `kind`: truncate (base/find at 0, 16, 48), prompt or both (base/told at 32 and
    96), effort (base/modes). `settings` override."""
    model, asks, usual = KINDS[kind]
    asked = EvalSettings(**{**usual, "samples": samples, "answer_tokens": 8, **settings})
    about = {"model": model, "identity": {"model": model}}
    return evaluate(worker(model), [task(problems)], asked, out, asks=asks, about=about)


@functools.lru_cache(maxsize=8)
def _made(kind: str, problems: int, samples: int) -> Path:
    out = Path(tempfile.mkdtemp(prefix="laconic-evaluated-"))
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    evaluation(kind, out, problems, samples)
    return out


def copied(kind: str, out: Path, problems: int = 12, samples: int = 4) -> Path:
    """`evaluation` with its usual settings, made once in a test process and copied to `out`."""
    shutil.copytree(_made(kind, problems, samples), out, dirs_exist_ok=True)
    return out


def table(path: Path, asked: str = "") -> Table:
    return next(t for t in open_folder(path).tables() if t.asked == asked)


def rows(path: Path) -> list[samples.Row]:
    return list(samples.read(path / samples.SAMPLES))


def said(row: samples.Row) -> str:
    """A row without its probabilities, whose last bits depend on the batch beside it."""
    cuts = [{**cut, "confidence": None} for cut in row["cuts"]]
    return json.dumps({**row, "thought": None, "thought_logprob": None, "cuts": cuts})


def never() -> Any:
    raise AssertionError("nothing was left to make")
