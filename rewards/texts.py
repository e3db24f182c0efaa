"""What an answer and the thought before it say: as the ids that were sampled, and as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from samplers.types import Answer, Group, Ids, Rollout, Tokens

Part = Literal["think", "answer", "response"]
Decode = Callable[[Sequence[Sequence[int]]], list[str]]


def answers(group: Group) -> list[tuple[Rollout, Answer]]:
    """Every answer with its rollout, in the order of a flattened [G, C, A]."""
    return [(rollout, a) for rollout in group.rollouts for cut in rollout.answers for a in cut]


def ids(rollout: Rollout, answer: Answer, part: Part) -> Ids:
    """Sampled ids of a part of what led to `answer`; forced ones are nobody's words.

    'think': the thought as far as the answer saw it, without its natural end marker. 'answer': the
    answer, its end of text included. 'response': both, and that marker.
    """
    end = min(answer.after, rollout.think_tokens) if part == "think" else answer.after
    thought, said = _sampled(rollout.thought, end), _sampled(answer.tokens)
    return {"think": thought, "answer": said}.get(part, np.concatenate([thought, said]))


def texts(groups: Sequence[Group], part: Part, decode: Decode | None) -> list[list[str]]:
    """Per group the text of every answer's part, in the order of `answers`.

    Decodes once for all groups; answers bring their texts with them, without markers.
    """
    cells = [answers(group) for group in groups]
    said = [[answer.text or "" for _, answer in row] for row in cells]
    if part == "answer":
        return said
    assert decode is not None, "the text of a thought needs the model's tokenizer"
    flat = [ids(rollout, answer, "think").tolist() for row in cells for rollout, answer in row]
    thoughts = iter(decode(flat))
    if part == "think":
        return [[next(thoughts) for _ in row] for row in cells]
    return [[f"{next(thoughts)}\n{text}" for text in row] for row in said]


def _sampled(tokens: Tokens, end: int | None = None) -> Ids:
    return tokens.ids_T[:end][~tokens.forced_T[:end]]
