"""A scripted engine, and the rollouts it should give, written by hand from the specification."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from samplers import seeds
from samplers.render import Renderer, ThinkingConfig
from samplers.types import Completion, Plan, Prompt, Request
from tests.tiny import tiny_tokenizer

EOS, START, END = 1, 5, 6
NAN = math.nan
PROMPT = Prompt(3, "p3", ({"role": "user", "content": "A1+2"},), "", "A", "exact")
RENDERER = Renderer(tiny_tokenizer(), ThinkingConfig())
BARE = Renderer(tiny_tokenizer(), "none")


def draw(context: Sequence[int], seed: int, position: int) -> tuple[int, float]:
    """What the scripted model says next, and its logprob: a hash of all it may depend on."""
    bits = zlib.crc32(np.array([seed % 2**31, position, *context], np.int32).tobytes())
    kind = bits % 100
    token = END if kind < 12 else EOS if kind < 20 else 7 + bits // 100 % 33
    return token, -float(bits // 10_000 % 1000) / 64


class ScriptedEngine:
    """An engine whose model is `draw`. One token a row and step, three rows at a time."""

    def __init__(self, context: int | None = None) -> None:
        self.version, self.context, self.counters = 4, context, {"steps": 0}
        self.kept: dict[int, list[int]] = {}
        self.queue: list[tuple[Request, list[int], list[tuple[int, float]]]] = []
        self.aborted: set[int] = set()

    @property
    def pending(self) -> int:
        return len(self.queue)

    def add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            prefix = []
            if request.prefix is not None:
                handle, length = request.prefix
                assert length <= len(self.kept[handle])
                prefix = self.kept[handle][:length]
            context = [*prefix, *request.ids.tolist()]
            assert context
            assert request.max_tokens >= 1
            self.queue.append((request, context, []))

    def step(self) -> list[Completion]:
        done = []
        for row in self.queue[:3]:
            request, context, made = row
            aborted = request.id in self.aborted
            if not aborted:
                made.append(draw([*context, *(t for t, _ in made)], request.seed, len(made)))
            stopped = bool(made) and made[-1][0] in request.stop_ids
            if aborted or stopped or len(made) == request.max_tokens:
                self.queue.remove(row)
                done.append(self._completion(row, "abort" if aborted else stopped))
        return done

    def _completion(self, row: Any, how: Any) -> Completion:
        request, context, made = row
        ids = np.array([t for t, _ in made], np.int32)
        handle = None
        if request.keep:
            handle = len(self.kept)
            self.kept[handle] = [*context, *ids.tolist()]
        finish = how if isinstance(how, str) else "stop" if how else "length"
        logprobs = np.array([x for _, x in made], np.float32)
        return Completion(request.id, ids, logprobs, finish, ((0, 4),), handle)

    def abort(self, ids: Iterable[int]) -> None:
        self.aborted |= set(ids)

    def release(self, handles: Iterable[int]) -> None:
        for handle in handles:
            self.kept[handle] = []


def say(context: list[int], seed: int, limit: int, stops: set[int]) -> tuple[list, list, str]:
    ids: list[int] = []
    logprobs: list[float] = []
    while len(ids) < limit:
        token, logprob = draw([*context, *ids], seed, len(ids))
        ids.append(token)
        logprobs.append(logprob)
        if token in stops:
            return ids, logprobs, "stop"
    return ids, logprobs, "length"


def by_hand(plan: Plan, seed: int, renderer: Renderer = RENDERER) -> dict[str, Any]:
    """The rollout of one job, one sentence of the specification after the other."""
    prompt = renderer.render(PROMPT, plan).tolist()
    prefill = encode(renderer, plan.prefill)
    close = encode(renderer, plan.close or "</think>")
    after_close = encode(renderer, plan.after_close)
    cuts = plan.cuts or (None,)
    if renderer.thinking is None:
        return answers(plan, seed, renderer, prompt, expect(), [(0, prefill)])
    if END in prefill:
        at = prefill.index(END)
        thought = expect(prefill[:at], [NAN] * at)
        starts = [(at, prefill[at:] + after_close)] * len(cuts)
        return answers(plan, seed, renderer, prompt, {**thought, "skipped": True}, starts)
    if prompt[-1] == END:
        starts = [(0, prefill + after_close)] * len(cuts)
        skip = {**expect(), "skipped": True}
        return answers(plan, seed, renderer, prompt, skip, starts)
    budgeted = plan.think is not None or bool(plan.cuts)
    budget = plan.think if plan.think is not None else max(plan.cuts, default=plan.max_tokens)
    room = max(0, min(budget, plan.max_tokens) - len(prefill))
    once = not (budgeted or after_close or plan.answer) and plan.answers_per_cut == 1
    said, logprobs, finish = say(
        prompt + prefill, seeds.key(seed, 0, 0, 0), room, {EOS} if once else {EOS, END}
    )
    closed = END in said
    at = said.index(END) + 1 if closed else len(said) - (said[-1:] == [EOS] and budgeted)
    thought = expect(
        prefill + said[:at],
        [NAN] * len(prefill) + logprobs[:at],
        "stop" if closed else finish,
        closed,
    )
    size = len(thought["thought"])
    if once:
        ids = said[at:]
        text = renderer.answer_text(np.array(ids, np.int32)) if ids else None
        if not ids:
            thought["finish"] = finish
        return {**thought, "answers": [[(size, ids, logprobs[at:], finish, text)]]}
    if not closed and not budgeted:
        nothing = [(size, [], [], finish, None)] * plan.answers_per_cut
        return {**thought, "answers": [nothing]}
    starts = []
    for cut in cuts:
        natural = closed and (cut is None or cut >= size - 1)
        seen = size if natural else min(size - closed, size if cut is None else cut)
        starts.append((seen, after_close if natural else close + after_close))
    return answers(plan, seed, renderer, prompt, thought, starts)


def answers(plan, seed, renderer, prompt, thought, starts) -> dict[str, Any]:
    """From each (tokens of the thought that are seen, forced ids) as many answers as planned."""
    out = []
    for c, (after, forced) in enumerate(starts):
        if plan.collapse:  # the last cut that sees as much answers for all of them
            c = max(i for i, start in enumerate(starts) if start == (after, forced))
        out.append([])
        for a in range(plan.answers_per_cut):
            limit = plan.max_tokens - after - len(forced)
            limit = min(limit, plan.answer or limit)
            if limit < 1:
                out[-1].append((after, [], [], "length", None))
                continue
            context = prompt + thought["thought"][:after] + forced
            ids, logprobs, finish = say(context, seeds.key(seed, 1, c, a), limit, {EOS})
            shown = forced[forced.index(END) + 1 :] if END in forced else forced
            text = renderer.answer_text(np.array(shown + ids, np.int32))
            out[-1].append((after, forced + ids, [NAN] * len(forced) + logprobs, finish, text))
    if not out[-1][0][1]:  # the cap came before the last answer
        thought = {**thought, "finish": "length"}
    return {**thought, "answers": out}


def encode(renderer: Renderer, text: str) -> list[int]:
    return renderer.encode(text).tolist() if text else []


def expect(thought=(), logprobs=(), finish="stop", closed=False) -> dict[str, Any]:
    return {
        "thought": list(thought),
        "logprobs": list(logprobs),
        "finish": finish,
        "closed": closed,
        "skipped": False,
    }
