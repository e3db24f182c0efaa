"""Which prompt an engine died of: those that were with it each time, until one of them is alone.

Engines die of many things, most of which pass: what was lost with one is made again as it was.
A prompt that was there as often as is allowed is a suspect. Suspects are tried with nothing else
in the engine, half of them and then the other, down to the one that it dies of.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from samplers.types import Answer, Job, Prompt, Rollout, Tokens
from trainer.faults import Lost

Make = Callable[[Sequence[Job]], list[Rollout]]


class Suspects:
    """Kept by who sends jobs to engines. Threads may call it at once.

    Args:
        kills: engines that a prompt may take down.
        told: called with each prompt that is found out.
    """

    def __init__(self, kills: int, told: Callable[[Prompt], None]) -> None:
        self.kills, self._told = kills, told
        self._lock = threading.Lock()
        self._seen: Counter[tuple[str, ...]] = Counter()
        self.guilty = set[tuple[str, ...]]()
        """By what they ask: a run that goes on brings those that it knew."""

    def part(self, jobs: Sequence[Job]) -> tuple[list[Job], list[Rollout]]:
        """What may be made of these, and what stands for the others: their prompts are guilty."""
        if not self.guilty:
            return list(jobs), []
        bad = [job for job in jobs if _name(job.prompt) in self.guilty]
        return [job for job in jobs if _name(job.prompt) not in self.guilty], [*map(unmade, bad)]

    def lost(self, jobs: Sequence[Job]) -> bool:
        """An engine died of `jobs`, or at them: whether one of them is to be found out now."""
        names = {_name(job.prompt) for job in jobs}
        with self._lock:
            self._seen.update(names)
            return any(self._seen[name] >= self.kills for name in names)

    def cleared(self, jobs: Sequence[Job]) -> None:
        """They were made."""
        for name in {_name(job.prompt) for job in jobs} if self._seen else ():
            with self._lock:
                self._seen.pop(name, None)

    def tried(self, jobs: Sequence[Job], make: Make) -> list[Rollout]:
        """Rollouts of all, made in ever smaller lists; none of what is of a guilty prompt.

        Args:
            make: by an engine that is at nothing else; raises Lost where it dies, and works again
                when it is next called.
        """
        try:
            made = make(jobs)
        except Lost:
            found = self.lost(jobs)
        else:
            self.cleared(jobs)
            return made
        names = list(dict.fromkeys(_name(job.prompt) for job in jobs))
        if len(names) == 1 and not found:
            return self.tried(jobs, make)
        if len(names) == 1:
            if names[0] not in self.guilty:
                self.guilty.add(names[0])
                self._told(jobs[0].prompt)
            return [unmade(job) for job in jobs]
        first = set(names[: len(names) // 2])
        halves = [
            [job for job in jobs if (_name(job.prompt) in first) == which]
            for which in (True, False)
        ]
        return ordered(jobs, [r for half in halves for r in self.tried(half, make)])


def ordered(jobs: Sequence[Job], made: Sequence[Rollout]) -> list[Rollout]:
    by_key = {(rollout.group, rollout.index): rollout for rollout in made}
    return [by_key[job.group, job.index] for job in jobs]


def _name(prompt: Prompt) -> tuple[str, ...]:
    """Indices, and some ids, are those of a dataset: training and test prompts may share them."""
    return prompt.id, prompt.text, *(message["content"] for message in prompt.messages)


def unmade(job: Job) -> Rollout:
    """What stands for a rollout that no engine survives: nothing of it was made."""
    none = Tokens(np.empty(0, np.int32), np.empty(0, np.float32), "abort")
    cuts = ((Answer(0, none, None),) * job.plan.answers_per_cut,) * max(1, len(job.plan.cuts))
    return Rollout(
        prompt=job.prompt.index,
        group=job.group,
        index=job.index,
        seed=job.seed,
        plan=job.plan,
        prompt_ids_T=none.ids_T,
        thought=none,
        closed=False,
        answers=cuts,
    )
