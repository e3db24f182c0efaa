"""`laconic generate`: prompts, a budget, and what came of it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from typing import Any

from launch import asks, inprocess, sampling
from samplers import inference
from samplers.budget import Asks, Budget, plan_of
from samplers.check import check_plan
from samplers.generated import Generation, Sample
from samplers.render import Renderer
from samplers.types import Prompt
from trainer.modelfolder import ModelFolder


def generate(args: argparse.Namespace) -> int:
    """Print thought, answer and tokens of each sample, or of the one that was chosen.

    Raises:
        ValueError: the model is missing, or something that was asked for does not fit or would
            have no effect: before any weights are loaded.
    """
    budget, selection = _budget(args), _selection(args)
    config = inprocess.engine_of(args.engine)
    model, renderer = inprocess.prepare(args)
    told, chosen = asks.asks(args, model, renderer), sampling.sampling(args, model)
    stopping = asks.spec(args.stopping, "--stopping")
    prompts = [_prompt(i, text, model) for i, text in enumerate(args.prompt)]
    _check(args, budget, told, stopping, prompts, renderer, model)
    made = inference.generate(
        inprocess.start(model, renderer, config),
        prompts,
        budget,
        asks=told,
        selection=selection,
        stopping=stopping,
        max_tokens=args.max_tokens,
        temperature=chosen.temperature,
        top_p=chosen.top_p,
        top_k=chosen.top_k,
        seed=args.seed,
    )
    used = {**asdict(chosen), "max_tokens": made[0].plan.max_tokens}
    used["of_folder"] = [name for name in chosen.of_folder if name != "max_tokens"]
    if args.json:
        results = [{**_result(one, selection is not None), "sampling": used} for one in made]
        print(json.dumps(results if len(results) > 1 else results[0], indent=1))
    else:
        print("\n\n".join(_text(one, selection is not None) for one in made))
        print(f"laconic: {sampling.said(used)}", file=sys.stderr)
    return 0


def _budget(args: argparse.Namespace) -> Budget:
    for option, given, needs, there in (
        ("--soft", args.soft, "--thinking-budget", args.thinking_budget is not None),
        ("--ask", args.ask is not None, "--thinking-budget", args.thinking_budget is not None),
        ("--efforts", args.efforts is not None, "--effort", args.effort is not None),
    ):
        if given and not there:
            raise ValueError(f"{option} has no effect without {needs}; leave it out, or add that")
    return Budget(
        args.thinking_budget, args.answer_tokens, args.effort, args.samples, hard=not args.soft
    )


def _selection(args: argparse.Namespace) -> Any:
    """The selection with its m, checked against the number of samples."""
    selection = asks.spec(args.selection, "--selection")
    if args.m is not None:
        name = selection.get("name") if isinstance(selection, dict) else selection
        if name is None or not str(name).replace("_", "-").startswith("short-"):
            raise ValueError(f"--m {args.m} has no effect without --selection short-m")
        said = selection if isinstance(selection, dict) else {"name": "short_m"}
        selection = {**said, "m": args.m}
    heat = 1.0 if args.temperature is None else args.temperature
    inference.chooser(selection, args.samples, heat)
    return selection


def _check(
    args: argparse.Namespace,
    budget: Budget,
    told: Asks,
    stopping: Any,
    prompts: list[Prompt],
    renderer: Renderer,
    model: ModelFolder,
) -> None:
    """Refuse what no engine could do, before one is started."""
    if model.context is not None and (args.max_tokens or 0) >= model.context:
        raise ValueError(
            f"--max-tokens {args.max_tokens} is not below the model's context of {model.context} "
            "tokens; lower it"
        )
    plan = replace(plan_of(budget, told, args.max_tokens or 1), stopping=stopping)
    if args.max_tokens is None:
        most = inference.room(prompts, plan, renderer, model.context)
        plan = replace(plan, max_tokens=most)
    if args.thinking_budget is not None and args.thinking_budget >= plan.max_tokens:
        beside = "that the context leaves" if args.max_tokens is None else "of --max-tokens"
        raise ValueError(
            f"--thinking-budget {args.thinking_budget} leaves no room for an answer below the "
            f"{plan.max_tokens} tokens {beside}; lower it"
        )
    for prompt in prompts:
        inference.check_open(plan, prompt, renderer)
        check_plan(plan, prompt, renderer.render(prompt, plan), renderer, model.context)


def _prompt(index: int, text: str, model: ModelFolder) -> Prompt:
    """A user message, or plain text to go on with for a model without a chat template."""
    model.tokens(text)  # refuses what the vocabulary lacks
    messages = ({"role": "user", "content": text},) if model.chat_template else ()
    return Prompt(index, f"prompt {index}", messages, "" if messages else text, "", "exact")


# What is printed


def _result(made: Generation, chosen: bool) -> dict[str, Any]:
    one = {**_sample(made.best), "usage": asdict(made.usage)}
    if len(made.samples) == 1:
        return one
    samples = [{**_sample(s), "usage": asdict(s.usage)} for s in made.samples]
    if not chosen:
        return {"samples": samples, "usage": asdict(made.usage)}
    about = {"chosen": made.chosen, "votes": dict(made.votes), "aborted": made.aborted}
    return {**one, **about, "spared_at_most": made.spared, "samples": samples}


def _sample(made: Sample) -> dict[str, Any]:
    watch = made.rollout.watch
    about = {} if watch is None else {"stopping": asdict(watch)}
    return {
        "text": made.text,
        "reasoning": made.reasoning,
        "answer": made.answer,
        "thought_ended_by": made.ended,
        "finish_reason": made.finish,
        "forced": made.forced,
        "truncated": made.rollout.truncated,
        "logprob": None if made.logprob != made.logprob else made.logprob,
        **about,
    }


def _text(made: Generation, chosen: bool) -> str:
    if not chosen:
        return "\n\n".join(map(_shown, made.samples))
    votes = ", ".join(f"{answer} {count}" for answer, count in made.votes.items()) or "none"
    notes = [f"sample {made.chosen} of {len(made.samples)}", f"votes: {votes}"]
    notes.append(f"{made.usage.total} tokens in all")
    if made.aborted:
        notes.append(f"{made.aborted} ended early, {made.spared} tokens short of their limit")
    return f"{_shown(made.best)}\n[{', '.join(notes)}]"


def _shown(made: Sample) -> str:
    lines = [made.reasoning, ""] if made.reasoning else []
    lines.append("(no answer)" if made.answer is None else made.answer)
    usage, watch = made.usage, made.rollout.watch
    notes = [f"thinking {usage.thinking} tokens", f"answer {usage.answer} tokens"]
    if made.forced:
        notes.append(f"forced {made.forced!r}")
    if watch is not None and watch.exit is not None:
        notes.append(f"ended by the rule after {watch.looks} looks")
    if watch is not None and watch.looks:
        notes.append(f"looks took {usage.probes} tokens")
    if made.rollout.truncated:
        notes.append("cut at its limit")
    return "\n".join([*lines, f"[{', '.join(notes)}]"])
