"""`laconic generate`: one prompt, a thinking budget, and what came of it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from launch import inprocess
from samplers import seeds
from samplers.rollout import RolloutWorker
from samplers.types import Job, Plan, Prompt, Rollout
from trainer.modelfolder import ModelFolder


def generate(args: argparse.Namespace) -> int:
    """Print thought, answer and tokens of each sample.

    Raises:
        ValueError: the model is missing, or the budget does not fit below the response cap.
    """
    if args.thinking_budget is not None and args.thinking_budget >= args.max_tokens:
        raise ValueError(
            f"--thinking-budget {args.thinking_budget} leaves no room for an answer below "
            f"--max-tokens {args.max_tokens}; raise --max-tokens"
        )
    worker, model = inprocess.worker(args)
    model.tokens(args.prompt)  # refuses what the vocabulary lacks
    plan = Plan(max_tokens=args.max_tokens, think=args.thinking_budget, answer=args.answer_tokens)
    prompt = _prompt(args.prompt, model)
    jobs = [
        Job(prompt, plan, 0, i, seeds.key(args.seed, i), args.temperature)
        for i in range(args.samples)
    ]
    results = [_result(rollout, worker) for rollout in worker.generate(jobs)]
    if args.json:
        print(json.dumps(results if args.samples > 1 else results[0], indent=1))
    else:
        print("\n\n".join(map(_text, results)))
    return 0


def _prompt(text: str, model: ModelFolder) -> Prompt:
    """A user message, or plain text to go on with for a model without a chat template."""
    messages = ({"role": "user", "content": text},) if model.chat_template else ()
    return Prompt(0, "prompt", messages, "" if messages else text, "", "exact")


def _result(rollout: Rollout, worker: RolloutWorker) -> dict[str, Any]:
    answer = rollout.final
    forced = answer.tokens.ids_T[answer.tokens.forced_T]
    return {
        "thinking": worker.renderer.decode(rollout.thought.ids_T[: rollout.think_tokens].tolist()),
        "answer": answer.text,
        "thinking_tokens": rollout.think_tokens,
        "answer_tokens": rollout.answer_tokens,
        "closed_by_itself": rollout.closed,
        "forced": worker.renderer.decode(forced.tolist()),
        "truncated": rollout.truncated,
    }


def _text(result: dict[str, Any]) -> str:
    lines = []
    if result["thinking"]:
        lines += [result["thinking"], ""]
    lines.append("(no answer)" if result["answer"] is None else result["answer"])
    notes = [
        f"thinking {result['thinking_tokens']} tokens",
        f"answer {result['answer_tokens']} tokens",
    ]
    if result["forced"]:
        notes.append(f"forced {result['forced']!r}")
    if result["truncated"]:
        notes.append("cut at its limit")
    return "\n".join([*lines, f"[{', '.join(notes)}]"])
