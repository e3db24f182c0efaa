"""A chat response as the parts of a rollout: thought, forced marker, answer, and what was odd.

Shape suffixes: T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samplers.render import Renderer
from samplers.run import forced, join, nothing
from samplers.served.client import thought_of
from samplers.types import Answer, Finish, Ids, Plan, Tokens

FINISHES: Mapping[str, Finish] = {"stop": "stop", "length": "length", "repetition": "repetition"}


@dataclass(frozen=True, slots=True)
class Read:
    """One response under one hard budget (None: without)."""

    thought: Tokens
    """A sampled end marker is its last token."""
    closed: bool
    answer: Answer
    over: int
    """Thinking tokens above the hard budget."""
    paid: int
    """Tokens that the server generated; forced ones are among them."""
    odd: tuple[str, ...]
    """Keys of `samplers.served.http.ODD`."""

    @property
    def body(self) -> int:
        """Thinking tokens, the marker not counted."""
        return len(self.thought) - int(self.closed)


def read(
    found: Mapping[str, Any], plan: Plan, renderer: Renderer, budget: int | None, skipped: bool
) -> Read:
    """What a chat response says.

    A thought of exactly `budget` tokens was closed by force: a natural marker there cannot be told
    from it, and engines in this process never sample one there.

    Args:
        skipped: the prompt has closed the thought: all of it is answer.
    """
    choice = found["choices"][0]
    finish = FINISHES.get(choice["finish_reason"], "abort")
    odd: list[str] = []
    tokens = _tokens(choice, renderer, finish, skipped, odd)
    ids = tokens.ids_T
    paid = int((found.get("usage") or {}).get("completion_tokens") or len(ids))
    markers = renderer.thinking
    if markers is None or skipped:
        answer = _answer(0, _part(tokens, 0, None), 0, plan, renderer)
        return Read(nothing("stop"), False, answer, 0, paid, tuple(odd))
    ends = np.flatnonzero(ids == markers.end_id)
    opened = int(len(ids) > 0 and ids[0] == markers.start_id)  # servers count behind it
    if not len(ends):
        over = 0 if budget is None else max(0, len(ids) - opened - budget)
        missing = Answer(len(ids), nothing(finish), None)
        if finish == "stop":
            odd.append("unanswered")
        return Read(tokens, False, missing, over, paid, tuple(odd))
    at = int(ends[0])
    over = 0 if budget is None else max(0, at - opened - budget)
    cut = budget is not None and at - opened == budget
    last = at if cut else at + 1
    begun = _part(tokens, last, None)
    if cut:
        begun = join(forced(ids[at : at + 1]), _part(tokens, at + 1, None))
    thought = replace(_part(tokens, 0, last), finish="length" if cut else "stop")
    answer = _answer(last, begun, int(cut), plan, renderer)
    if choice.get("token_ids") is not None:
        odd += _split(choice, plan, answer, markers.end)
    return Read(thought, not cut, answer, over, paid, tuple(odd))


def _tokens(
    choice: Mapping[str, Any], renderer: Renderer, finish: Finish, skipped: bool, odd: list[str]
) -> Tokens:
    """All tokens of a response [T]: the server's ids, or else its texts as the tokenizer here
    writes them."""
    ids = choice.get("token_ids")
    if ids is None:
        odd.append("retokenized")
        message = choice["message"]
        reasoning, content = thought_of(message), message.get("content") or ""
        own = renderer.tokenizer.eos_token_id
        ids = renderer.encode(reasoning).tolist()
        if renderer.thinking is not None and not skipped and (content or finish == "stop"):
            ids.append(renderer.thinking.end_id)
        ids += renderer.encode(content).tolist()
        if finish == "stop":
            ids.append(renderer.eos_ids[0] if own is None else own)
    said = (choice.get("logprobs") or {}).get("content") or ()
    logprobs = [one["logprob"] for one in said]
    if len(logprobs) != len(ids):
        odd.append("no_logprobs")
        logprobs = [0.0] * len(ids)  # NaN would say that nobody sampled it
    return Tokens(np.array(ids, np.int32), np.array(logprobs, np.float32), finish, ((0, 0),))


def _part(tokens: Tokens, start: int, end: int | None) -> Tokens:
    ids = tokens.ids_T[start:end]
    spans = ((0, 0),) if len(ids) else ()
    return Tokens(ids, tokens.logprobs_T[start:end], tokens.finish, spans)


def _answer(after: int, tokens: Tokens, begun: int, plan: Plan, renderer: Renderer) -> Answer:
    """The answer, no longer than the plan lets it be: a server caps only the whole response.

    Args:
        begun: forced tokens at its start.
    """
    if plan.answer is not None and len(tokens) - begun > plan.answer:
        tokens = replace(_part(tokens, 0, begun + plan.answer), finish="length")
    reached = len(tokens) > begun and tokens.finish != "abort"
    return Answer(after, tokens, renderer.answer_text(tokens.ids_T[begun:]) if reached else None)


def _split(choice: Mapping[str, Any], plan: Plan, answer: Answer, end: str) -> list[str]:
    """How the server's parser cut out another answer; [] where it did not."""
    if answer.text is None or (plan.answer is not None and answer.tokens.finish == "length"):
        return []  # there is none here, or it was cut shorter
    content = (choice["message"].get("content") or "").strip()
    bare = content
    while bare.startswith(end):
        bare = bare.removeprefix(end)
    if bare.strip() != answer.text.strip():
        return ["split"]
    return ["twice"] if bare != content else []


def no_room(after: int, finish: Finish = "length") -> Answer:
    """At a cut where the response cap leaves no token."""
    return Answer(after, nothing(finish), None)


def same_start(thought: Ids, then: Ids, tokens: int) -> bool:
    """Both thoughts begin with the same `tokens` tokens."""
    return len(then) >= tokens and bool(np.array_equal(thought[:tokens], then[:tokens]))
