"""One rollout on its way: what a budget means at generation time, as a small state machine.

A rollout thinks, its thought is closed (by itself, or by force at its budget), and it answers, once
or several times, at the end or at several cuts. `samplers/rollout.py` moves it on between steps.

Elastic Reasoning (arXiv:2505.05315) forces one close; AnytimeReasoner (arXiv:2505.13438) answers
at nested budgets; MiniCPM4 (arXiv:2506.07900) rolls out in chunks, each by newer weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from samplers import seeds
from samplers.check import gold_ids
from samplers.render import Renderer
from samplers.types import Answer, Completion, Finish, Ids, Job, Request, Rollout, Tokens, Watch

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

    With each comes the place that its completion belongs to.
    """

    def __init__(
        self, job: Job, prompt_ids: Ids, renderer: Renderer, ids: Iterator[int] | None = None
    ) -> None:
        self.job, self.plan, self.renderer = job, job.plan, renderer
        self.ids = ids or itertools.count()  # of requests
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
        self.thinking = True
        self.unfinished = self.short = False  # paused; the last request asks for a chunk's rest
        self.used = 0  # tokens sampled in this step
        self.before = 0  # of the thought or answer under way, in earlier steps
        prefill = renderer.encode(self.plan.prefill) if self.plan.prefill else _NONE
        self.thought = forced(prefill) if job.resume is None else job.resume.thought
        self.cuts = len(self.plan.cuts) or 1
        self.answers: list[list[Answer | None]] = [
            [None] * self.plan.answers_per_cut for _ in range(self.cuts)
        ]
        self.gold = gold_ids(self.plan, job.prompt, renderer) if self.plan.probe else _NONE
        self.gold_text = renderer.answer_text(self.gold) if self.plan.probe else None
        self.starts: list[int] = []  # by cut: where in an answer's tokens its text begins
        self.repeats: dict[int, int] = {}  # cut: the one whose answers it shows
        self.over: list[int] = []  # handles that nothing more will fork from
        self.held: list[int] = []  # and those that something may

    # Thinking

    def begin(self) -> Iterator[tuple[Place, Request]]:
        """The first request: the thought; or the answers, where there is nothing to think.

        A resumed rollout goes on where it was: what it thought stands in the prefill's place.
        """
        made = self.job.resume
        if made is not None:
            self.closed, self.skipped = made.closed, made.skipped
            self.before = sampled(made.final.tokens)
            if len(made.final.tokens):
                return self._answer_all([(made.final.after, made.final.tokens)])
            if made.closed:
                return self._answer_all(self._closes())
        prefill = self.thought.ids_T
        if self.markers is None:
            self.thought = forced(_NONE)
            return self._answer_all([(0, forced(prefill))])
        ends = np.flatnonzero(prefill == self.markers.end_id)
        self.skipped = len(ends) > 0 or self.renderer.closed(self.prompt_ids)
        if self.skipped:  # the prompt or the plan closes the thought before the model can open it
            at = int(ends[0]) if len(ends) else 0
            self.thought = forced(prefill[:at])
            begun = forced(np.concatenate([prefill[at:], self.after_close]))
            return self._answer_all([(at, begun)] * self.cuts)
        budget = (
            self.plan.think if self.plan.think is not None else max(self.plan.cuts, default=None)
        )
        cap = self.plan.max_tokens
        limit = (cap if budget is None else min(budget, cap)) - len(prefill)
        if limit < 1:
            self.thought = replace(self.thought, finish="length")
            return self._answer_all(self._closes())
        return self._thinks(limit)

    def _thinks(self, limit: int) -> Iterator[tuple[Place, Request]]:
        """The request for a thought of at most `limit` tokens more."""
        assert self.markers is not None
        stops = (self.markers.end_id, *self.renderer.eos_ids) if self.two_calls else None
        limit, self.before = self._within(limit), sampled(self.thought)
        return iter([(THOUGHT, self._request(self._context(), limit, THOUGHT, stops))])

    def _think(self, done: Completion) -> Iterator[tuple[Place, Request]]:
        assert self.markers is not None
        ids, logprobs, last = done.ids_T, done.logprobs_T, len(done.ids_T)
        self.before = 0
        ends = np.flatnonzero(ids == self.markers.end_id)
        self.closed = len(ends) > 0
        eos = done.finish == "stop" and not self.closed
        if eos and self.budgeted:
            last -= 1  # the budget promises an answer: the eos goes, the thought is closed
        elif self.closed:
            last = int(ends[0]) + 1
        finish: Finish = "stop" if self.closed else done.finish
        spans, rest = split(done.spans, last)
        self.thought = join(self.thought, Tokens(ids[:last], logprobs[:last], finish, spans))
        if not self.two_calls:
            self.thinking = False
            rest = rest if last < len(ids) else ()
            answer = Tokens(ids[last:], logprobs[last:], done.finish, rest)
            self.answers[0][0] = self._read(len(self.thought), answer, 0)
            return iter(())
        if self.unfinished or done.finish == "abort" or not (self.closed or self.budgeted):
            return self._no_answers(done.finish)
        return self._answer_all(self._closes(), done.handle)

    def _closes(self) -> list[tuple[int, Tokens]]:
        """(tokens of the thought that are seen, forced text) at each cut."""
        body = len(self.thought) - int(self.closed)
        close = forced(np.concatenate([self.renderer.close_ids(self.plan), self.after_close]))
        natural = len(self.thought), forced(self.after_close)
        return [
            natural if self.closed and cut >= body else (min(cut, body), close)
            for cut in self.plan.cuts or (len(self.thought),)
        ]

    # Answering

    def _answer_all(
        self, starts: Sequence[tuple[int, Tokens]], handle: int | None = None
    ) -> Iterator[tuple[Place, Request]]:
        """`answers_per_cut` answers from each (tokens of the thought, what is there of them)."""
        self.thinking = False
        last = {after: cut for cut, (after, _) in enumerate(starts)}
        texts = {id(begun): self._start(begun) for begun in {id(b): b for _, b in starts}.values()}
        self.starts = [texts[id(begun)] for _, begun in starts]
        for cut, (after, begun) in enumerate(starts):
            if self.plan.collapse and last[after] != cut:
                self.repeats[cut] = last[after]
                continue
            limit = self.plan.max_tokens - after - len(begun)
            if self.plan.answer is not None:
                limit = min(limit, self.plan.answer - self.before)
            if self._probed(cut):
                yield from self._probe(cut, after, begun, limit, handle)
                continue
            asked = self._within(limit)
            for number in range(self.plan.answers_per_cut):
                place = Place(cut, number)
                if limit < 1:
                    self.answers[cut][number] = Answer(after, nothing("length"), None)
                    continue
                self.answers[cut][number] = Answer(after, begun, None)
                if asked < 1:  # the chunk was used up by the thought
                    self.unfinished = True
                    continue
                yield place, self._fork(after, begun, asked, place, handle)

    def _fork(
        self,
        after: int,
        begun: Tokens,
        limit: int,
        place: Place,
        handle: int | None,
        given: Ids | None = None,
    ) -> Request:
        """To go on behind `after` tokens of the thought and `begun`; from kept KV if there is."""
        if handle is None:
            ids = np.concatenate([self._context(after), begun.ids_T])
            return self._request(ids, limit, place, given=given)
        prefix = (handle, len(self.prompt_ids) + after)
        return self._request(begun.ids_T, limit, place, prefix=prefix, given=given)

    def _probed(self, cut: int) -> bool:
        return bool(self.plan.probe) and cut < self.cuts - 1

    def _probe(
        self, cut: int, after: int, begun: Tokens, limit: int, handle: int | None
    ) -> Iterator[tuple[Place, Request]]:
        """Ask for the probability of the gold answer; it is 0 where the answer has no room."""
        gold = self.gold
        probe = Answer(after, nothing("length"), None, 0.0)
        if len(gold) <= limit:
            tokens = forced(np.concatenate([begun.ids_T, gold]))
            probe = Answer(after, tokens, self.gold_text)
            place = Place(cut, 0)
            yield place, self._fork(after, begun, len(gold), place, handle, gold)
        self.answers[cut] = [probe] * self.plan.answers_per_cut

    def _no_answers(self, finish: Finish) -> Iterator[tuple[Place, Request]]:
        self.thinking = False
        empty = Answer(len(self.thought), nothing(finish), None)
        self.answers = [[empty] * self.plan.answers_per_cut for _ in range(self.cuts)]
        return iter(())

    def _answer(self, place: Place, done: Completion) -> None:
        begun = self.answers[place.cut][place.number]
        assert begun is not None
        if self._probed(place.cut):
            probability = float(np.exp(done.logprobs_T.sum(dtype=np.float64)))
            probe = replace(begun, probability=probability)
            if done.finish == "abort":
                probe = Answer(begun.after, nothing("abort"), None)
            self.answers[place.cut] = [probe] * self.plan.answers_per_cut
            return
        made = Tokens(done.ids_T, done.logprobs_T, done.finish, done.spans)
        tokens = join(begun.tokens, made)
        self.answers[place.cut][place.number] = self._read(
            begun.after, tokens, self.starts[place.cut]
        )

    def _read(self, after: int, tokens: Tokens, start: int) -> Answer:
        reached = len(tokens) > start and tokens.finish != "abort" and not self.unfinished
        return Answer(
            after, tokens, self.renderer.answer_text(tokens.ids_T[start:]) if reached else None
        )

    def _start(self, begun: Tokens) -> int:
        """Where the grader begins to read: a forced close is among the answer's tokens."""
        head = begun.ids_T[begun.forced_T]
        ends = np.flatnonzero(head == self.markers.end_id) if self.markers else _NONE
        return int(ends[0]) + 1 if len(ends) else 0

    # Both

    def take(self, place: Place, done: Completion) -> Iterator[tuple[Place, Request]]:
        self.used += len(done.ids_T)
        self.unfinished = self.short and done.finish == "length"
        if place == THOUGHT:
            return self._think(done)
        self._answer(place, done)
        return iter(())

    @property
    def watch(self) -> Watch | None:
        """What a stopping rule did."""
        return None

    def _within(self, limit: int) -> int:
        """`limit`, or what the step's chunk leaves of it."""
        chunk = self.plan.chunk
        asked = limit if chunk is None else min(limit, chunk - self.used)
        self.short = asked < limit
        return asked

    def _context(self, after: int | None = None) -> Ids:
        return np.concatenate([self.prompt_ids, self.thought.ids_T[:after]])

    def _request(
        self,
        ids: Ids,
        limit: int,
        place: Place,
        stops: tuple[int, ...] | None = None,
        prefix: tuple[int, int] | None = None,
        given: Ids | None = None,
    ) -> Request:
        thinking = place is THOUGHT
        phase = (_THINK, 0, 0) if thinking else (_ANSWER, *place)
        # What goes on with earlier steps' tokens needs random numbers of its own.
        start = (self.before,) if self.before else ()
        return Request(
            id=next(self.ids),
            ids=ids,
            max_tokens=limit,
            stop_ids=stops or self.renderer.eos_ids,
            temperature=self.job.temperature,
            seed=seeds.key(self.job.seed, *phase, *start),
            prefix=prefix,
            given=given,
            keep=thinking and self.two_calls,
            top_p=self.job.top_p,
            top_k=self.job.top_k,
        )

    def finish(self) -> Rollout:
        for cut, of in self.repeats.items():
            self.answers[cut] = self.answers[of]
        answers = tuple(tuple(a for a in cut if a is not None) for cut in self.answers)
        assert all(len(cut) == self.plan.answers_per_cut for cut in answers)
        last = answers[-1][0].tokens
        # The cap came before the answer.
        if not len(last) and last.finish == "length" and not self.unfinished:
            self.thought = replace(self.thought, finish="length")
        job = self.job
        return Rollout(
            job.prompt.index, job.group, job.index, job.seed, job.plan, self.prompt_ids,
            self.thought, self.closed, answers, self.unfinished, self.skipped, self.watch,
        )  # fmt: skip


def forced(ids_T: Ids) -> Tokens:
    """Tokens that nobody sampled."""
    return Tokens(ids_T, np.full(len(ids_T), np.nan, np.float32), "stop")


def nothing(finish: Finish) -> Tokens:
    return Tokens(_NONE, np.zeros(0, np.float32), finish)


def sampled(tokens: Tokens) -> int:
    """How many of them were."""
    return int((~tokens.forced_T).sum())


def join(first: Tokens, then: Tokens) -> Tokens:
    """Tokens that end as `then` does."""
    spans = tuple((at + len(first), version) for at, version in then.spans)
    if first.spans and spans and first.spans[-1][1] == spans[0][1]:
        spans = spans[1:]
    return Tokens(
        np.concatenate([first.ids_T, then.ids_T]),
        np.concatenate([first.logprobs_T, then.logprobs_T]),
        then.finish,
        first.spans + spans,
    )


def split(spans: Spans, at: int) -> tuple[Spans, Spans]:
    """Spans of the tokens before `at`, and of those from it on (counted from there)."""
    before = tuple(s for s in spans if s[0] < at)
    after = [(max(first - at, 0), version) for first, version in spans]
    return before, tuple(s for s, n in zip(after, [*after[1:], (1, 0)], strict=True) if n[0] > 0)
