"""A rollout whose thought a rule watches (`samplers/stopping`): `Run`, thinking in pieces.

Where the rule wants a look, a piece ends; the question is put behind what stands there, as a fork
of the kept thought, and the thought goes on from its own KV, or is closed. What a look says is
never in the rollout, and its random numbers are its own: without an exit, thought and answer are
those of the same plan without a rule (sampled ones on engines whose requests go on with a seed's
numbers, `Request.drawn`), and with one those of a plan whose budget is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from samplers import seeds
from samplers.check import question_ids
from samplers.render import Renderer
from samplers.run import _NONE, THOUGHT, Place, Run, forced, join
from samplers.stopping import base
from samplers.stopping.base import Look, Probe
from samplers.types import Completion, Ids, Job, Ramp, Request, Tokens, Watch

_LOOK = 2
"""A phase, as part of a request's seed: after thought and answer."""


class Watched(Run):
    """See `Run`.

    Args:
        canonical: of a trial answer; equal ones are equal answers.
        ramps: the engine takes `Request.ramp`.
    """

    def __init__(
        self,
        job: Job,
        prompt_ids: Ids,
        renderer: Renderer,
        ids: Iterator[int] | None = None,
        canonical: Callable[[str], str] = str.strip,
        ramps: bool = False,
    ) -> None:
        super().__init__(job, prompt_ids, renderer, ids)
        assert self.plan.stopping is not None
        self.rule, self.config = base.resolve(self.plan.stopping)
        self.canonical, self.ramps = canonical, ramps
        self.plain, self.two_calls = not self.two_calls, True
        self.probe: Probe | None = None
        self.question = _NONE
        if hasattr(self.rule, "probe"):
            self.probe = probe = self.rule.probe(self.config)
            self.question = question_ids(probe, self.plan, renderer)
        self.looks: list[Look] = []
        self.weighed: dict[int, float] = {}  # by number of the given text
        self.last = 0  # tokens that the thought may have
        self.drawn = 0  # tokens of the thought's seed, replaced ends included
        self.tried = self.fed = self.resumed = self.reread = 0
        self.new: dict[Place, int] = {}  # ids of requests that go on from a kept thought
        self.exit: int | None = None
        self.raised: Ramp | None = None

    # Pieces

    def _thinks(self, limit: int) -> Iterator[tuple[Place, Request]]:
        assert self.markers is not None
        self.last = len(self.thought) + limit
        if hasattr(self.rule, "ramp"):
            self.raised = self.rule.ramp(self.config, self.plan.think, self.markers.end_id)
        return self._piece(self._context(), None)

    def _piece(self, ids: Ids, prefix: tuple[int, int] | None) -> Iterator[tuple[Place, Request]]:
        """Think on until the next look."""
        assert self.markers is not None
        spent = len(self.thought)
        limit = min(self._next(spent), self.last) - spent
        stops = (self.markers.end_id, *self.renderer.eos_ids)
        request = self._request(ids, limit, THOUGHT, stops, prefix)
        if self.raised is not None:
            here = self.raised
            here = replace(here, start=here.start - spent, end=here.end - spent)
            middle = here.at((limit - 1) / 2)
            if self.ramps:
                request = replace(request, ramp=here)
            elif middle:
                request = replace(request, logit_bias={here.token: middle})
        if prefix is not None:
            self.new[THOUGHT] = len(ids)
        yield THOUGHT, request

    def _next(self, spent: int) -> int:
        """Where the piece ends that begins after `spent` tokens."""
        if self.probe is not None:
            return spent + self.config.every - spent % self.config.every
        if self.raised is None or self.ramps or spent >= self.raised.end:
            return self.last
        if spent < self.raised.start:
            return int(np.ceil(self.raised.start))
        return min(spent + self.config.every, int(np.ceil(self.raised.end)))

    def _think(self, done: Completion) -> Iterator[tuple[Place, Request]]:
        assert self.markers is not None
        self.drawn += len(done.ids_T)
        spent = len(self.thought) + len(done.ids_T)
        if done.finish == "stop" and (text := self._resumes(spent - 1)) is not None:
            return self._go_on(done, text)
        if done.finish != "length" or spent >= self.last:
            return super()._think(done)
        self.thought = join(self.thought, Tokens(done.ids_T, done.logprobs_T, "length", done.spans))
        assert done.handle is not None
        if self.probe is None:
            return self._piece(_NONE, (done.handle, len(self.prompt_ids) + spent))
        self.over.remove(done.handle)
        self.held = [done.handle]
        return self._look(done.handle)

    def _resumes(self, spent: int) -> Ids | None:
        """What replaces the end of a thought of `spent` tokens; None: it may end."""
        if not hasattr(self.rule, "resumes"):
            return None
        text = self.rule.resumes(self.config, spent, self.resumed)
        ids = self.renderer.encode(text) if text else _NONE
        return ids if len(ids) and spent + len(ids) < self.last else None

    def _go_on(self, done: Completion, text: Ids) -> Iterator[tuple[Place, Request]]:
        """The thought goes on with `text` in its end's place, which was sampled for nothing."""
        assert done.handle is not None
        ids, logprobs, last = done.ids_T, done.logprobs_T, len(done.ids_T) - 1
        spans = tuple(span for span in done.spans if span[0] < last)
        self.thought = join(self.thought, Tokens(ids[:last], logprobs[:last], "stop", spans))
        kept = len(self.prompt_ids) + len(self.thought)
        self.thought = join(self.thought, forced(text))
        self.resumed, self.tried, self.fed = self.resumed + 1, self.tried + 1, self.fed + len(text)
        return self._piece(text, (done.handle, kept))

    # Looks

    def _look(self, handle: int) -> Iterator[tuple[Place, Request]]:
        """Put the question behind the thought."""
        assert self.probe is not None
        probe, spent = self.probe, len(self.thought)
        prefix = (handle, len(self.prompt_ids) + spent)
        given: list[Ids | None] = [self.renderer.encode(text) for text in probe.given]
        self.weighed = {}
        for number, ids in enumerate(given or [None]):
            limit = probe.tokens if ids is None else len(ids)
            self.fed += len(self.question) * (number == 0) + (0 if ids is None else len(ids))
            place = Place(-2, number)
            request = self._request(self.question, limit, place, prefix=prefix, given=ids)
            seed = seeds.key(self.job.seed, _LOOK, spent, number)
            self.new[place] = len(self.question) + (0 if ids is None else len(ids) - 1)
            hot = probe.temperature
            yield place, replace(request, seed=seed, temperature=hot, top_p=1.0, top_k=0)

    def _looked(self, place: Place, done: Completion) -> Iterator[tuple[Place, Request]]:
        assert self.probe is not None
        if done.finish == "abort":
            yield from self._aborted()
            return
        said = done.logprobs_T.astype(np.float64)
        self.weighed[place.number] = float(np.exp(said.sum()))
        if len(self.weighed) < len(self.probe.given):
            return
        self.looks.append(self._seen(done, said))
        ((handle,), self.held) = (self.held, [])
        self.over.append(handle)
        if self.rule.stops(self.config, self.looks):
            self.exit = len(self.thought)
            yield from self._answer_all(self._closes(), handle)
        else:
            yield from self._piece(_NONE, (handle, len(self.prompt_ids) + len(self.thought)))

    def _seen(self, done: Completion, said: Any) -> Look:
        assert self.probe is not None
        spent = len(self.thought)
        if self.probe.given:
            total = sum(self.weighed.values())
            return Look(spent, None, base.NAN, self.weighed[0] / total if total else base.NAN)
        self.tried += len(done.ids_T)
        text = self.renderer.answer_text(done.ids_T)
        answer = self.canonical(text) if text is not None else None
        return Look(spent, answer or None, float(np.exp(said.mean())))

    def _aborted(self) -> Iterator[tuple[Place, Request]]:
        """Once: of several texts that were weighed each comes back aborted."""
        if not self.held:
            return iter(())
        self.over, self.held = self.over + self.held, []
        self.thought = replace(self.thought, finish="abort")
        return self._no_answers("abort")

    # Both

    def _request(self, ids: Ids, limit: int, place: Place, *args: Any, **more: Any) -> Request:
        request = super()._request(ids, limit, place, *args, **more)
        if place == THOUGHT or (self.plain and self.closed):  # which without a rule is one request
            seed = seeds.key(self.job.seed, 0, 0, 0)
            return replace(request, seed=seed, drawn=self.drawn)
        return request

    def take(self, place: Place, done: Completion) -> Iterator[tuple[Place, Request]]:
        self.reread += max(0, done.prefilled - self.new.pop(place, done.prefilled))
        return self._looked(place, done) if place.cut == -2 else super().take(place, done)

    @property
    def watch(self) -> Watch:
        looks = len(self.looks)
        return Watch(looks, self.tried, self.fed, self.exit, self.resumed, self.reread)
