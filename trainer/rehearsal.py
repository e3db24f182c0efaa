"""Budget, shapers and algorithm tried together on a group that nobody sampled, before any work.

What a plan's mode, budget or cuts mean to a reward, a template or a tokenizer shows only where the
two meet; a mistake there should not wait for the first batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rewards.apply import Shaping
from rewards.verdict import Verdict
from samplers import seam
from samplers.budgets import base as budgets
from samplers.check import check_plan, gold_ids
from samplers.facts import PROBES, TOKEN_REWARDS
from samplers.render import Renderer
from samplers.types import Answer, Group, Plan, Prompt, Rollout, Tokens
from trainer import compatibility
from trainer.config import Stage
from trainer.modelfolder import ModelFolder
from trainer.types import TrainSequence

SAID = 3
"""Tokens of a made-up thought, and of an answer with its end."""


LARGE = 64
"""Rollouts of the largest group that is tried."""
TRIED = 64
"""Settings of a schedule that are tried, spread evenly, of those that there will be."""


def check_rows(stage: Stage, prompts: Sequence[Prompt], model: ModelFolder | None) -> None:
    """Budgets that prompts name, and golds that a budget policy scores: every row has them.

    Raises:
        ValueError: the first row that has not.
    """
    if "'meta:" not in repr(stage.budget) and PROBES not in compatibility.facts(stage):
        return
    module, config = seam.resolve("samplers.budgets", stage.budget_spec)
    renderer = None
    for prompt in prompts:
        plan = module.plans(config, prompt, stage.rollouts_per_prompt, 0, {}, 0)[0]
        if plan.probe and model is not None and not stage.model.add_markers:
            renderer = renderer or _renderer(stage, model)
            try:
                gold_ids(plan, prompt, renderer)
            except ValueError as error:
                raise ValueError(f"data: row {prompt.id}: {error}") from None


def check(stage: Stage, prompt: Prompt, model: ModelFolder | None) -> None:
    """Plans for `prompt` at every change of the budget, and their readers.

    Args:
        model: None where it is not on this machine: nothing is rendered then.

    Raises:
        ValueError: the first mistake, as one line.
    """
    module, config = seam.resolve("samplers.budgets", stage.budget_spec)
    last = budgets.last_step(module, config)
    if last >= stage.steps:
        raise ValueError(
            f"budget: its schedule ends at step {last} and the stage has steps={stage.steps}; "
            f"set steps={last + 1} or more, or shorten the schedule"
        )
    fewest, most = compatibility.sizes(stage)
    rows = []
    steps = np.array(budgets.changes(module, config))
    few = np.linspace(0, len(steps) - 1, min(TRIED, len(steps))).round().astype(int)
    for step in steps[few].tolist():
        plans = _plans(stage, prompt, fewest, step)
        if stage.markers is None and any(plan.think is not None or plan.cuts for plan in plans):
            name, _ = seam.split(stage.budget)
            raise ValueError(
                f"budget={name}: cuts thoughts, and with thinking: none there are none; set "
                "budget=unlimited, or thinking: {start, end}"
            )
        if any(plan.stopping is not None for plan in plans):
            raise ValueError(
                "budget: its plans have a stopping rule, whose ends nobody sampled: rules are for "
                "inference (laconic generate --stopping); leave it out"
            )
        if model is not None:
            _render(stage, prompt, plans, model)
        rows += rehearse(stage, prompt, plans)
    if most != fewest:
        rehearse(stage, prompt, _plans(stage, prompt, min(most, LARGE), 0))
    trained = compatibility.trains(stage)
    alone = trained == 1 or getattr(compatibility.allocator(stage), "apart", False)
    # where tokens are rewarded, a made-up rollout may have none that is
    if alone and TOKEN_REWARDS not in compatibility.facts(stage):
        if trained != fewest:
            rows = rehearse(stage, prompt, _plans(stage, prompt, trained, 0))
        if not any(row.advantages_T.any() for row in rows):
            raise ValueError(_alone(stage, trained))


def _plans(stage: Stage, prompt: Prompt, n: int, step: int) -> Sequence[Plan]:
    """Plans for so many rollouts as the allocator may ask for at once."""
    module, config = seam.resolve("samplers.budgets", stage.budget_spec)
    try:
        plans: Sequence[Plan] = module.plans(config, prompt, n, step, {}, 0)
        return plans
    except ValueError as error:
        if n == stage.rollouts_per_prompt:
            raise
        name, _ = seam.split(stage.allocation)
        raise ValueError(
            f"allocation={name} may ask for {n} rollouts of a prompt at a time, and "
            f"{str(error).split(';')[0]}; raise the allocator's lower bounds, or change the budget"
        ) from None


def _alone(stage: Stage, trained: int) -> str:
    """Nothing to compare a single rollout with."""
    algorithm, _ = seam.split(stage.algorithm)
    allocation, _ = seam.split(stage.allocation)
    what = "a prompt" if trained == 1 else "a mode of a prompt"
    field, fix = f"rollouts_per_prompt={trained}", f"set rollouts_per_prompt={2 * trained} or more"
    if stage.rollouts_per_prompt != trained:
        field = f"allocation={allocation} may train {trained} rollouts of a prompt"
        fix = f"let it train {2 * trained} or more (knapsack: low; gvm: least)"
    return (
        f"{field}: {algorithm} compares the rollouts of {what} with each other, so a single one "
        f"has advantage 0; {fix}, or an algorithm without a group baseline (raft)"
    )


def _render(stage: Stage, prompt: Prompt, plans: Sequence[Plan], model: ModelFolder) -> None:
    """Plans with words of their own, in the model's: plain ones need no tokenizer (and no wait)."""
    fields = ("template", "system", "suffix", "prefill", "close", "after_close", "probe")
    worded = {repr(p): p for p in plans if any(getattr(p, field) for field in fields)}
    if not worded or stage.model.add_markers:
        return
    renderer = _renderer(stage, model)
    for plan in worded.values():
        try:
            check_plan(plan, prompt, renderer.render(prompt, plan), renderer, model.context)
        except ValueError as error:
            raise ValueError(_under("budget", str(error))) from None


def _under(field: str, message: str) -> str:
    """The message, with the field that it is about if it does not say so itself."""
    return message if message.startswith((field, "prompt")) else f"{field}: {message}"


def _renderer(stage: Stage, model: ModelFolder) -> Renderer:
    from samplers import render

    return render.load(str(model.path), stage.markers, stage.model.trust_remote_code)


def rehearse(stage: Stage, prompt: Prompt, plans: Sequence[Plan]) -> list[TrainSequence]:
    """Rows of made-up rollouts of `plans`, right and wrong by turns, through shapers and algorithm.

    What an algorithm asks of the learners is zero.

    Raises:
        ValueError: a shaper or the algorithm cannot work with such plans.
    """
    module, config = seam.resolve("trainer.algorithms", stage.algorithm)
    shaping = Shaping(stage.shaping, lambda rows: ["" for _ in rows], stage.markers)
    (shaped,) = shaping.apply([group(prompt, plans)])
    needs = module.needs(config) if hasattr(module, "needs") else ()
    rows: list[TrainSequence] = module.sequences([_annotated(shaped, needs)], config)
    return rows


def group(prompt: Prompt, plans: Sequence[Plan]) -> Group:
    """One rollout per plan: a thought that closed itself, answered at every cut."""
    rollouts = tuple(_rollout(prompt, plan, g) for g, plan in enumerate(plans))
    verdicts = tuple(
        tuple(tuple(_verdict((g + a) % 2 == 0) for a in range(len(cut))) for cut in r.answers)
        for g, r in enumerate(rollouts)
    )
    return Group(prompt, 0, rollouts, verdicts)


def _rollout(prompt: Prompt, plan: Plan, g: int) -> Rollout:
    thought = _tokens(SAID + g)
    probability = 0.5 if plan.probe else None
    last = len(plan.cuts) - 1 if plan.cuts else 0
    answers = tuple(
        tuple(
            Answer(len(thought), _tokens(SAID), "A", None if c == last else probability)
            for _ in range(plan.answers_per_cut)
        )
        for c in range(last + 1)
    )
    one = np.ones(1, np.int32)
    return Rollout(prompt.index, 0, g, 0, plan, one, thought, closed=True, answers=answers)


def _tokens(count: int) -> Tokens:
    return Tokens(np.zeros(count, np.int32), np.full(count, -1.0, np.float32), "stop", ((0, 0),))


def _verdict(right: bool) -> Verdict:
    return Verdict(right, float(right), "ok" if right else "wrong", "A")


def _annotated(group: Group, needs: Any) -> Group:
    names = {"old_logprobs": "old", "ref_logprobs": "ref"}
    zeros = tuple(
        np.zeros(1 + len(r.thought) + len(r.final.tokens), np.float32) for r in group.rollouts
    )
    return replace(group, annotations={names[need]: zeros for need in needs if need in names})
