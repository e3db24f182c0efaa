"""What engines have in common: batches by single steps; what is refused, in one wording."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from samplers.engines import base
from samplers.types import Completion, Ids, Request


class Stepped:
    """`generate` by `add` and `step`."""

    def generate(self: base.Engine, requests: Sequence[Request]) -> list[Completion]:
        assert not self.pending, "generate() would swallow completions of others; use add and step"
        self.add(requests)
        done: dict[int, Completion] = {}
        while self.pending:
            done |= {c.id: c for c in self.step()}
        return [done[r.id] for r in requests]


def whole_prompt(request: Request, kept_ids: Ids | None, vocab: int, context: int | None) -> Ids:
    """The prompt [T] of a request: what it reuses of `kept_ids`, then its own ids.

    Args:
        kept_ids: tokens of the completion that its prefix names; None: the handle has none.
        context: longest prompt plus completion; None: no limit.

    Raises:
        ValueError: nothing to complete, no token allowed, a context overflow, a token id outside
            the vocabulary or an unknown prefix.
    """
    own = ids = np.asarray(request.ids, np.int32)
    where = f"request {request.id}"
    if request.prefix is not None:
        handle, length = request.prefix
        if kept_ids is None or not 0 <= length <= len(kept_ids):
            known = "released or never kept" if kept_ids is None else f"{len(kept_ids)} tokens long"
            raise ValueError(
                f"{where}: prefix {request.prefix}: handle {handle} is {known}; "
                "fork before releasing, at a length within the kept tokens"
            )
        ids = np.concatenate([kept_ids[:length], ids])
    if len(ids) == 0:
        raise ValueError(f"{where}: no prompt tokens; give at least one id or a prefix")
    more = request.max_tokens if request.given is None else len(request.given)
    if more < 1:
        raise ValueError(f"{where}: max_tokens {more}; must be at least 1")
    if request.temperature < 0:
        raise ValueError(f"{where}: temperature {request.temperature}; must be 0 or more")
    check_truncation(f"{where}: ", request.top_p, request.top_k)
    if context is not None and len(ids) + more > context:
        raise ValueError(
            f"{where}: {len(ids)} prompt tokens + max_tokens {more} exceed the "
            f"model's context of {context}; lower max_tokens or shorten the prompt"
        )
    ramp = request.ramp
    if ramp is not None and not ramp.start < ramp.end:
        raise ValueError(
            f"{where}: ramp from {ramp.start:g} to {ramp.end:g} tokens; it must end after its start"
        )
    named = (*request.stop_ids, *(request.logit_bias or ()), *([ramp.token] if ramp else ()))
    outside = [i for i in named if i >= vocab]
    own = own if request.given is None else np.concatenate([own, request.given])
    if outside or (len(own) and (own.min() < 0 or own.max() >= vocab)):
        raise ValueError(
            f"{where}: token id outside the vocabulary of {vocab}; the tokenizer does "
            "not belong to this model, or its embeddings were not resized"
        )
    return ids


def check_truncation(where: str, top_p: float, top_k: int) -> None:
    """Raise ValueError unless some token can be sampled."""
    if not 0 < top_p <= 1:
        raise ValueError(f"{where}top_p {top_p}; must be above 0 and at most 1 (1: all tokens)")
    if top_k < 0:
        raise ValueError(f"{where}top_k {top_k}; must be 0 (all tokens) or more")


def check_scored(ids: Sequence[Ids], vocab: int, context: int | None) -> None:
    """Raise ValueError unless each sequence fits into the context and consists of known tokens."""
    for i, ids_T in enumerate(ids):
        if context is not None and len(ids_T) > context:
            raise ValueError(
                f"sequence {i}: {len(ids_T)} tokens to score exceed the model's context of "
                f"{context}; score a shorter one"
            )
        if len(ids_T) and (ids_T.min() < 0 or ids_T.max() >= vocab):
            raise ValueError(
                f"sequence {i}: token id outside the vocabulary of {vocab}; the tokenizer does not "
                "belong to this model, or its embeddings were not resized"
            )


def check_weight(name: str, shape: Sequence[int], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise ValueError unless the model has a parameter `name` of that shape."""
    if name not in shapes:
        near = difflib.get_close_matches(name, shapes, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"weights: the model has no parameter named '{name}'{hint}")
    if tuple(shape) != tuple(shapes[name]):
        raise ValueError(
            f"weights: '{name}' has shape {tuple(shape)}; the engine's model has "
            f"{tuple(shapes[name])}: load weights of the same architecture"
        )
