"""Which prompt an engine died of: those that were with it each time, until one of them is alone.

Engines die of many things, most of which pass: what was lost with one is made again as it was.
A prompt that was there as often as is allowed is a suspect. Suspects are tried with nothing else
in the engine, half of them and then the other, down to the one that it dies of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from samplers.types import Answer, Job, Rollout, Tokens
from trainer.faults import Lost

Make = Callable[[Sequence[Job]], list[Rollout]]


class Suspects:
    """Kept by who sends jobs to engines.

    Args:
        kills: engines that a prompt may take down.
        told: called with each prompt's id that is found out.
    """

    def __init__(self, kills: int, told: Callable[[str], None]) -> None:
        self.kills, self._told = kills, told
        self._seen: Counter[int] = Counter()
        self.guilty: set[int] = set()
        """Indices of prompts that engines die of."""

    def lost(self, jobs: Sequence[Job]) -> bool:
        """An engine died of `jobs`, or at them: whether one of them is to be found out now."""
        prompts = {job.prompt.index for job in jobs}
        self._seen.update(prompts)
        return any(self._seen[prompt] >= self.kills for prompt in prompts)

    def cleared(self, jobs: Sequence[Job]) -> None:
        """They were made."""
        for job in jobs if self._seen else ():
            self._seen.pop(job.prompt.index, None)

    def tried(self, jobs: Sequence[Job], make: Make) -> list[Rollout]:
        """Rollouts of all, made in ever smaller lists; none of what is of a guilty prompt.

        Args:
            make: by an engine that is at nothing else; raises Lost where it dies, and works again
                when it is next called.
        """
        prompts = list(dict.fromkeys(job.prompt.index for job in jobs))
        try:
            made = make(jobs)
        except Lost:
            self._seen.update(prompts)
            if len(prompts) == 1 and self._seen[prompts[0]] >= self.kills:
                self.guilty.add(prompts[0])
                self._told(jobs[0].prompt.id)
                return [unmade(job) for job in jobs]
            first = set(prompts[: max(1, len(prompts) // 2)])
            halves = [
                [job for job in jobs if (job.prompt.index in first) == which]
                for which in (True, False)
            ]
            return _ordered(jobs, [r for half in halves if half for r in self.tried(half, make)])
        self.cleared(jobs)
        return made


def _ordered(jobs: Sequence[Job], made: Sequence[Rollout]) -> list[Rollout]:
    by_key = {(rollout.group, rollout.index): rollout for rollout in made}
    return [by_key[job.group, job.index] for job in jobs]


def unmade(job: Job) -> Rollout:
    """What stands for a rollout that no engine survives: nothing of it was made."""
    none = Tokens(np.empty(0, np.int32), np.empty(0, np.float32), "abort")
    cuts = max(1, len(job.plan.cuts))
    return Rollout(
        prompt=job.prompt.index,
        group=job.group,
        index=job.index,
        seed=job.seed,
        plan=job.plan,
        prompt_ids_T=none.ids_T,
        thought=none,
        closed=False,
        answers=((Answer(0, none, None),),) * cuts,
    )
