"""Steps of an allocator under the real driver, with made-up verdicts: no model, no engine."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rewards.verdict import Verdict
from samplers.types import Group, Job, Plan, Rollout
from tests.test_collect import Counting, make
from trainer.collect import Collected, Rounds, collect

Says = Callable[[int, int], Any]
"""(draw, rollout index) -> right (True, False; None: unknown), or a list of these, one per cut.
A cut may be a list of its answers."""
WORDS = {True: Verdict(True, 1.0, "ok"), False: Verdict(False, 0.0, "wrong")}
UNKNOWN = Verdict(False, 0.0, "timeout")


def at_rates(rates: Sequence[float], seed: int) -> Says:
    """Draws take turns at `rates` of success; the same for a draw however often it is asked."""
    return lambda draw, index: bool(
        np.random.default_rng((seed, draw, index)).random() < rates[draw % len(rates)]
    )


class Streaming:
    """Lots come back one at a time, in any order, while others are being made."""

    def __init__(self, made: Callable[[list[Job]], list[Rollout]], seed: int) -> None:
        self.made, self.random = made, random.Random(seed)
        self.lots: list[list[Job]] = []

    def add(self, jobs: Sequence[Job]) -> None:
        self.lots.append(list(jobs))

    def take(self) -> list[list[Rollout]]:
        return [self.made(self.lots.pop(self.random.randrange(len(self.lots))))]


class Steps:
    """`step` after step of one allocator on an endless stream of prompts.

    Args:
        order: seed of the order of arrival; None: in rounds.
        goes_on: with chunked plans, whether a rollout is left unfinished in the step.
        modes: plans take turns at these subgroups.
    """

    def __init__(
        self,
        allocator: Any,
        says: Says,
        order: int | None = None,
        goes_on: Callable[[Job], bool] | None = None,
        modes: Sequence[str] = ("",),
    ) -> None:
        self.allocator, self.says, self.order = allocator, says, order
        self.goes_on, self.modes = goes_on, modes
        self.stream = Counting()
        self.carried: list[Group] = []
        self.taken = 0
        self.calls: list[dict[int, int]] = []
        """Rollouts that each call of the engines made of each draw, this step's."""

    def step(self, last: bool = False) -> Collected:
        self.calls = []
        making = Rounds(self._make) if self.order is None else Streaming(self._make, self._mixed())
        out = collect(
            self.allocator, self.stream, self._plans, making, self._verify,
            lambda groups, what: groups, seed=5, temperature=1.0, carried=self.carried, last=last,
        )  # fmt: skip
        self.carried, self.taken = out.carried, self.taken + 1
        self.allocator.observe([*out.groups, *out.discarded])
        return out

    def _mixed(self) -> int:
        return hash((self.order, self.taken))

    def _plans(self, prompt: Any, n: int, key: int) -> list[Plan]:
        chunk = None if self.goes_on is None else 2
        turns = [self.modes[i % len(self.modes)] for i in range(n)]
        return [Plan(4, chunk=chunk, subgroup=turn) for turn in turns]

    def _make(self, jobs: list[Job]) -> list[Rollout]:
        call: dict[int, int] = defaultdict(int)
        for job in jobs:
            call[job.group] += 1
        self.calls.append(dict(call))
        return [
            replace(
                rollout,
                unfinished=job.plan.chunk is not None
                and self.goes_on is not None
                and self.goes_on(job),
            )
            for job, rollout in zip(jobs, make(jobs), strict=True)
        ]

    def _verify(self, groups: list[Group]) -> list[Group]:
        return [
            replace(g, verdicts=tuple(_verdicts(self.says(g.serial, r.index)) for r in g.rollouts))
            for g in groups
        ]


def _verdicts(said: Any) -> tuple[tuple[Verdict, ...], ...]:
    cuts = said if isinstance(said, list) else [said]
    answers = [cut if isinstance(cut, list) else [cut] for cut in cuts]
    return tuple(tuple(UNKNOWN if a is None else WORDS[bool(a)] for a in cut) for cut in answers)
