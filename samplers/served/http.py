"""Rollouts over an OpenAI chat endpoint: what people get who use a served model, as evaluation sees
it.

The server renders the prompt, closes the thought at its hard budget and splits the response; all
three are compared with what is known here, and what differs is counted and told (`findings`).

A job becomes one request, and one more for each cut within its thought: over chat a budget is a
generation of its own. With the job's seed a server repeats the thought up to the cut, so that
budgets stay nested (checked, and told where one does not), but the thought is paid for each time.
`engine.py` pays once.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from samplers.check import check_plan
from samplers.render import Renderer
from samplers.served.client import Dialect, body_of, context_of, only_model
from samplers.served.flow import Flow
from samplers.served.reading import Read, no_room, read, same_start
from samplers.served.wire import Wire
from samplers.types import Answer, Ids, Job, Plan, Prompt, Rollout

SEEDS = 0x7FFF_FFFF_FFFF_FFFF
"""The largest seed that servers take."""
ODD = {
    "over": "hard budgets were ignored: the thought went on behind them, by up to {most} tokens; "
    "no number at a budget holds (the server needs --reasoning-parser and --reasoning-config: "
    "laconic serve)",
    "rendered": "prompts were rendered otherwise than by the tokenizer here; give the folder that "
    "is served",
    "split": "answers were split from their thought otherwise than here; see --reasoning-parser",
    "twice": "thoughts were closed once more after they had been closed by force: people see that "
    "marker in front of the answer; here it is left out",
    "unanswered": "thoughts ended the response without an answer; an engine in this process goes "
    "on to the answer where there is a budget, a server does not",
    "unnested": "budgets were answered after another thought than the uncut one: the server does "
    "not repeat a seed exactly, so these budgets are not nested",
    "retokenized": "responses came without token ids; the tokenizer here counted their text",
    "no_logprobs": "responses came without logprobs; confidences mean nothing",
}
"""What may be found, of how many responses."""


class Served:
    """A served model as a rollout worker. Thread-safe.

    Args:
        model: the served name; None: the only one that the server has.
        renderer: tokenizer and markers of the same model: of its exported folder.
        concurrency: jobs in flight at once.
        slack: see `samplers.served.client.request_body`; 0: what a plan says holds exactly.
        wire: of `Wire` (timeout, retries, key).

    Raises:
        ValueError: nobody answers there, or it serves several models and none is named.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None,
        renderer: Renderer,
        *,
        concurrency: int = 64,
        dialect: Dialect = "vllm",
        slack: float = 0.0,
        **wire: Any,
    ) -> None:
        self.wire = Wire(base_url, connections=concurrency, **wire)
        self.renderer, self.dialect, self.slack = renderer, dialect, slack
        self.model = model or only_model(self.wire)
        self.context = context_of(self.wire, self.model)
        self._room = asyncio.Semaphore(concurrency)
        self._lock = threading.Lock()
        self._odd: Counter[str] = Counter()
        self._most = 0
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0
        self._rendered: tuple[Prompt, Plan, Ids] | None = None

    # Rollouts

    def rollout(self, jobs: Sequence[Job]) -> list[Rollout]:
        """Make all rollouts, in job order.

        Raises:
            ValueError: a plan that cannot be asked over chat or that the server refuses.
        """
        with self.flow() as flow:
            flow.add(jobs)
            return flow.take()[0] if jobs else []

    generate = rollout

    def flow(self) -> Flow:
        """Several lists in flight, each of them back when it is done."""
        return Flow(self.submit)

    def submit(self, job: Job) -> Future[Rollout]:
        return self.wire.run(self._make(job))

    async def _make(self, job: Job) -> Rollout:
        async with self._room:
            started = time.perf_counter()
            plan, prompt_ids = job.plan, self._render(job)
            check_chat(job, self.renderer)
            skipped = self.renderer.closed(prompt_ids)
            budget = plan.think
            if budget is None and plan.cuts and plan.cuts[-1] < plan.max_tokens:
                budget = plan.cuts[-1]
            main, shown = await self._ask(job, budget, skipped)
            if not _same(shown, prompt_ids):
                self._note("rendered")
            answers = await self._answers(job, main, budget, skipped)
            self._count(main, time.perf_counter() - started)
        return Rollout(
            job.prompt.index, job.group, job.index, job.seed, plan,
            prompt_ids if shown is None else shown,
            main.thought, main.closed, tuple((a,) for a in answers), skipped=skipped,
        )  # fmt: skip

    async def _answers(
        self, job: Job, main: Read, budget: int | None, skipped: bool
    ) -> list[Answer]:
        """The answer at each cut; those at or behind the thought's end share its own."""
        if skipped or not job.plan.cuts:
            return [main.answer] * max(1, len(job.plan.cuts))
        short = [b for b in job.plan.cuts if b < main.body and b != budget]
        made = await asyncio.gather(*(self._cut(job, main, b) for b in short))
        by_cut: Mapping[int, Answer] = dict(zip(short, made, strict=True))
        return [by_cut.get(b, main.answer) for b in job.plan.cuts]

    async def _cut(self, job: Job, main: Read, cut: int) -> Answer:
        """A generation of its own, closed by force at `cut`."""
        if job.plan.max_tokens - cut - 1 < 1:
            return no_room(cut)
        one, _ = await self._ask(job, cut, False)
        self._note("cuts")
        if not same_start(main.thought.ids_T, one.thought.ids_T, min(cut, one.body)):
            self._note("unnested")
        return replace(one.answer, after=min(one.body, len(main.thought)))

    async def _ask(self, job: Job, budget: int | None, skipped: bool) -> tuple[Read, Ids | None]:
        """One request; and the prompt's ids, if the server tells them."""
        body = self.body(job, budget)
        found = await self.wire.send("POST", "/v1/chat/completions", body)
        hard = None if budget is None else math.ceil(budget * (1 + self.slack) - 1e-9)
        one = read(found, job.plan, self.renderer, hard, skipped)
        with self._lock:
            self._counts["requests"] += 1
            self._counts["paid"] += one.paid
            self._counts["hard"] += budget is not None
            self._odd.update(one.odd)
            self._odd["over"] += one.over > 0
            self._most = max(self._most, one.over)
        import numpy as np

        ids = found.get("prompt_token_ids")
        return one, None if ids is None else np.array(ids, np.int32)

    def body(self, job: Job, budget: int | None) -> dict[str, Any]:
        """The request of one generation: everything that shapes its tokens is said."""
        plan = replace(job.plan, think=budget)
        if budget is not None and plan.answer is not None:
            cap = math.ceil(budget * (1 + self.slack)) + 1 + plan.answer
            plan = replace(plan, max_tokens=min(plan.max_tokens, cap))
        body = body_of(self.model, job.prompt.messages, plan, self.slack, self.dialect)
        body |= {"temperature": job.temperature, "top_p": job.top_p, "seed": job.seed & SEEDS}
        if self.dialect == "vllm":  # or its generation_config.json shapes them
            body |= {"min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
        if self.dialect == "vllm" or job.top_k:
            body["top_k"] = job.top_k
        return body | {"logprobs": True, "top_logprobs": 0}

    def _render(self, job: Job) -> Ids:
        """The prompt as the tokenizer here renders it; a group renders its prompt once."""
        last = self._rendered
        if last is not None and last[0] == job.prompt and last[1] == job.plan:
            return last[2]
        ids = self.renderer.render(job.prompt, job.plan)
        check_plan(job.plan, job.prompt, ids, self.renderer, self.context)
        self._rendered = (job.prompt, job.plan, ids)
        return ids

    # What came of it

    def findings(self) -> list[str]:
        """One line for everything in which the server differs from what was asked or is known
        here; [] where all held."""
        with self._lock:
            of, odd = self._counts, Counter(self._odd)
            total = {"over": of["hard"], "unnested": odd["cuts"], "rendered": of["rollouts"]}
            lines = [
                f"{odd[key]} of {total.get(key, of['requests'])} {text.format(most=self._most)}"
                for key, text in ODD.items()
                if odd[key]
            ]
            if odd["cuts"]:
                lines.append(
                    f"{odd['cuts']} budgets were a generation each, of {of['requests']} in all "
                    f"({of['paid']} tokens): over chat a thought is paid for at every cut"
                )
            if self.wire.retried:
                lines.append(f"{self.wire.retried} requests were sent again after an error")
        return lines

    def stats(self) -> dict[str, float]:
        """Since the start: rollouts, requests, tokens by kind, tokens generated in all (`paid`),
        seconds of all jobs (which overlap), and what was found, by its key."""
        with self._lock:
            kinds = ("rollouts", "requests", "thought", "answer", "forced", "paid")
            counts = {kind: float(self._counts[kind]) for kind in kinds}
            found = {key: float(self._odd[key]) for key in ODD}
        return {**counts, "seconds": self._seconds, "retried": self.wire.retried, **found}

    def _note(self, key: str) -> None:
        with self._lock:
            self._odd[key] += 1

    def _count(self, main: Read, seconds: float) -> None:
        forced = int(main.answer.tokens.forced_T.sum())
        with self._lock:
            self._counts["rollouts"] += 1
            self._counts["thought"] += len(main.thought)
            self._counts["answer"] += len(main.answer.tokens) - forced
            self._counts["forced"] += forced
            self._seconds += seconds

    def close(self) -> None:
        self.wire.close()


def check_chat(job: Job, renderer: Renderer) -> None:
    """Raise ValueError for what no chat endpoint can be asked."""
    plan, markers = job.plan, renderer.thinking
    wrong = {
        "prefill": plan.prefill,
        "after_close": plan.after_close,
        "close": plan.close if markers is None or plan.close != markers.end else "",
        "probe": plan.probe,
        "chunk": plan.chunk,
        "stopping": plan.stopping,
        "answers_per_cut": plan.answers_per_cut if plan.answers_per_cut > 1 else None,
        "resume": job.resume and "an unfinished rollout",
    }
    for field, value in wrong.items():
        if value:
            raise ValueError(
                f"budget: {field} {value!r} cannot be asked over a chat endpoint; leave it out, or "
                "ask by token ids (samplers.served.engine)"
            )
    if not job.prompt.messages:
        raise ValueError(
            f"prompt '{job.prompt.id}' is plain text and the endpoint takes chat messages; set "
            "data.chat=true, or ask by token ids (samplers.served.engine)"
        )


def _same(shown: Ids | None, ids: Ids) -> bool:
    return shown is None or (len(shown) == len(ids) and bool((shown == ids).all()))
