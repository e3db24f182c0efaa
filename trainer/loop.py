"""The training loop, as the algorithm box of a paper.

    prompts -> plans -> rollouts -> verdicts -> rewards -> advantages -> batch -> weights

Nothing here knows an algorithm, a budget or a machine: each line is one component of the stage
(`trainer/stage.py`) working on what the line before it returned.
"""

from __future__ import annotations

from trainer.stage import StageRun


def train(run: StageRun) -> None:
    """Reinforcement learning: GRPO and every variant of it."""
    run.begin()
    while run.unfinished:
        groups = run.sample()  # allocation x budgets x engines x verifiers
        groups = run.reward(groups)  # shapers
        groups = run.annotate(groups)  # only what a component declared that it needs
        batch = run.pack(run.credit(groups))  # advantages -> rows -> micro-batches
        learned = run.learn(batch)
        run.sync()  # learners' weights -> engines
        run.finish(groups, learned)  # track, evaluate, checkpoint


def finetune(run: StageRun) -> None:
    """Supervised stage: the same rows, batches and learners, without rollouts."""
    run.begin()
    while run.unfinished:
        learned = run.learn(run.pack(run.examples()))
        run.finish([], learned)


LOOPS = {"rl": train, "sft": finetune}
