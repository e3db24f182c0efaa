"""What the learners say of rollouts before a step: logprobs, and norms of gradients.

Groups are annotated with exactly what a component declared that it needs, or an allocator asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from samplers.types import Group
from trainer import rows
from trainer.batching import pack, scatter
from trainer.config import Stage
from trainer.metrics import Clock
from trainer.types import Batch, Floats, MicroBatch, TrainSequence
from trainer.world import World

LOGPROBS = {"old_logprobs": ("old", "policy"), "ref_logprobs": ("ref", "reference")}
"""What a component may need -> (name in Group.annotations, whose logprobs)."""
GRAD_NORM = "grad_norm:"
"""Before the scope (`trainer/gradnorms.py`): what an allocator may ask for."""


class Scoring:
    """The learners of `world` at work on rollouts, with the stage's sizes."""

    def __init__(self, stage: Stage, world: World, clock: Clock) -> None:
        self.stage, self.world, self.clock = stage, world, clock

    def annotate(self, groups: Sequence[Group], needs: Iterable[str]) -> list[Group]:
        """`groups` with everything of `needs`.

        Raises:
            ValueError: something that cannot be computed.
        """
        out = list(groups)
        for need in sorted(needs):
            if need.startswith(GRAD_NORM):
                out = self.grad_norms(out, need.removeprefix(GRAD_NORM))
                continue
            if need not in LOGPROBS:
                raise ValueError(
                    f"needs: {need} cannot be computed; allowed: {', '.join(sorted(LOGPROBS))}, "
                    f"and of allocators {GRAD_NORM}SCOPE"
                )
            name, whose = LOGPROBS[need]
            trained = [row for group in out for row in rows.rows(group)]
            scores = iter(self.logprobs(trained, whose))
            none = np.empty(0, np.float32)  # of what was selected away
            each = [
                next(scores) if kept else none
                for group in out
                for kept in rows.trainable(group)[rows.known(group)]
            ]
            out = rows.annotate(out, name, each)
        return out

    def logprobs(self, sequences: Sequence[TrainSequence], whose: str) -> list[Floats]:
        """[T] per row; NaN where a token is not trained on. `whose`: policy or reference."""
        batch = self._batch(sequences)
        with self.clock.phase("score"):
            return scatter(_micro_batches(batch), self.world.score(batch, whose), sequences)

    def grad_norms(self, groups: Sequence[Group], scope: str) -> list[Group]:
        """Annotated with `grad_norm`: [1] per right rollout, the norm of the gradient of its log
        likelihood; empty for the others."""
        right = [(g.correct_GCA & g.known_GCA)[:, -1, 0] for g in groups]
        accepted = [
            row
            for group, right_G in zip(groups, right, strict=True)
            for row in rows.rows(replace(group, kept_G=right_G))
        ]
        batch = self._batch(accepted)
        with self.clock.phase("score"):
            norms = self.world.norms(batch, scope)
        found: dict[tuple[int, int], Floats] = {}
        for micro, norms_B in zip(_micro_batches(batch), norms, strict=True):
            for r, norm in zip(micro.rows_B, norms_B, strict=True):
                if r >= 0:
                    row = accepted[r]
                    found[row.group, row.rollout] = np.array([norm], np.float32)
        none = np.empty(0, np.float32)
        measured = [tuple(found.get((g.key, i), none) for i in range(len(g))) for g in groups]
        return [
            replace(group, annotations={**group.annotations, "grad_norm": arrays})
            for group, arrays in zip(groups, measured, strict=True)
        ]

    def _batch(self, sequences: Sequence[TrainSequence]) -> Batch:
        return pack(
            sequences,
            None,
            tokens_per_micro_batch=self.stage.tokens_per_micro_batch,
            ranks=self.stage.learner.ranks,
        )


def _micro_batches(batch: Batch) -> list[MicroBatch]:
    """Updates, then ranks, then micro-batches: the order in which learners' figures come."""
    return list(chain(*(chain(*ranks) for ranks in batch.updates)))
