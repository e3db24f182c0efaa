"""Which phase bounds a run's steps, and which settings would change that.

A pure function of the steps' times, the recipe and the machine. Only settings that the recipe
takes without an objection, and that the machine has room for, are named.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer import compatibility, staleness
from trainer.config import Recipe, Stage, resolve
from trainer.settings import override

PHASES = {
    "generation": ("generate",),
    "verification": ("verify",),
    "training": ("train", "score", "probe"),
    "weight sync": ("sync",),
    "evaluation": ("evaluate",),
    "checkpoints": ("checkpoint",),
}
"""What people call it -> phases of the clock."""
SAMPLING = ("generation", "verification")
"""With overlap these run beside the others."""
WORTH = 0.1
"""Share of the step below which hiding one side behind the other gains nothing to speak of."""
SHOWN = 2
"""Changes named in a line, the best first."""
WAITS = 0.05
"""Share of the step beyond which the learners wait for the engines."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run may use."""

    cores: int
    gpus: int = 0
    booked: bool = False
    """A cluster counts every process's cores all the time; else one that waits leaves them free."""
    vllm: bool = False
    """vLLM is installed."""


@dataclass(frozen=True, slots=True)
class Change:
    """Settings that help together, and how. Without settings: advice in words."""

    settings: tuple[str, ...]
    effect: str

    def __str__(self) -> str:
        return f"{' with '.join(self.settings)} {self.effect}".strip()


@dataclass(frozen=True, slots=True)
class Bound:
    """What most of a step goes to."""

    phase: str
    share: float
    """Of the step. With overlap: how long the phase was busy, beside others."""
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        advice = ", or ".join(map(str, self.changes[:SHOWN]))
        advice = advice or "no setting shortens it on this machine"
        return f"bound by {self.phase}: {self.share:.0%} of the step; {advice}"


def bound(
    figures: Mapping[str, float], recipe: Recipe, index: int, machine: Machine
) -> Bound | None:
    """What bounds the steps of stage `index`; None where no time was measured.

    Args:
        figures: metrics of a step, or means over several: `time/step`, `time/<phase>`, `tokens`.
    """
    step = figures.get("time/step", 0.0)
    if step <= 0:
        return None
    spent = {
        name: sum(figures.get(f"time/{phase}", 0.0) for phase in phases) / step
        for name, phases in PHASES.items()
    }
    spent["the driver"] = figures.get("time/other_share", 0.0)
    one = _Stage(recipe, index, machine, spent, figures.get("tokens", 0.0))
    phase = max(one.candidates(figures.get("time/wait", 0.0) / step), key=lambda name: spent[name])
    changes = tuple(c for c in one.changes(phase) if one.takes(c))
    return Bound(phase, spent[phase], changes)


class Adviser:
    """Follows a stage: says what bounds it at its third step, when that changes, and at the end.

    A change is one once it has held for longer than that: one slow step does not do.
    """

    STEPS = 3

    def __init__(self, recipe: Recipe, index: int, machine: Machine) -> None:
        self._given = (recipe, index, machine)
        self._recent: deque[Mapping[str, float]] = deque(maxlen=self.STEPS)
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._steps = self._since = 0
        self._said = ""
        self.now = ""
        """What was said last, for a live view."""

    def step(self, record: Mapping[str, Any]) -> str | None:
        """Take a step's metrics; a line where there is something to say."""
        if not record.get("time/train"):  # an evaluation before the first step
            return None
        times = {k: v for k, v in record.items() if k.startswith("time/") or k == "tokens"}
        times = {k: v for k, v in times.items() if isinstance(v, int | float)}
        if not self._steps:  # nothing is ahead of the first step: it awaits all of its batch
            times.pop("time/wait", None)
        self._recent.append(times)
        self._steps += 1
        for name, value in times.items():
            self._sums[name] += value
        found = bound(_means(self._recent), *self._given)
        if found is None or self._steps < self.STEPS or found.phase == self._said:
            self._since = self._steps
            return None
        if self._said and self._steps - self._since <= self.STEPS:
            return None
        return self._say(found)

    def end(self) -> str | None:
        """The same over all steps."""
        if not self._steps:
            return None
        found = bound({k: v / self._steps for k, v in self._sums.items()}, *self._given)
        return self._say(found) if found else None

    def _say(self, found: Bound) -> str:
        self._said, self.now = found.phase, str(found)
        return self.now


def _means(records: Collection[Mapping[str, float]]) -> dict[str, float]:
    names = {name for record in records for name in record}
    return {name: sum(r.get(name, 0.0) for r in records) / len(records) for name in names}


class _Stage:
    """One stage on one machine, and what may be said of it."""

    def __init__(
        self,
        recipe: Recipe,
        index: int,
        machine: Machine,
        spent: Mapping[str, float],
        tokens: float,
    ) -> None:
        self.recipe, self.machine, self.spent, self.tokens = recipe, machine, spent, tokens
        self.stage: Stage = recipe.stages[index]
        self.index, stage = index, self.stage
        self.overlaps = staleness.depth(stage) > 0
        self.width = getattr(stage.rollout.engine, "tensor_parallel", 1)
        self.cores = {
            "learner": stage.learner.ranks * stage.learner.threads,
            "rollout": stage.rollout.workers * self._threads,
            "grader": stage.grader.workers,
        }
        """That the processes of a role keep busy while it is their turn."""
        rollouts = stage.rollout.workers * self.width if stage.kind == "rl" else 0
        self.free_gpus = machine.gpus - stage.learner.ranks - rollouts

    @property
    def _threads(self) -> int:
        """Of one engine; 0 leaves it to torch, which takes all cores."""
        return self.stage.rollout.engine.threads or self.machine.cores

    def candidates(self, waits: float) -> Sequence[str]:
        """Phases that can be the longest: with overlap, those of the side that the other awaits."""
        if not self.overlaps:
            return list(self.spent)
        return [name for name in self.spent if (name in SAMPLING) == (waits > WAITS)]

    def changes(self, phase: str) -> Iterator[Change]:
        match phase:
            case "generation":
                yield from self._engines()
                yield from self._overlap("training")
                yield from self._rows()
            case "training":
                yield from self._learners()
                yield from self._overlap("generation")
            case "verification":
                yield from self._graders()
                yield from self._overlap("training")
            case "weight sync":
                if self.stage.sync.transport != "auto":
                    yield self._set("takes the fastest that fits", "sync.transport=auto")
                yield Change((), "more prompts_per_step make it rarer")
            case "evaluation" if self.stage.evaluation is not None:
                yield from self._rarer("evaluation.every", self.stage.evaluation.every)
                problems = self.stage.evaluation.problems // 2
                if problems:
                    yield self._set("would halve it", f"evaluation.problems={problems}")
            case "checkpoints":
                yield from self._rarer("checkpoint.every", self.recipe.checkpoint.every)
            case "the driver":
                yield Change((), "`laconic train --profile` shows with what")

    def _engines(self) -> Iterator[Change]:
        rollout, gpus = self.stage.rollout, self.machine.gpus
        engine = rollout.engine
        room = self.free_gpus // self.width if gpus else self._spare("rollout", self._threads)
        # a small group has one engine
        room = min(room, self.stage.prompts_per_step - rollout.workers)
        if gpus and engine.name == "torch" and self.machine.vllm:
            yield self._set("is made for GPUs", "rollout.engine=vllm")
        yield from self._more("rollout.workers", rollout.workers, room)

    def _rows(self) -> Iterator[Change]:
        rollout, gpus = self.stage.rollout, self.machine.gpus
        engine = rollout.engine
        # no more than a step may ask for, nor at once than each of its prompts may
        once = self.stage.prompts_per_step * compatibility.sizes(self.stage)[1]
        rows = min(compatibility.spends(self.stage), once) / rollout.workers
        if gpus and rows > engine.slots:
            slots = f"rollout.engine.slots={2 * engine.slots}"
            yield self._set("decodes more rows at once, if they fit", slots)

    def _learners(self) -> Iterator[Change]:
        learner, gpus = self.stage.learner, self.machine.gpus
        room = self.free_gpus if gpus else self._spare("learner", learner.threads)
        yield from self._more("learner.ranks", learner.ranks, room)
        if learner.gradient_checkpointing:
            fits = "saves a quarter of it, if the activations fit"
            yield self._set(fits, "learner.gradient_checkpointing=false")
        size = self.stage.tokens_per_micro_batch
        if gpus and self.tokens >= 4 * size * learner.ranks:
            fits = "fills the GPU better, if it fits"
            yield self._set(fits, f"tokens_per_micro_batch={2 * size}")

    def _graders(self) -> Iterator[Change]:
        grader = self.stage.grader
        processes = grader.processes
        if processes is None:
            from rewards.grader import load

            processes = 0 if load(self.stage.verifier).quick else 2
        if processes:
            busy = self._busy_beside("grader") + processes * grader.workers
            room = (self.machine.cores - busy) // grader.workers
            yield from self._more("grader.processes", processes, room)
        else:
            yield from self._more("grader.workers", grader.workers, self._spare("grader", 1))

    def _overlap(self, other: str) -> Iterator[Change]:
        """Generate while training, where both have a machine of their own."""
        stage, machine = self.stage, self.machine
        needed = self.cores["learner"] + self.cores["rollout"]
        apart = self.free_gpus >= 0 if machine.gpus else machine.cores >= needed
        if self.overlaps or stage.kind != "rl" or not apart or self.spent[other] < WORTH:
            return
        # what chunks and waiting groups take of it, and one more
        settings = [f"max_staleness={stage.max_staleness - staleness.depth(stage) + 1}"]
        if self.recipe.deterministic:
            settings.append("deterministic=false")
        for more in ([], ["loss.importance=token"]):
            change = self._set(f"overlaps it with {other}", *settings, *more)
            if self.takes(change):
                yield change
                return

    def _busy_beside(self, role: str) -> int:
        """Cores that other roles keep busy in this role's phase."""
        both = self.overlaps or self.machine.booked
        return sum(n for name, n in self.cores.items() if name != role) if both else 0

    def _spare(self, role: str, threads: int) -> int:
        """How many more processes of `role` the cores hold."""
        free = self.machine.cores - self._busy_beside(role) - self.cores[role]
        return max(0, free // threads)

    def _more(self, field: str, now: int, room: int) -> Iterator[Change]:
        """Up to twice as many, as far as there is room."""
        wanted = min(2 * now, now + room)
        if wanted > now:
            gain = "could halve it" if wanted == 2 * now else f"could save {1 - now / wanted:.0%}"
            yield self._set(gain, f"{field}={wanted}")

    def _rarer(self, field: str, every: int) -> Iterator[Change]:
        if 0 < 2 * every <= self.stage.steps:
            yield self._set("would halve it", f"{field}={2 * every}")

    def _set(self, effect: str, *settings: str) -> Change:
        several = len(self.recipe.stages) > 1
        return Change(tuple(self._placed(s) if several else s for s in settings), effect)

    def _placed(self, setting: str) -> str:
        """As it is written for one stage of several, or for the run."""
        of_the_run = re.split("[.=]", setting)[0] in Recipe.model_fields
        return setting if of_the_run else f"stages.{self.index}.{setting}"

    def takes(self, change: Change) -> bool:
        """Whether the recipe resolves with the change, differs by it, and warns of nothing new."""
        settings = [self._placed(setting) for setting in change.settings]
        before, known = _resolved(self.recipe, ())
        after, told = _resolved(self.recipe, settings)
        return not settings or (after not in (None, before) and told <= known)


def _resolved(recipe: Recipe, settings: Sequence[str]) -> tuple[Recipe | None, set[str]]:
    """The recipe with settings, None where they are refused; and its warnings."""
    raw = recipe.model_dump(mode="json", exclude_unset=True)  # a default may follow another field
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            changed = resolve(override(raw, settings))
        except ValueError:
            changed = None
    return changed, {str(warning.message) for warning in told}
