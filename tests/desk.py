"""A user's folder, as tests need it: models of several families, prompts, modules of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer
from trainer.config import Recipe, resolve
from trainer.settings import merge

CLOSED = CHAT_TEMPLATE[: CHAT_TEMPLATE.index("{%- if add_generation_prompt")]
CLOSED += "{%- if add_generation_prompt %}<assistant>{% endif -%}"
"""A template that leaves it to the model to open its thought."""

OWN = {
    "grade": """
import asyncio

def even(text, gold, meta):
    return len(text.strip()) % 2 == 0

async def patient(text, gold, meta):
    await asyncio.sleep(0)
    return float(len(text) % 2 == 0)

def trl(prompts, completions, answer, hard, **kwargs):
    texts = [c[0]["content"] for c in completions]
    return [float((len(t) + len(a) + h) % 2 == 0) for t, a, h in zip(texts, answer, hard)]

def brevity(completions, completion_ids, **kwargs):
    return [-0.001 * len(ids) for ids in completion_ids]
""",
    "turns": """
from samplers.seam import Component
from samplers.types import Plan

class Config(Component):
    short: int = 4

def plans(config, prompt, n, step, memory, key):
    return [Plan(max_tokens=20, think=config.short * (1 + i % 2)) for i in range(n)]
""",
    "counting": """
from samplers.allocation import uniform
from samplers.allocation.uniform import Config

class Allocator(uniform.Allocator):
    seen = 0

    def observe(self, groups):
        self.seen += len(groups)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]

    def metrics(self):
        return {"allocation/seen": self.seen}
""",
    "signs": """
import numpy as np
from trainer.algorithms import _plain

class Config(_plain.Config):
    scale: float = 1.0

def sequences(groups, config):
    signs = [config.scale * np.where(r > 0, 1.0, -1.0) for r in _plain.rewards(groups)]
    return _plain.sequences(groups, signs, config)
""",
    "halves": """
import numpy as np

def shape(groups, config, state):
    return [np.where(g.correct_GCA, -0.5, 0.0) for g in groups], (state or 0) + 1
""",
}
MINE = {"budget": "mine.turns", "allocation": "mine.counting", "algorithm": "mine.signs"}


def furnish(folder: Path) -> None:
    """Models, prompts (rows.jsonl) and a package `mine`."""
    (folder / "mine").mkdir()
    for name, code in OWN.items():
        (folder / "mine" / f"{name}.py").write_text(code)
    for name, arch, tied, markers, template in (
        ("llama", "llama", True, True, CHAT_TEMPLATE),
        ("gpt2", "gpt2", True, True, CHAT_TEMPLATE),
        ("untied", "qwen2", False, True, CLOSED),
        ("bare", "llama", False, False, CLOSED),
    ):
        # small enough that bfloat16's rounding stays inside the bound of the engine gap
        tiny_model(arch, tied, initializer_range=0.15).save_pretrained(folder / name)
        tiny_tokenizer(markers, template).save_pretrained(folder / name)
    rows = [{"uid": f"r{i}", "q": f"{i}+1=?", "gold": str(i), "hard": i % 3} for i in range(12)]
    write_rows(folder / "rows.jsonl", rows)


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fields(desk: Path, output: Path | str = "unused") -> dict[str, Any]:
    file = str(desk / "rows.jsonl")
    columns = {"prompt": "q", "answer": "gold", "id": "uid", "difficulty": "hard"}
    return {
        "name": "mine",
        "output": str(output),
        "steps": 2,
        "model": {"path": str(desk / "llama")},
        "data": {"path": {"train": file, "test": file}, "columns": columns},
        "verifier": {"name": "mine.grade:even", "quick": True},
        "prompts_per_step": 4,
        "rollouts_per_prompt": 4,
        "rollout": {"max_tokens": 24},
        "tokens_per_micro_batch": 256,
        "guard": {"truncated": 1.0},
        "optim": {"lr": 1e-3},
        "evaluation": {"every": 2, "problems": 4, "budgets": [0, 4], "answer_tokens": 4},
    }


def recipe(desk: Path, output: Path | str = "unused", **changes: Any) -> Recipe:
    """The user's recipe; `{desk}` in a change is their folder."""
    text = json.dumps(changes).replace("{desk}", str(desk))
    return resolve(merge(fields(desk, output), json.loads(text)))
