"""Users' functions by import path (`my_pkg.my_file:fn`), as verifiers and as rewards.

Two signatures, told apart by the parameter names; plain or async, either way:

    fn(text, gold, meta) -> bool | float | Verdict                  one answer
    fn(prompts, completions, **columns) -> list[float | None]       TRL's

TRL's functions get what TRL gives them: for a chat prompt the list of its messages and
`[{"role": "assistant", "content": text}]`, else strings; the gold as `answer`; the row's other
columns, of which a function without `**kwargs` receives those it names. `text` is always the
answer part only.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.grader import Grader, titled
from rewards.verdict import Verdict
from samplers.seam import Component, function
from samplers.types import Group


class Config(Component):
    correct_at: float = 1.0
    """A score of at least this counts as correct."""
    quick: bool = False
    """The function cannot hang: it may run in the calling process (workers 0)."""


def grader(path: str, settings: Mapping[str, Any]) -> Grader:
    """The verifier that `path` names.

    Scores lie in [0, 1]; None or NaN means that the function could not judge: unknown.

    Raises:
        ValueError: the path cannot be imported, or the function has neither signature.
    """
    config, fn = Config(**settings), _named(path)
    batched = "completions" in inspect.signature(fn).parameters
    call = _trl_single if batched else _direct

    def judge(text: str, gold: str, meta: Mapping[str, Any]) -> Verdict:
        score = call(fn, text, gold, meta)
        if isinstance(score, Verdict):
            return score
        if score is None or math.isnan(score):
            return Verdict(False, 0.0, "error", None, path, "the function could not judge")
        correct = bool(score >= config.correct_at)
        return Verdict(correct, float(score), "ok" if correct else "wrong", text.strip(), path)

    return Grader(titled(path, config), config.quick, judge, version=path)


def reward(path: str) -> Callable[[Group], NDArray[np.float64]]:
    """A TRL-style function as a reward component: group -> [G, C, A].

    It sees every answer of the group at once, as columns besides the row's own: `completion_ids`
    (thought and answer), `think_tokens` and `correct` (None: unknown). None (does not apply) is 0,
    NaN unknown.

    Raises:
        ValueError: the path cannot be imported, or the function has another signature.
    """
    fn = _named(path)
    if "completions" not in inspect.signature(fn).parameters:
        raise ValueError(
            f"shaping: {path} must take (prompts, completions, **columns) and return one number "
            "per completion; a function of one answer is a verifier"
        )

    def component(group: Group) -> NDArray[np.float64]:
        cells = [
            (rollout, answer, verdict)
            for rollout, verdicts in zip(group.rollouts, group.verdicts, strict=True)
            for answers, row in zip(rollout.answers, verdicts, strict=True)
            for answer, verdict in zip(answers, row, strict=True)
        ]
        columns: dict[str, list[Any]] = {
            "completion_ids": [
                [*rollout.thought.ids_T[: answer.after].tolist(), *answer.tokens.ids_T.tolist()]
                for rollout, answer, _ in cells
            ],
            "think_tokens": [min(r.think_tokens, a.after) for r, a, _ in cells],
            "correct": [verdict.correct if verdict.known else None for _, _, verdict in cells],
        }
        texts = [answer.text or "" for _, answer, _ in cells]
        prompt, meta = group.prompt, dict(group.prompt.meta)
        source = list(prompt.messages) or prompt.text
        values = _trl(fn, source, texts, prompt.answer, meta, columns)
        numbers = [0.0 if value is None else float(value) for value in values]
        return np.array(numbers, dtype=np.float64).reshape(group.known_GCA.shape)

    return component


def _named(path: str) -> Callable[..., Any]:
    fn = function(path)
    if not callable(fn):
        raise ValueError(f"'{path}' is a {type(fn).__name__}, not a function")
    return fn


def _direct(fn: Callable[..., Any], text: str, gold: str, meta: Mapping[str, Any]) -> Any:
    return wait(fn(text, gold, meta))


def _trl_single(fn: Callable[..., Any], text: str, gold: str, meta: Mapping[str, Any]) -> Any:
    columns = dict(meta)
    source = columns.pop("prompt", "")
    return _trl(fn, source, [text], gold, columns, {})[0]


def _trl(
    fn: Callable[..., Any],
    source: Any,
    texts: Sequence[str],
    gold: str,
    meta: Mapping[str, Any],
    columns: Mapping[str, list[Any]],
) -> list[float | None]:
    chat = not isinstance(source, str)
    completions = [[{"role": "assistant", "content": t}] if chat else t for t in texts]
    n = len(texts)
    given = {name: [value] * n for name, value in {**meta, "answer": gold}.items()} | dict(columns)
    parameters = inspect.signature(fn).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        given = {name: value for name, value in given.items() if name in parameters}
    if "prompts" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        given["prompts"] = [source] * n
    values = list(wait(fn(completions=completions, **given)))
    if len(values) != n:
        raise ValueError(f"returned {len(values)} rewards for {n} completions")
    return values


def wait(result: Any) -> Any:
    """The value of a coroutine, also where this thread's event loop is already running."""
    if not inspect.isawaitable(result):
        return result

    async def main() -> Any:
        return await result

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    box: list[Any] = []

    def run() -> None:
        try:
            box.append((asyncio.run(main()), None))
        except BaseException as problem:
            box.append((None, problem))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, problem = box[0]
    if problem is not None:
        raise problem
    return value
