"""Problems of an evaluation: a task with its prompts, and options in another order at every sample.

Where the right option stands moves a model's answer (position bias: Zheng et al. 2024,
arXiv:2309.03882). Options are therefore shuffled by a seed of (problem, sample): every evaluation
shows the same orders, and verdicts are told in the labels of the stored order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rewards.grader import Item, Spec
from samplers import data, seeds
from samplers.types import Prompt

SHUFFLE = "shuffled_by"
"""Field of a problem's meta: seed of the orders of its `options`, the first of which is right."""
LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """Problems to evaluate on."""

    name: str
    source: str
    """File, hub name or procedural task."""
    prompts: tuple[Prompt, ...]
    """As they are stored; what a sample is asked says `posed`."""
    verifier: Spec
    samples: int = 1
    """That are usually taken."""
    stream: int = 0
    """Keeps random numbers apart; 0: those of training's evaluation."""

    @property
    def fingerprint(self) -> str:
        parts = ((p.id, p.messages, p.text, p.answer, sorted(p.meta)) for p in self.prompts)
        return data.digest("\n".join(map(repr, parts)))

    @property
    def described(self) -> Row:
        return {
            "name": self.name,
            "source": self.source,
            "problems": len(self.prompts),
            "fingerprint": self.fingerprint,
            "verifier": self.verifier,
        }

    def rows(self) -> list[Row]:
        """As they stand in problems.jsonl."""
        return [row_of(self.name, prompt) for prompt in self.prompts]


def row_of(task: str, prompt: Prompt) -> Row:
    difficulty = prompt.meta.get("difficulty")
    return {
        "task": task,
        "id": prompt.id,
        "index": prompt.index,
        "prompt": prompt.messages[-1]["content"] if prompt.messages else prompt.text,
        "messages": [dict(message) for message in prompt.messages],
        "gold": prompt.answer,
        "difficulty": None if difficulty is None else int(difficulty),
        "verifier": prompt.verifier,
        "meta": _plain(prompt.meta),
    }


def _plain(value: Any) -> Any:
    """Numbers that JSON does not have, as a user's columns may, are null."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def posed(prompt: Prompt, sample: int) -> Prompt:
    """What sample number `sample` is asked: options in its own order."""
    if SHUFFLE not in prompt.meta:
        return prompt
    options: Sequence[str] = prompt.meta["options"]
    shown = [options[i] for i in order(prompt.meta, prompt.index, sample)]
    *before, last = prompt.messages
    content = last["content"].replace(listed(options), listed(shown))
    return replace(prompt, messages=(*before, {**last, "content": content}))


def listed(options: Sequence[str]) -> str:
    return "\n".join(f"({label}) {text}" for label, text in zip(LABELS, options, strict=False))


def order(meta: Mapping[str, Any], index: int, sample: int) -> list[int]:
    """Which stored option stands at each place."""
    places_N = np.arange(len(meta["options"]), dtype=np.uint64)
    keys_N = np.full(len(places_N), seeds.key(meta[SHUFFLE], index, sample), np.uint64)
    return np.argsort(seeds.uniforms(keys_N, places_N), kind="stable").tolist()


def item_of(problem: Row, sample: int, text: str | None) -> Item:
    """What a grader is asked of an answer of this sample."""
    meta: Row = {"prompt": problem["messages"] or problem["prompt"], **problem["meta"]}
    if problem["verifier"]:
        meta["verifier"] = problem["verifier"]
    if SHUFFLE not in meta:
        return text, problem["gold"], meta
    places = order(meta, problem["index"], sample)
    meta["options"] = [meta["options"][i] for i in places]
    return text, LABELS[places.index(LABELS.index(problem["gold"]))], meta


def unshuffled(problem: Row, sample: int, answer: str | None) -> str | None:
    """A canonical answer in the labels of the stored order, in which equal is equal."""
    if answer is None or SHUFFLE not in problem["meta"]:
        return answer
    places = order(problem["meta"], problem["index"], sample)
    shown = dict(zip(LABELS, (LABELS[i] for i in places), strict=False))
    return ", ".join(sorted(shown.get(label, label) for label in answer.split(", ")))
