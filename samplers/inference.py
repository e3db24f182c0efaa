"""Generation under a budget, as a function: prompts in, texts and what they cost out.

By the rollout worker that trains and evaluates. Of several samples a selection returns one
(`samplers/selection`); where it needs no more than some thoughts to end, the others are ended then
and there, and cost nothing more. A stopping rule (`samplers/stopping`) may end thoughts earlier.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from samplers import seam, seeds
from samplers.budget import Asks, Budget, asks_of, plan_of
from samplers.check import look_tokens
from samplers.engines import base
from samplers.engines._requests import check_truncation
from samplers.generated import Generation, Sample, Usage, read
from samplers.render import Renderer, ThinkingConfig
from samplers.rollout import Call, RolloutWorker
from samplers.selection import base as selections
from samplers.selection.base import Pool
from samplers.types import Job, Plan, Prompt, Rollout

__all__ = ["Generation", "Sample", "Usage", "engine_config", "generate", "load"]
LONGEST = 32768
"""Tokens of a response where nobody says how many, if the context has room for them."""
_CHOICE = 0x63686F696365  # keeps what ties are broken by apart from the samples' random numbers
Messages = Sequence[Mapping[str, str]]
Scorer = Callable[[Prompt, Sample], float]


def generate(
    model: str | RolloutWorker,
    prompts: Sequence[str | Messages | Prompt],
    budget: Budget | None = None,
    *,
    asks: Asks | None = None,
    selection: str | Mapping[str, Any] | None = None,
    stopping: str | Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    canonical: Callable[[str], str] = str.strip,
    scorer: Scorer | None = None,
    engine: str | Mapping[str, Any] | base.Config = "torch",
    thinking: ThinkingConfig | None = ThinkingConfig(),  # noqa: B008 (frozen)
) -> list[Generation]:
    """Responses within a budget, one `Generation` a prompt.

    Args:
        model: a folder or hub name, loaded into `engine`; or a worker that holds one.
        prompts: user messages (plain text without a chat template), lists of messages, or prompts.
        asks: how the model is told of a budget; None: as its chat template declares. For an
            exported folder: `trainer.export.asks(folder)`.
        selection: what is returned of several samples; None: nothing is chosen.
        stopping: a rule that watches thoughts.
        max_tokens: cap of a whole response; None: what the context leaves, 32768 at most.
        temperature: 0 is greedy, whatever `top_p` and `top_k` are.
        top_p: only the likeliest tokens that have so much of the probability together, after
            temperature and `top_k`; 1: all.
        top_k: only so many of the likeliest tokens; 0: all.
        canonical: equal ones are equal answers, to selections and stopping rules.
        scorer: what best-of-n compares; None: `Sample.confidence`, as in evaluations.
        thinking: markers of thoughts, of a model that is loaded; None: it has none.

    Raises:
        ValueError: a budget, effort, selection or rule that would have no effect or does not fit,
            or that leaves no token to sample, before anything is generated.
    """
    budget = budget or Budget()
    check_truncation("", top_p, top_k)
    chosen = chooser(selection, budget.samples, temperature, scorer)
    worker = model if isinstance(model, RolloutWorker) else load(model, engine, thinking)
    asks = asks_of(worker.renderer) if asks is None else asks
    asked = [_prompt(i, prompt, worker) for i, prompt in enumerate(_several(prompts))]
    plan = replace(plan_of(budget, asks, max_tokens or 1), stopping=stopping)
    plan = _fitted(plan, worker, asked, max_tokens, chosen)
    how: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    jobs = [
        [Job(prompt, plan, i, s, seeds.key(seed, i, s), **how) for s in range(budget.samples)]
        for i, prompt in enumerate(asked)
    ]
    made = []
    for i, (rollouts, first) in enumerate(_rollouts(worker, jobs, chosen, canonical)):
        samples = tuple(read(rollout, worker.renderer) for rollout in rollouts)
        key = seeds.key(seed, _CHOICE, i)
        made.append(_generation(asked[i], plan, samples, first, chosen, canonical, scorer, key))
    return made


def load(
    model: str, engine: str | Mapping[str, Any] | base.Config, thinking: ThinkingConfig | None
) -> RolloutWorker:
    """A worker with an engine of the model."""
    config = engine if isinstance(engine, base.Config) else engine_config(engine)
    return RolloutWorker.from_pretrained(model, config, thinking)


def engine_config(spec: str | Mapping[str, Any]) -> base.Config:
    """Settings of 'vllm' or {'name': 'torch', 'slots': 64}."""
    config: base.Config = seam.resolve("samplers.engines", spec)[1]
    name = seam.split(spec)[0]
    return config.model_copy(update={"name": name})


# Asking


def _several(prompts: Any) -> Sequence[Any]:
    """A text, or one list of messages, by itself is one prompt."""
    alone = isinstance(prompts, str | Prompt) or (prompts and isinstance(prompts[0], Mapping))
    found: Sequence[Any] = [prompts] if alone else prompts
    if not found:
        raise ValueError("prompts: there are none; give at least one text")
    return found


def _prompt(index: int, prompt: str | Messages | Prompt, worker: RolloutWorker) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    if not isinstance(prompt, str):
        return Prompt(index, f"prompt {index}", tuple(prompt), "", "", "")
    chat = bool(worker.renderer.tokenizer.chat_template)
    messages = ({"role": "user", "content": prompt},) if chat else ()
    return Prompt(index, f"prompt {index}", messages, "" if chat else prompt, "", "")


def room(prompts: Sequence[Prompt], plan: Plan, renderer: Renderer, context: int | None) -> int:
    """Tokens of a response that the context leaves beside the longest prompt and a look: its cap
    where nobody says one, `LONGEST` at most."""
    if context is None:
        return LONGEST
    longest = max(len(renderer.render(prompt, plan)) for prompt in prompts)
    return max(1, min(LONGEST, context - longest - look_tokens(plan, renderer)))


Choice = tuple[Any, Any]
"""Module and settings of a selection."""


def chooser(
    selection: str | Mapping[str, Any] | None,
    samples: int,
    temperature: float = 1.0,
    scorer: Scorer | None = None,
) -> Choice | None:
    """Module and settings of the selection.

    Raises:
        ValueError: one that does not exist, or that would have no effect.
    """
    if samples > 1 and temperature == 0:
        raise ValueError(
            f"samples: {samples} greedy ones are all the same; raise temperature, or take one"
        )
    if selection is None:
        if scorer is not None:
            raise ValueError("scorer: without a selection it has no effect; set best_of_n")
        return None
    module, config = selections.resolve(selection)
    name = module.__name__.rpartition(".")[2]
    if samples < 2:
        raise ValueError(f"selection: {name} of one sample has no effect; set samples to 2 or more")
    if scorer is not None and getattr(module, "NEEDS", None) != "score":
        raise ValueError(f"scorer: {name} reads no score; use best_of_n or best_of_majority")
    if hasattr(module, "enough") and module.enough(config) > samples:
        raise ValueError(
            f"selection: {name} waits for m={module.enough(config)} thoughts of {samples} samples; "
            "lower m, or sample more"
        )
    return module, config


def _fitted(
    plan: Plan,
    worker: RolloutWorker,
    prompts: Sequence[Prompt],
    max_tokens: int | None,
    chosen: Choice | None,
) -> Plan:
    """The plan with its cap. A race needs to see thoughts end: an answer with a cap of its own is a
    request of its own."""
    if max_tokens is None:
        most = room(prompts, plan, worker.renderer, worker.engine.context)
        plan = replace(plan, max_tokens=most)
    if chosen is not None and hasattr(chosen[0], "enough") and plan.answer is None:
        plan = replace(plan, answer=plan.max_tokens)
    for prompt in prompts:
        check_open(plan, prompt, worker.renderer)
    return plan


def check_open(plan: Plan, prompt: Prompt, renderer: Renderer) -> None:
    """Refuse limits of a thought that the prompt itself has closed, as at effort none.

    Raises:
        ValueError: as it says; or a prompt that this model cannot be given.
    """
    if not (plan.think or plan.stopping) or not renderer.closed(renderer.render(prompt, plan)):
        return
    what = f"thinking_tokens: {plan.think}" if plan.think else f"stopping: {plan.stopping}"
    raise ValueError(
        f"{what} would have no effect: so asked, the prompt closes the thought before it begins; "
        "leave it out, or ask for another effort"
    )


# Making


def _rollouts(
    worker: RolloutWorker,
    jobs: Sequence[Sequence[Job]],
    chosen: Choice | None,
    canonical: Callable[[str], str],
) -> list[tuple[list[Rollout], Sequence[int]]]:
    """Samples of each prompt, and which of them are in the choice."""
    if chosen is not None and hasattr(chosen[0], "enough"):
        return _race(worker, jobs, chosen[0].enough(chosen[1]), canonical)
    return [(made, range(len(made))) for made in _all(worker, jobs, canonical)]


def _all(
    worker: RolloutWorker, jobs: Sequence[Sequence[Job]], canonical: Callable[[str], str]
) -> list[list[Rollout]]:
    """Every sample of every prompt, to its end."""
    call = worker.submit([job for group in jobs for job in group], canonical)
    try:
        worker.until(lambda: call.ended)
    finally:
        worker.cancel([call])
    if call.error is not None:
        raise call.error
    made = iter(call.value)
    return [[next(made) for _ in group] for group in jobs]


def _race(
    worker: RolloutWorker,
    jobs: Sequence[Sequence[Job]],
    enough: int,
    canonical: Callable[[str], str],
) -> list[tuple[list[Rollout], Sequence[int]]]:
    """Samples of each prompt, and which `enough` thoughts ended first; the others are ended then.

    No more prompts are under way than whose samples all have a slot, so that those that end first
    are the shortest and not those that began first. (More samples than slots begin in turns.)
    """
    slots = worker.engine.config.slots if hasattr(worker.engine, "config") else 1
    width = max(1, slots // max(len(group) for group in jobs))
    waiting = deque(enumerate(jobs))
    racing: dict[int, Call] = {}
    over: dict[int, Call] = {}  # their first have been decided
    made: dict[int, tuple[list[Rollout], Sequence[int]]] = {}
    try:
        while waiting or racing or over:
            while waiting and len(racing) + len(over) < width:
                i, group = waiting.popleft()
                racing[i] = worker.submit(group, canonical)
            worker.until(lambda: _due(racing.values(), over.values(), enough))
            for i, call in list(racing.items()):
                if call.ended or len(call.thought) >= enough:
                    over[i] = racing.pop(i)
                    losers = set(range(len(call.jobs))) - set(call.thought[:enough])
                    worker.cancel([call], [call.jobs[r] for r in losers])
            for i in [i for i, call in over.items() if call.ended]:
                call = over.pop(i)
                if call.error is not None:
                    raise call.error
                made[i] = call.value, call.thought[:enough]
    finally:
        worker.cancel([*racing.values(), *over.values()])
    return [made[i] for i in range(len(jobs))]


def _due(racing: Any, over: Any, enough: int) -> bool:
    """A race is decided, or a decided one has all its answers."""
    decided = any(call.ended or len(call.thought) >= enough for call in racing)
    return decided or any(call.ended for call in over)


# Choosing


def _generation(
    prompt: Prompt,
    plan: Plan,
    samples: tuple[Sample, ...],
    first: Sequence[int],
    choice: Choice | None,
    canonical: Callable[[str], str],
    scorer: Scorer | None,
    key: int,
) -> Generation:
    """What is returned of samples of which those of `first` are in the choice."""
    usage = Usage()
    for one in samples:
        usage += replace(one.usage, prompt=0)
    usage = replace(usage, prompt=samples[0].usage.prompt)
    cut = [one for i, one in enumerate(samples) if i not in first]
    most = plan.max_tokens if plan.think is None else plan.think
    lost = sum(most - one.usage.thinking for one in cut if one.ended == "abort")
    if choice is None:
        return Generation(prompt, plan, samples, 0, usage)
    drawn = [samples[i] for i in first]
    answers = [None if one.answer is None else canonical(one.answer) or None for one in drawn]
    chosen = first[_choice(prompt, drawn, answers, choice, scorer, key)] if drawn else 0
    votes = dict(Counter(answer for answer in answers if answer is not None).most_common())
    return Generation(prompt, plan, samples, chosen, usage, len(cut), lost, votes)


def _choice(
    prompt: Prompt,
    samples: Sequence[Sample],
    answers: Sequence[str | None],
    choice: Choice,
    scorer: Scorer | None,
    key: int,
) -> int:
    """By the probabilities of the pure function; ties are drawn by the seed."""
    module, config = choice
    numbers = {answer: n for n, answer in enumerate(dict.fromkeys(a for a in answers if a))}
    scores = [np.nan] * len(samples)
    if getattr(module, "NEEDS", None) == "score":
        scores = [one.confidence if scorer is None else scorer(prompt, one) for one in samples]
    pool = Pool(
        np.array([[-1 if a is None else numbers[a] for a in answers]]),
        np.array([[one.usage.thinking for one in samples]]),
        np.array([[one.rollout.response_tokens for one in samples]]),
        np.array([scores], np.float64),
    )
    share = module.chosen(config, pool)[0]
    if not share.any():
        return 0
    u = seeds.uniforms(np.array([key], np.uint64), np.zeros(1, np.uint64))[0]
    return int(np.searchsorted(np.cumsum(share), u * share.sum()))
