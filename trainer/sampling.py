"""The sampling side of a stage: from its prompts to verified groups.

What the next draws depend on is here: data position, allocation's statistics, budgets' memory and
rollouts that go on. With overlap one thread makes the draws (`trainer/ahead.py`), another one
checkpoints.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from samplers import seam
from samplers.budgets import base
from samplers.data import PromptStream
from samplers.types import Group, Plan, Prompt
from trainer import carried, checkpoint, compatibility, staleness
from trainer.collect import Enrich, Making, Verify, collect
from trainer.config import Stage
from trainer.supervised import SupervisedStream


@dataclass(frozen=True, slots=True)
class Sampled:
    """One step's groups, and what was to be said of the sampling when they were complete."""

    groups: list[Group]
    """To train."""
    discarded: list[Group]
    """Verified, and not to train."""
    figures: dict[str, float]


def _frozen(state: Any) -> Any:
    """The state as it is now. Arrays of allocators, which may be large, are snapshots already."""
    if isinstance(state, Mapping):
        return {name: _frozen(value) for name, value in state.items()}
    return [_frozen(value) for value in state] if isinstance(state, list) else state


class Sampling:
    """`stream` is drawn from, as the stage's allocation wants, under its budget's plans."""

    def __init__(self, stage: Stage, stream: PromptStream | SupervisedStream, seed: int) -> None:
        self.stage, self.stream, self.seed = stage, stream, seed
        self.allocation = compatibility.allocator(stage)
        self.budget, self.budget_config = seam.resolve("samplers.budgets", stage.budget_spec)
        self.memory: dict[str, Any] = {}
        self.carried: list[Group] = []
        """Groups with unfinished rollouts, or kept for the next step."""
        self.made: dict[int, int] = {}
        """Rollouts made of draws that were put back."""
        self._rounds = staleness.rounds(stage)
        self._drawing = threading.Lock()
        self._before: dict[int, dict[str, Any]] = {}

    def step(self, step: int, making: Making, verify: Verify, annotate: Enrich) -> Sampled:
        """The groups that step `step` of the stage trains.

        What their draws depend on is remembered until `forget`: a checkpoint of the step before
        may be made while they are being sampled, and after.
        """
        assert isinstance(self.stream, PromptStream)
        with self._drawing:
            self._before[step] = self._drawn()
        groups, unfinished, discarded, made = collect(
            self.allocation,
            self.stream,
            lambda prompt, n, key: self.plans(prompt, n, step, key),
            making,
            verify,
            annotate,
            seed=self.seed,
            temperature=self.stage.rollout.temperature,
            carried=self.carried,
            made=self.made,
            last=step == self.stage.steps - 1,
        )
        with self._drawing:
            for group in (*groups, *discarded, *unfinished):
                if any(rollout.unmade for rollout in group.rollouts):
                    self.stream.exclude(group.prompt.index)
            self.carried, self.made = unfinished, self._still_back(made)
            seen = [*groups, *discarded]
            self.allocation.observe(seen)
            if hasattr(self.budget, "observe"):
                self.budget.observe(self.budget_config, seen, self.memory)
            if not step:  # not only when the first checkpoint is due
                self._check(self.memory)
                self._check_allocation()
        return Sampled(groups, discarded, {**self.allocation.metrics(), **self._chunks()})

    def _still_back(self, made: Mapping[int, int]) -> dict[int, int]:
        """Of draws that were put back and sampled before: what was made of them in all."""
        assert isinstance(self.stream, PromptStream)
        known = {**self.made, **made}
        return {draw: known[draw] for draw, _ in self.stream.returned if draw in known}

    def plans(self, prompt: Prompt, n: int, step: int, key: int) -> Sequence[Plan]:
        """The budget policy's plans, of which there must be `n`, in chunks that end in time."""
        with self._drawing:
            plans: Sequence[Plan] = self.budget.plans(
                self.budget_config, prompt, n, step, self.memory, key
            )
        if len(plans) != n:
            raise ValueError(
                f"budget: {self.budget.__name__} made {len(plans)} plans where {n} were asked for"
            )
        for plan in plans:
            if plan.chunk and math.ceil(plan.max_tokens / plan.chunk) > self._rounds:
                raise ValueError(
                    f"budget: max_tokens {plan.max_tokens} in chunks of {plan.chunk} go on over "
                    f"more steps than the {self._rounds} of max_staleness that the field `chunk` "
                    "of the budget and rollout.max_tokens set aside; raise the one or the other"
                )
        return plans

    def natural(self, prompt: Prompt, step: int) -> Plan:
        """How a prompt is asked when nobody sets a budget."""
        natural = getattr(self.budget, "natural", None)
        plan: Plan = natural(self.budget_config) if natural else self.plans(prompt, 1, step, 0)[0]
        return replace(plan, chunk=None)

    def asked(self) -> dict[str, Plan]:
        """Name -> how a prompt is asked for each mode or number of tokens that there is."""
        return base.asked(self.budget, self.budget_config)

    def _chunks(self) -> dict[str, float]:
        """Of chunked rollouts: how many go on, and the tokens that they hold already."""
        if not self._rounds:
            return {}
        rollouts = [r for group in self.carried for r in group.rollouts if r.unfinished]
        return {
            "chunks/carried": len(rollouts),
            "chunks/tokens": sum(r.sampled_tokens for r in rollouts),
        }

    def _drawn(self) -> dict[str, Any]:
        """What the next draws depend on."""
        return {
            "stream": self.stream.state_dict(),
            "allocation": _frozen(self.allocation.state_dict()),
            "memory": _frozen(self.memory),
            "made": {str(draw): n for draw, n in self.made.items()},
            "carried": self.carried,
        }

    def state_dict(self, step: int) -> dict[str, Any]:
        """What to go on from at `step`: what was begun since and not trained is sampled again.

        Raises:
            ValueError: the budget's memory would not come back from JSON as it is.
        """
        with self._drawing:
            drawn = self._before.get(step) or self._drawn()
        self._check(drawn["memory"])
        return {**drawn, "carried": carried.pack(drawn["carried"])}

    def _check_allocation(self) -> None:
        state = self.allocation.state_dict()
        try:
            json.dumps(checkpoint.apart(state, "", {}))
        except TypeError as error:
            raise ValueError(
                f"allocation: the state of {type(self.allocation).__module__} cannot be written "
                f"({error}); keep texts, numbers, lists, dicts, and arrays as values of dicts in it"
            ) from None

    def _check(self, memory: dict[str, Any]) -> None:
        try:
            same = json.loads(json.dumps(memory)) == memory
        except TypeError:
            same = False
        if not same:
            raise ValueError(
                f"budget: the memory of {self.budget.__name__} would not come back from JSON as it "
                "is; keep texts, finite numbers, lists, and dicts with texts as keys in it"
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._before = {}
        self.stream.load_state_dict(state["stream"])
        if state["allocation"]:  # empty: it may be of another one, that remembered nothing
            self.allocation.load_state_dict(state["allocation"])
        self.memory = dict(state["memory"])
        self.made = {int(draw): n for draw, n in state["made"].items()}
        if isinstance(self.stream, PromptStream):
            self.carried = carried.unpack(state["carried"], self.stream.dataset.__getitem__)

    def inherit(self, before: Sampling) -> str:
        """Begin with what an earlier stage learned of the same prompts: a note for people."""
        name, _ = seam.split(self.stage.allocation)
        other, _ = seam.split(before.stage.allocation)
        known = before.allocation.state_dict().get("statistics")
        if not known:
            return ""
        what = f"allocation: statistics of {other}"
        if name != other:
            return f"{what} are dropped: this stage allocates by {name}"
        ours, theirs = self.stream.state_dict(), before.stream.state_dict()
        if ours.get("fingerprint") != theirs.get("fingerprint"):
            return (
                f"{what} are dropped: they are of other prompts (fingerprint "
                f"{theirs.get('fingerprint')}, and this stage's is {ours.get('fingerprint')})"
            )
        state = self.allocation.state_dict()
        self.allocation.load_state_dict({**state, "statistics": known})
        return f"{what} go on from an earlier stage: the prompts are the same"

    def forget(self, step: int) -> None:
        """Whatever is gone on from, it is not from before `step`."""
        with self._drawing:
            self._before = {at: drawn for at, drawn in self._before.items() if at >= step}
