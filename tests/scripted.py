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


def weigh(context: Sequence[int], token: int) -> float:
    """The logprob of a token that is given: a hash of it and of all before it."""
    return -float(zlib.crc32(np.array([*context, token], np.int32).tobytes()) % 1000) / 512


class ScriptedEngine:
    """An engine whose model is `draw`. One token a row and step, three rows at a time.

    Given tokens are weighed in one step.
    """

    def __init__(self, context: int | None = None) -> None:
        self.version, self.context, self.ramps = 4, context, False
        self.counters = {"steps": 0, "sampled": 0, "prefilled": 0, "given": 0}
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
            self.counters["prefilled"] += len(request.ids)
            self.queue.append((request, context, []))

    def step(self) -> list[Completion]:
        done = []
        for row in self.queue[:3]:
            request, context, made = row
            aborted = request.id in self.aborted
            if request.given is not None and not aborted:
                given = request.given.tolist()
                assert len(given) == request.max_tokens
                made += [(t, weigh([*context, *given[:i]], t)) for i, t in enumerate(given)]
                self.counters["given"] += len(given)
            elif not aborted:
                made.append(draw([*context, *(t for t, _ in made)], request.seed, len(made)))
                self.counters["sampled"] += 1
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
        return Completion(request.id, ids, logprobs, finish, ((0, self.version),), handle)

    def abort(self, ids: Iterable[int]) -> None:
        self.aborted |= set(ids)

    def release(self, handles: Iterable[int]) -> None:
        for handle in handles:
            self.kept[handle] = []


class Steps:
    """Sampling in steps of at most `chunk` tokens."""

    def __init__(self, chunk: int | None) -> None:
        self.chunk, self.step, self.used = chunk, 0, 0

    def say(
        self, context: list[int], seed: int, phase: tuple[int, ...], limit: int, stops: set[int]
    ) -> dict[str, Any]:
        """What is said, and in which step each token was.

        The next step goes on with random numbers of its own: of the phase it is in and of where
        that stands. A thought that went on to its answer by itself is in that answer's phase.
        """
        ids: list[int] = []
        logprobs: list[float] = []
        when: list[int] = []
        key, first = seeds.key(seed, *phase), 0
        while len(ids) < limit:
            if self.used == self.chunk:
                self.step, self.used, first = self.step + 1, 0, len(ids)
                closed = phase[0] == 0 and END in ids
                at = len(ids) - (ids.index(END) + 1 if closed else 0)
                key = seeds.key(seed, *((1, 0, 0) if closed else phase), *([at] if at else []))
            token, logprob = draw([*context, *ids], key, len(ids) - first)
            self.used += 1
            ids.append(token)
            logprobs.append(logprob)
            when.append(self.step)
            if token in stops:
                return {"ids": ids, "logprobs": logprobs, "finish": "stop", "when": when}
        return {"ids": ids, "logprobs": logprobs, "finish": "length", "when": when}


def by_hand(plan: Plan, seed: int, renderer: Renderer = RENDERER) -> dict[str, Any]:
    """The rollout of one job, one sentence of the specification after the other.

    `steps` says how many it took, `when` in which one each token of a run was sampled (None:
    forced). `lost` are tokens that were sampled and are in no run: an eos in a budgeted thought.
    """
    prompt = renderer.render(PROMPT, plan).tolist()
    prefill = encode(renderer, plan.prefill)
    close = encode(renderer, plan.close or "</think>")
    after_close = encode(renderer, plan.after_close)
    cuts = plan.cuts or (None,)
    steps = Steps(plan.chunk)
    if renderer.thinking is None:
        return answers(plan, seed, renderer, prompt, expect(), [(0, prefill)], steps)
    if END in prefill:
        at = prefill.index(END)
        thought = expect(prefill[:at])
        starts = [(at, prefill[at:] + after_close)] * len(cuts)
        return answers(plan, seed, renderer, prompt, {**thought, "skipped": True}, starts, steps)
    if prompt[-1] == END:
        starts = [(0, prefill + after_close)] * len(cuts)
        skip = {**expect(), "skipped": True}
        return answers(plan, seed, renderer, prompt, skip, starts, steps)
    budgeted = plan.think is not None or bool(plan.cuts)
    budget = plan.think if plan.think is not None else max(plan.cuts, default=plan.max_tokens)
    room = max(0, min(budget, plan.max_tokens) - len(prefill))
    once = not (budgeted or after_close or plan.answer) and plan.answers_per_cut == 1
    said = steps.say(prompt + prefill, seed, (0, 0, 0), room, {EOS} if once else {EOS, END})
    ids, finish = said["ids"], said["finish"]
    closed = END in ids
    at = ids.index(END) + 1 if closed else len(ids) - (ids[-1:] == [EOS] and budgeted)
    thought = expect(prefill, said, at, "stop" if closed else finish, closed)
    size = len(thought["thought"])
    if once:
        text = renderer.answer_text(np.array(ids[at:], np.int32)) if ids[at:] else None
        if not ids[at:]:
            thought["finish"] = finish
        answer = (size, ids[at:], said["logprobs"][at:], finish, text, None, said["when"][at:])
        return {**thought, "answers": [[answer]], "steps": steps.step + 1, "lost": 0}
    thought["lost"] = 0 if closed else len(ids) - at
    if not closed and not budgeted:
        nothing = [(size, [], [], finish, None, None, [])] * plan.answers_per_cut
        return {**thought, "answers": [nothing], "steps": steps.step + 1}
    starts = []
    for cut in cuts:
        natural = closed and (cut is None or cut >= size - 1)
        seen = size if natural else min(size - closed, size if cut is None else cut)
        starts.append((seen, after_close if natural else close + after_close))
    return answers(plan, seed, renderer, prompt, thought, starts, steps)


def answers(plan, seed, renderer, prompt, thought, starts, steps) -> dict[str, Any]:
    """From each (tokens of the thought that are seen, forced ids) as many answers as planned."""
    out = []
    for c, (after, forced) in enumerate(starts):
        if plan.collapse:  # the last cut that sees as much answers for all of them
            c = max(i for i, start in enumerate(starts) if start == (after, forced))
        out.append([])
        for a in range(plan.answers_per_cut):
            limit = plan.max_tokens - after - len(forced)
            limit = min(limit, plan.answer or limit)
            context = prompt + thought["thought"][:after] + forced
            if plan.probe and c < len(starts) - 1:
                out[-1].append(probe(plan, renderer, context, after, forced, limit))
                continue
            if limit < 1:
                out[-1].append((after, [], [], "length", None, None, []))
                continue
            said = steps.say(context, seed, (1, c, a), limit, {EOS})
            shown = forced[forced.index(END) + 1 :] if END in forced else forced
            text = renderer.answer_text(np.array(shown + said["ids"], np.int32))
            logprobs = [NAN] * len(forced) + said["logprobs"]
            when = [None] * len(forced) + said["when"]
            ids = forced + said["ids"]
            out[-1].append((after, ids, logprobs, said["finish"], text, None, when))
    if not out[-1][0][1]:  # the cap came before the last answer
        thought = {**thought, "finish": "length"}
    return {**thought, "answers": out, "steps": steps.step + 1}


def probe(plan, renderer, context, after, forced, limit) -> tuple[Any, ...]:
    """The gold answer of `PROMPT` and the eos, all forced, and how probable they are."""
    gold = [*encode(renderer, plan.probe.replace("{answer}", "A")), EOS]
    if len(gold) > limit:
        return after, [], [], "length", None, 0.0, []
    total = sum(weigh(context + gold[:i], t) for i, t in enumerate(gold))
    ids = forced + gold
    text = renderer.answer_text(np.array(gold, np.int32))
    return after, ids, [NAN] * len(ids), "stop", text, math.exp(total), [None] * len(ids)


def encode(renderer: Renderer, text: str) -> list[int]:
    return renderer.encode(text).tolist() if text else []


def expect(prefill=(), said=None, at=0, finish="stop", closed=False) -> dict[str, Any]:
    """A thought of forced and, up to `at`, of said tokens."""
    said = said or {"ids": [], "logprobs": [], "when": []}
    return {
        "thought": [*prefill, *said["ids"][:at]],
        "logprobs": [NAN] * len(prefill) + said["logprobs"][:at],
        "when": [None] * len(prefill) + said["when"][:at],
        "finish": finish,
        "closed": closed,
        "skipped": False,
        "lost": 0,
    }
