"""Plans that cannot be generated are refused, before any work: no engine is needed to say so."""

from __future__ import annotations

import warnings

import numpy as np

from samplers.render import Renderer
from samplers.stopping import base as stopping
from samplers.stopping.base import Probe
from samplers.types import Ids, Plan, Prompt, Rollout

_GOLD = "{answer}"
"""Stands for the gold in `Plan.probe`; nothing else there is replaced (LaTeX is full of braces)."""


def gold_ids(plan: Plan, prompt: Prompt, renderer: Renderer) -> Ids:
    """What a probe scores: the gold answer as `plan.probe` writes it, and the response's end."""
    own = renderer.tokenizer.eos_token_id
    eos = renderer.eos_ids[0] if own is None else own
    return np.append(renderer.encode(plan.probe.replace(_GOLD, prompt.answer)), np.int32(eos))


def question_ids(probe: Probe, plan: Plan, renderer: Renderer) -> Ids:
    """What a stopping rule puts behind the thought at each look."""
    close = [renderer.close_ids(plan), renderer.after_close_ids(plan)] if probe.close else []
    text = [renderer.encode(probe.text)] if probe.text else []
    return np.concatenate([*close, *text, np.zeros(0, np.int32)])


def look_tokens(plan: Plan, renderer: Renderer) -> int:
    """Most tokens that a look of the plan's rule puts behind the thought; 0 where it takes none."""
    if plan.stopping is None or renderer.thinking is None:
        return 0
    rule, config = stopping.resolve(plan.stopping)
    if not hasattr(rule, "probe"):
        return 0
    probe = rule.probe(config)
    said = probe.tokens or max(len(renderer.encode(text)) for text in probe.given)
    return len(question_ids(probe, plan, renderer)) + said


def check_plan(
    plan: Plan,
    prompt: Prompt,
    prompt_ids: Ids,
    renderer: Renderer,
    context: int | None = None,
    resume: Rollout | None = None,
) -> None:
    """Refuse what cannot be generated, before anything is.

    Args:
        prompt_ids: the prompt as the plan renders it.
        context: longest prompt plus response that the model takes; None: any.
        resume: the unfinished rollout that goes on.

    Raises:
        ValueError: a plan that contradicts itself or that this model or prompt cannot hold.
    """
    _check_cuts(plan, prompt)
    thought = len(renderer.encode(plan.prefill)) if plan.prefill else 0
    begun, forced_text = f"prefill {thought}", 0
    if resume is not None:
        thought = len(resume.thought)
        begun = f"a thought of {thought} to go on with"
    if renderer.thinking is not None:
        forced_text = len(renderer.close_ids(plan)) + len(renderer.after_close_ids(plan))
    elif plan.think is not None or plan.cuts:
        raise ValueError(
            f"budget: think {plan.think}, cuts {plan.cuts} need thinking markers, and the "
            "recipe has thinking: none; set thinking: {start, end} or use budget: unlimited"
        )
    elif plan.close or plan.after_close:
        warnings.warn(
            f"budget: close {plan.close!r} and after_close {plan.after_close!r} have no effect "
            "with thinking: none",
            stacklevel=4,
        )
    if plan.stopping is not None:
        _check_stopping(plan, prompt, len(prompt_ids), renderer, context)
    think = max(plan.think or 0, thought)
    need = think + (forced_text if plan.think is not None else 0) + 1
    if need > plan.max_tokens:
        raise ValueError(
            f"budget: max_tokens {plan.max_tokens} leaves no token for an answer after think "
            f"{plan.think}, {begun} and forced text {forced_text}; set it to {need} at least"
        )
    if context is not None and len(prompt_ids) + plan.max_tokens > context:
        raise ValueError(
            f"prompt '{prompt.id}': {len(prompt_ids)} prompt tokens + max_tokens "
            f"{plan.max_tokens} exceed the model's context of {context}; lower "
            "rollout.max_tokens or drop the prompt"
        )


def _check_stopping(
    plan: Plan, prompt: Prompt, size: int, renderer: Renderer, context: int | None
) -> None:
    """Refuse a rule that cannot watch this plan, or whose looks do not fit behind the thought."""
    if renderer.thinking is None:
        raise ValueError(
            f"stopping: {plan.stopping} needs thinking markers, and there are none; set thinking: "
            "{start, end}, or leave it out"
        )
    stopping.check(plan)
    look = look_tokens(plan, renderer)
    most = plan.max_tokens if plan.think is None else plan.think
    if look and context is not None and size + most + look > context:
        raise ValueError(
            f"stopping: prompt '{prompt.id}' of {size} tokens, a thought of {most} and a look of "
            f"{look} exceed the model's context of {context}; lower the budget or max_tokens"
        )


def _check_cuts(plan: Plan, prompt: Prompt) -> None:
    """The numbers of a plan by themselves: what `check_plan` refuses of any model."""
    cuts, weights, answers = plan.cuts, plan.weights, plan.answers_per_cut
    least = {"think": 0, "answer": 1, "chunk": 1, "answers_per_cut": 1}
    for name, low in least.items():
        value = getattr(plan, name)
        if value is not None and value < low:
            raise ValueError(f"budget: {name} {value}: must be {low} at least")
    if cuts and (cuts[0] < 0 or list(cuts) != sorted(cuts)):
        raise ValueError(f"budget: cuts {cuts}: must be 0 at least and ascend; sort them")
    most = plan.max_tokens if plan.think is None else min(plan.think, plan.max_tokens)
    if cuts and cuts[-1] > most:
        limit = "max_tokens" if most == plan.max_tokens else "think"
        raise ValueError(
            f"budget: cuts {cuts} go beyond {limit} {most}; leave out those above it, or raise it"
        )
    if weights and (len(weights) != len(cuts) or not min(weights) >= 0):
        raise ValueError(
            f"budget: weights {weights}: one per cut of {cuts} is needed, 0 at least each"
        )
    if weights and not abs(sum(weights) - 1) <= 1e-6:  # nor NaN
        raise ValueError(f"budget: weights {weights} sum to {sum(weights):g}; make it 1")
    if plan.chunk is not None and (cuts or answers > 1):
        raise ValueError(
            f"budget: chunk {plan.chunk} with cuts {cuts} and answers_per_cut {answers}: a rollout "
            "in chunks has no cuts and one answer; leave out one or the other"
        )
    if plan.probe and (_GOLD not in plan.probe or not prompt.answer):
        raise ValueError(
            f"budget: probe {plan.probe!r} of prompt '{prompt.id}' (answer {prompt.answer!r}) must "
            f"name the gold as {_GOLD}, and there must be one; or leave probe empty"
        )
    if plan.probe and len(cuts) < 2:
        warnings.warn(
            f"budget: probe {plan.probe!r} has no effect: cuts {cuts} has none but the last, "
            "which is answered",
            stacklevel=5,
        )
