"""One rollout on its way: what a budget means at generation time, as a small state machine.

A rollout thinks, its thought is closed (by itself, or by force at its budget), and it answers, once
or several times, at the end or at several cuts. `samplers/rollout.py` moves it on between steps.

Elastic Reasoning (arXiv:2505.05315) forces one close; AnytimeReasoner (arXiv:2505.13438) answers
at nested budgets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from samplers import seeds
from samplers.render import Renderer
from samplers.types import Answer, Completion, Finish, Ids, Job, Request, Rollout, Tokens

_THINK, _ANSWER = 0, 1
"""Phases, as parts of a request's seed."""
_NONE = np.zeros(0, np.int32)
Spans = tuple[tuple[int, int], ...]


class Place(NamedTuple):
    """Where a completion goes: answer [cut][number], or the thought (cut -1)."""

    cut: int
    number: int


THOUGHT = Place(-1, 0)


class Run:
    """One rollout on its way. `begin` and `take` return the requests that come next.

    A request is a `Request` whose id is to be set, with the place its completion belongs to.
    """

    def __init__(self, job: Job, prompt_ids: Ids, renderer: Renderer) -> None:
        self.job, self.plan, self.renderer = job, job.plan, renderer
        self.prompt_ids = prompt_ids
        self.markers = renderer.thinking
        self.budgeted = self.plan.think is not None or bool(self.plan.cuts)
        self.after_close = renderer.after_close_ids(self.plan)
        self.two_calls = (
            self.budgeted
            or len(self.after_close) > 0
            or self.plan.answer is not None
            or self.plan.answers_per_cut > 1
        )
        self.closed = self.skipped = False
        self.thought = forced(renderer.encode(self.plan.prefill) if self.plan.prefill else _NONE)
        self.cuts = len(self.plan.cuts) or 1
        self.answers: list[list[Answer | None]] = [
            [None] * self.plan.answers_per_cut for _ in range(self.cuts)
        ]
        self.repeats: dict[int, int] = {}  # cut: the one whose answers it shows

    # Thinking

    def begin(self) -> Iterator[tuple[Place, Request]]:
        """The first request: the thought; or the answers, where there is nothing to think."""
        prefill = self.thought.ids_T
        if self.markers is None:
            self.thought = forced(_NONE)
            return self._answer_all([(0, prefill)])
        ends = np.flatnonzero(prefill == self.markers.end_id)
        self.skipped = len(ends) > 0 or self.renderer.closed(self.prompt_ids)
        if len(ends):  # the plan closes the thought before the model can open it
            self.thought = forced(prefill[: ends[0]])
            begun = np.concatenate([prefill[ends[0] :], self.after_close])
            return self._answer_all([(int(ends[0]), begun)] * self.cuts)
        if self.skipped:
            self.thought = forced(_NONE)
            return self._answer_all([(0, np.concatenate([prefill, self.after_close]))] * self.cuts)
        budget = (
            self.plan.think if self.plan.think is not None else max(self.plan.cuts, default=None)
        )
        cap = self.plan.max_tokens
        limit = (cap if budget is None else min(budget, cap)) - len(prefill)
        if limit < 1:
            self.thought = replace(self.thought, finish="length")
            return self._answer_all(self._closes())
        stops = (self.markers.end_id, *self.renderer.eos_ids) if self.two_calls else None
        return iter([(THOUGHT, self._request(self._context(), limit, THOUGHT, stops))])

    def _think(self, done: Completion) -> Iterator[tuple[Place, Request]]:
        assert self.markers is not None
        ids, logprobs, last = done.ids_T, done.logprobs_T, len(done.ids_T)
        ends = np.flatnonzero(ids == self.markers.end_id)
        self.closed = len(ends) > 0
        eos = done.finish == "stop" and not self.closed
        if eos and self.budgeted:
            last -= 1  # the budget promises an answer: the eos goes, the thought is closed
        elif self.closed:
            last = int(ends[0]) + 1
        finish: Finish = "stop" if self.closed else done.finish
        prefill = len(self.thought)
        spans, rest = split(done.spans, last)
        self.thought = Tokens(
            np.concatenate([self.thought.ids_T, ids[:last]]),
            np.concatenate([self.thought.logprobs_T, logprobs[:last]]),
            finish,
            shift(spans, prefill),
        )
        if not self.two_calls:
            rest = rest if last < len(ids) else ()
            answer = Tokens(ids[last:], logprobs[last:], done.finish, rest)
            self.answers[0][0] = self._read(len(self.thought), answer, 0)
            return iter(())
        if done.finish == "abort" or not (self.closed or self.budgeted):
            return self._no_answers(done.finish)
        return self._answer_all(self._closes(), done.handle)

    def _closes(self) -> list[tuple[int, Ids]]:
        """(tokens of the thought that are seen, forced ids) at each cut."""
        body = len(self.thought) - int(self.closed)
        out = []
        for cut in self.plan.cuts or (len(self.thought),):
            if self.closed and cut >= body:
                out.append((len(self.thought), self.after_close))
            else:
                close = np.concatenate([self.renderer.close_ids(self.plan), self.after_close])
                out.append((min(cut, body), close))
        return out

    # Answering

    def _answer_all(
        self, starts: Sequence[tuple[int, Ids]], handle: int | None = None
    ) -> Iterator[tuple[Place, Request]]:
        """`answers_per_cut` answers from each (tokens of the thought, forced ids)."""
        last = {after: cut for cut, (after, _) in enumerate(starts)}
        for cut, (after, begun) in enumerate(starts):
            if self.plan.collapse and last[after] != cut:
                self.repeats[cut] = last[after]
                continue
            room = self.plan.max_tokens - after - len(begun)
            limit = room if self.plan.answer is None else min(room, self.plan.answer)
            for number in range(self.plan.answers_per_cut):
                place = Place(cut, number)
                if limit < 1:
                    empty = Tokens(_NONE, np.zeros(0, np.float32), "length")
                    self.answers[cut][number] = Answer(after, empty, None)
                    continue
                self.answers[cut][number] = Answer(after, forced(begun), None)
                if handle is None:
                    ids = np.concatenate([self._context(after), begun])
                    yield place, self._request(ids, limit, place)
                else:
                    prefix = (handle, len(self.prompt_ids) + after)
                    yield place, self._request(begun, limit, place, prefix=prefix)

    def _no_answers(self, finish: Finish) -> Iterator[tuple[Place, Request]]:
        empty = Answer(len(self.thought), Tokens(_NONE, np.zeros(0, np.float32), finish), None)
        self.answers = [[empty] * self.plan.answers_per_cut for _ in range(self.cuts)]
        return iter(())

    def _answer(self, place: Place, done: Completion) -> None:
        begun = self.answers[place.cut][place.number]
        assert begun is not None
        ids_T = begun.tokens.ids_T
        tokens = Tokens(
            np.concatenate([ids_T, done.ids_T]),
            np.concatenate([begun.tokens.logprobs_T, done.logprobs_T]),
            done.finish,
            shift(done.spans, len(ids_T)),
        )
        # A forced close is among the answer's tokens; what the grader reads comes after it.
        ends = np.flatnonzero(ids_T == self.markers.end_id) if self.markers else _NONE
        start = int(ends[0]) + 1 if len(ends) else 0
        self.answers[place.cut][place.number] = self._read(begun.after, tokens, start)

    def _read(self, after: int, tokens: Tokens, start: int) -> Answer:
        reached = len(tokens) > start and tokens.finish != "abort"
        return Answer(
            after, tokens, self.renderer.answer_text(tokens.ids_T[start:]) if reached else None
        )

    # Both

    def take(self, place: Place, done: Completion) -> Iterator[tuple[Place, Request]]:
        if place == THOUGHT:
            return self._think(done)
        self._answer(place, done)
        return iter(())

    def _context(self, after: int | None = None) -> Ids:
        return np.concatenate([self.prompt_ids, self.thought.ids_T[:after]])

    def _request(
        self,
        ids: Ids,
        limit: int,
        place: Place,
        stops: tuple[int, ...] | None = None,
        prefix: tuple[int, int] | None = None,
    ) -> Request:
        thinking = place == THOUGHT
        phase = (_THINK, 0, 0) if thinking else (_ANSWER, *place)
        return Request(
            id=-1,
            ids=ids,
            max_tokens=limit,
            stop_ids=stops or self.renderer.eos_ids,
            temperature=self.job.temperature,
            seed=seeds.key(self.job.seed, *phase),
            prefix=prefix,
            keep=thinking and self.two_calls,
        )

    def finish(self) -> Rollout:
        for cut, of in self.repeats.items():
            self.answers[cut] = self.answers[of]
        answers = tuple(tuple(a for a in cut if a is not None) for cut in self.answers)
        assert all(len(cut) == self.plan.answers_per_cut for cut in answers)
        last = answers[-1][0].tokens
        if not len(last) and last.finish == "length":  # the cap came before the answer
            self.thought = replace(self.thought, finish="length")
        job = self.job
        return Rollout(
            job.prompt.index, job.group, job.index, job.seed, job.plan,
            self.prompt_ids, self.thought, self.closed, answers, False, self.skipped,
        )  # fmt: skip


def forced(ids_T: Ids) -> Tokens:
    """Tokens that nobody sampled."""
    return Tokens(ids_T, np.full(len(ids_T), np.nan, np.float32), "stop")


def shift(spans: Spans, by: int) -> Spans:
    """Spans of tokens that come `by` tokens later in their run."""
    return tuple((first + by, version) for first, version in spans)


def split(spans: Spans, at: int) -> tuple[Spans, Spans]:
    """Spans of the tokens before `at`, and of those from it on (counted from there)."""
    before = tuple(s for s in spans if s[0] < at)
    after = [(max(first - at, 0), version) for first, version in spans]
    return before, tuple(s for s, n in zip(after, [*after[1:], (1, 0)], strict=True) if n[0] > 0)
