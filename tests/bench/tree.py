"""What nested budgets cost the learner above plain rows of the same thoughts.

Thoughts are demonstrations of task find; each is cut at a grid of budgets and answered at every
one. Their steps and those with the final answer alone take turns: packing, and the learner's step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from samplers import render
from samplers.tasks import find
from samplers.types import Answer, Group, Ids, Plan, Rollout, Tokens
from trainer import rows
from trainer.batching import pack
from trainer.config import Stage, load
from trainer.learner import Learner
from trainer.modelfolder import fetch
from trainer.types import Batch, TrainSequence

THOUGHTS, LIMIT = 256, 128
FORMS = {"8 cuts x 1": (8, 1), "4 cuts x 4": (4, 4)}


def compare(recipe: str, repeats: int) -> None:
    """Print seconds of a step over plain rows, and the median ratios of trees and single rows."""
    torch.set_num_threads(1)
    stage = load(recipe).stages[0]
    path = str(fetch(stage.model.path))
    optim = stage.optim.model_copy(update={"lr": 1e-9})
    learner = Learner(
        path, stage.learner, optim, stage.loss,
        total_steps=10**6, attention=stage.model.attention,
    )  # fmt: skip
    sides = {"plain": [rows.plain_row(g, 0) for g in groups(path, 1, 1)]}
    for name, (cuts, per_cut) in FORMS.items():
        trees = [rows.tree_row(group, 0) for group in groups(path, cuts, per_cut)]
        sides[name] = trees
        sides[f"{name}, a row each"] = [row for tree in trees for row in rows.branches(tree)]
    sides = {name: credited(side) for name, side in sides.items()}
    try:
        seconds = [
            {name: _time(learner, stage, side) for name, side in sides.items()}
            for _ in range(repeats + 1)
        ][1:]
    finally:
        learner.close()
    for name, side in sides.items():
        batch = packed(side, stage)
        step = statistics.median(sum(turn[name]) for turn in seconds)
        packing = statistics.median(turn[name][0] for turn in seconds)
        ratio = statistics.median(sum(turn[name]) / sum(turn["plain"]) for turn in seconds)
        print(
            f"{name}: {batch.tokens} tokens, {step:.2f} s a step, {packing * 1000:.0f} ms of it "
            f"packing; {ratio:.2f} times plain"
        )


def groups(path: str, cuts: int, per_cut: int) -> list[Group]:
    """A group for each thought: cut evenly up to `LIMIT`, answered with one letter and the end."""
    renderer, random = render.load(path, None), np.random.default_rng(0)
    end, eos = int(renderer.encode("</think>")[0]), renderer.eos_ids[0]
    letters = renderer.encode("ABCDEFGH")
    plan = Plan(192, LIMIT, cuts=tuple(LIMIT * (c + 1) // cuts for c in range(cuts)))
    plan = replace(plan, answers_per_cut=per_cut)
    out = []
    for i in range(THOUGHTS):
        prompt, text = find.demonstration(find.Config(), i)
        ids = renderer.encode(text)
        whole = ids[: int(np.flatnonzero(ids == end)[0]) + 1]
        closed = len(whole) - 1 <= LIMIT
        thought = whole if closed else whole[:LIMIT]
        answers = []
        for cut in plan.cuts:
            done = closed and cut >= len(thought) - 1
            runs = [
                ([] if done else [end]) + [int(random.choice(letters)), eos] for _ in range(per_cut)
            ]
            after = len(thought) if done else cut
            answers.append(tuple(Answer(after, run(r, len(r) - 2), "x") for r in runs))
        rollout = Rollout(
            i, i, 0, i, plan, renderer.render(prompt, plan), run(thought, 0), closed, tuple(answers)
        )
        out.append(Group(prompt, i, (rollout,)))
    return out


def run(ids: Sequence[int] | Ids, forced: int) -> Tokens:
    logprobs_T = np.full(len(ids), -0.1, np.float32)
    logprobs_T[:forced] = np.nan
    return Tokens(np.array(ids, np.int32), logprobs_T, "stop", ((0, 0),))


def credited(sequences: list[TrainSequence]) -> list[TrainSequence]:
    """With an advantage everywhere, so that nothing is left out."""
    random = np.random.default_rng(0)
    return [
        replace(s, advantages_T=np.where(s.mask_T, random.normal(), 0).astype(np.float32))
        for s in sequences
    ]


def packed(sequences: list[TrainSequence], stage: Stage) -> Batch:
    return pack(sequences, stage.loss, tokens_per_micro_batch=stage.tokens_per_micro_batch)


def _time(learner: Learner, stage: Stage, sequences: list[TrainSequence]) -> tuple[float, float]:
    """Seconds of packing and of the step."""
    start = time.perf_counter()
    batch = packed(sequences, stage)
    middle = time.perf_counter()
    learner.step(batch.share(0))
    return middle - start, time.perf_counter() - middle


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="grpo/find")
    parser.add_argument("--repeats", type=int, default=8)
    args = parser.parse_args()
    compare(args.recipe, args.repeats)
