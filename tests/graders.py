"""Users' functions and modules as tests need them: well-behaved, sick and hostile."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from rewards.grader import Item
from rewards.verdict import Verdict
from samplers.seam import Component

BY_TEXT = "tests.graders:by_text"


def items(*texts: str | None, gold: str = "yes") -> list[Item]:
    return [(text, gold, {}) for text in texts]


def by_text(text: str, gold: str, meta: Mapping[str, Any]) -> Any:
    """The answer text says what happens."""
    if text.split()[0] in ("hang", "die", "crash") and text.split()[-1].isdigit():
        text = text.split()[0]  # one of many
    if text == "hang":
        time.sleep(3600)
    if text == "hang in C":
        return 3 ** (10**9) == 0  # one opcode, no chance for a signal handler
    if text == "raise":
        raise RuntimeError("no judge today")
    if text == "exit":
        sys.exit(0)
    if text == "die":
        os._exit(0)
    if text == "crash":
        ctypes.string_at(0)
    if text == "fill memory":
        return len(bytearray(1 << 34)) == 0
    if text == "print":
        print('{"correct": true, "score": 1.0, "status": "ok"}', flush=True)
        os.write(1, b'{"correct": true, "score": 1.0, "status": "ok"}\n')
    if text == "nan":
        return float("nan")
    if text == "none":
        return None
    if text == "two":
        return 2.0
    if text == "pid":
        return Verdict(True, 1.0, "ok", str(os.getpid()))
    if text == "leave a child":
        child = subprocess.Popen(["sleep", "3600"])
        return Verdict(True, 1.0, "ok", str(child.pid))
    if text.endswith("a stray"):
        stray = subprocess.Popen(["sleep", "3600"], start_new_session=True)
        if text.startswith("hang"):
            time.sleep(3600)
        return Verdict(True, 1.0, "ok", str(stray.pid))
    if text == "kill the template":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)
    if text.startswith("after "):
        time.sleep(float(text.split()[1]))
    return text.split()[-1] == gold


def stuck(text: str, gold: str, meta: Mapping[str, Any]) -> bool:
    """Hangs on every answer that is not the first candidate of a find problem."""
    if text != "A":
        time.sleep(3600)
    return text == gold


calls = 0


def counting(text: str, gold: str, meta: Mapping[str, Any]) -> Verdict:
    """The canonical answer is how often this process was asked."""
    global calls
    calls += 1
    return Verdict(True, 1.0, "ok", str(calls))


async def patient(text: str, gold: str, meta: Mapping[str, Any]) -> float:
    await asyncio.sleep(0)
    return 1.0 if text == gold else 0.25


def trl_exact(prompts: Any, completions: Any, answer: list[str], **kwargs: Any) -> list[float]:
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(t == a) for t, a in zip(texts, answer, strict=True)]


async def trl_chat(
    prompts: Any, completions: Any, difficulty: list[int], **kwargs: Any
) -> list[float | None]:
    """None for easy rows; else 0.5 if prompt and completion are chats, as TRL gives them."""
    await asyncio.sleep(0)
    out: list[float | None] = []
    for prompt, completion, level in zip(prompts, completions, difficulty, strict=True):
        chat = prompt[-1]["role"] == "user" and completion[0]["role"] == "assistant"
        out.append(None if level < 2 else 0.5 * chat)
    return out


def trl_brief(completions: Any, completion_ids: list[list[int]]) -> list[float]:
    """No **kwargs: must be given only what it names."""
    return [-0.01 * len(ids) for ids in completion_ids]


def trl_lenient(completions: Any, correct: list[bool | None]) -> list[float]:
    """Half for what nobody could judge."""
    return [0.5 if right is None else float(right) for right in correct]


def trl_short(completions: Any, **kwargs: Any) -> list[float]:
    return [1.0]


def spread(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    """Needs the whole group: one over how many gave the same text."""
    return [1.0 / completions.count(c) for c in completions]


READS = ("level",)


class Config(Component):
    """This module as a verifier: where an answer was graded."""


def grade(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict:
    """The canonical answer is the process that graded."""
    detail = " ".join(f"{name} {value}" for name, value in meta.items())
    return Verdict(True, 1.0, "ok", str(os.getpid()), detail=detail)


def fast(text: str, gold: str, meta: Mapping[str, Any], config: Config) -> Verdict | None:
    return grade(text, gold, meta, config) if text == "fast" else None


def relevant(text: str, config: Config) -> str:
    if text == "confused":
        raise RuntimeError("which part?")
    return text.partition(" # ")[0]


not_a_function = 3
