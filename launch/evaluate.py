"""`laconic eval`: accuracy of a model at thinking budgets, by the code that runs in training."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch import inprocess
from launch.reward import columns_of, spec_of
from rewards.service.pool import VerifierPool
from samplers import seam
from samplers.data import DataConfig, Dataset, load
from samplers.types import Plan
from trainer.eval.budgets import EvalConfig, EvalResult
from trainer.eval.budgets import evaluate as measure
from trainer.eval.statistics import Estimate


def evaluate(args: argparse.Namespace) -> int:
    """Measure, print a table (or JSON), and write rows to --out.

    Raises:
        ValueError: model or data missing, or budgets that do not fit below --max-tokens.
    """
    finite = tuple(sorted(b for b in args.budgets if b is not None))
    config = EvalConfig(
        problems=args.problems,
        samples=args.samples,
        budgets=finite,
        temperature=args.temperature,
        answer_tokens=args.answer_tokens,
        seed=args.seed,
    )
    thinking = not args.no_thinking
    config.grid(args.max_tokens, thinking)
    spec = spec_of(args.verifier, "--verifier")
    dataset = _dataset(args.data, columns_of(args.columns, "{prompt: question, answer: target}"))
    size = min(args.problems, dataset.size or args.problems)
    with VerifierPool(spec) as pool:
        worker, _ = inprocess.worker(args)
        workers = inprocess.Workers(worker, pool)
        prompts = [dataset[i] for i in range(size)]
        plan = Plan(max_tokens=args.max_tokens)
        result = measure(workers, prompts, config, plan, thinking=thinking)
    if args.out:
        result.save(args.out)
    print(_json(result) if args.json else _table(result, finite))
    return 0


def _dataset(name: str, columns: Any) -> Dataset:
    """A file of problems with its column map, or the held-out problems of a task."""
    if Path(name).suffix or name not in seam.names("samplers.tasks"):
        return load(DataConfig(path={"test": name}, columns=columns), "test")
    if columns:
        raise ValueError(f"--columns: task '{name}' has no columns; they belong to a file")
    return load(DataConfig(task=name), "test")


def _json(result: EvalResult) -> str:
    metrics = {name: asdict(estimate) for name, estimate in result.metrics.items()}
    return json.dumps({**result.settings, "metrics": metrics}, indent=1)


def _table(result: EvalResult, budgets: tuple[int, ...]) -> str:
    """One line a budget: accuracy with its 95% interval, tokens used, share that was forced."""
    metrics = result.metrics
    lines = [f"{'budget':>8}  {'accuracy':^24}  {'tokens':>7}  {'forced':>7}"]
    for b in budgets:
        tokens, forced = metrics[f"tokens@{b}"].value, metrics[f"forced@{b}"].value
        accuracy = _interval(metrics[f"accuracy@{b}"])
        lines.append(f"{b:>8}  {accuracy:^24}  {tokens:7.1f}  {forced:7.1%}")
    tokens = metrics["think_tokens/mean"].value + metrics["answer_tokens/mean"].value
    lines.append(f"{'inf':>8}  {_interval(metrics['accuracy']):^24}  {tokens:7.1f}  {0:7.1%}")
    lines.append(
        f"{result.settings['problems']} problems, {result.settings['samples']} samples each; "
        f"cut at the cap: {metrics['truncated'].value:.1%}"
    )
    if unknown := metrics["unknown"].value:
        lines.append(
            f"unknown (timeout, error, a gold that cannot be graded), in no accuracy: {unknown:.1%}"
        )
    return "\n".join(lines)


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
