"""reinforce_ada: ask a prompt again and again, until it has shown what it can teach.

Reinforce-Ada, Xiong et al. 2025 (arXiv:2510.04996; code: RLHFlow/Reinforce-Ada). Every prompt gets
up to `rounds` lots of `per_round` rollouts and leaves once its exit condition holds; lots of
different prompts do not wait for each other. Of what was sampled rollouts_per_prompt train, right
and wrong ones balanced; advantages use all of it (global statistics), as every group's do here. The
paper's advantage is not divided by a deviation: `algorithm: {name: grpo, std: none}`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import numpy as np
from pydantic import Field

from samplers.allocation import _teaching as teaching
from samplers.allocation.base import (
    Ask,
    Discard,
    Finish,
    Forgetful,
    Receive,
    Sample,
    Stream,
    informative,
)
from samplers.seam import Component
from samplers.types import Group


class Config(Component):
    exit: Literal["balanced", "positive_focused"] = "balanced"
    """A prompt leaves with rollouts_per_prompt // 2 right ones and as many wrong ones as make up
    the rest; or with its first right one. With modes that are compared apart: when each of them
    has its own share."""
    rounds: int = Field(4, ge=1)
    """Lots of rollouts a prompt gets at most [paper]."""
    per_round: int = Field(8, ge=1)
    """Rollouts in a lot [paper]."""
    positive: float = Field(teaching.ABOVE, ge=0, lt=1)
    """With several answers at a cut a rollout counts as right where a larger share of them is."""

    @property
    def most(self) -> int:
        """Rollouts of one prompt."""
        return self.rounds * self.per_round


class Allocator(Forgetful):
    """`prompts` prompts a step, each of which trains `rollouts` rollouts. Remembers nothing: how
    far a prompt has come is the size of its group, also of one that an earlier step began.

    Metrics, of the prompts that left in this step: allocation/rounds (mean lots), allocation/exited
    (share whose exit condition held), allocation/informative_share.
    """

    refills = True

    def __init__(self, config: Config, prompts: int, rollouts: int) -> None:
        """
        Raises:
            ValueError: fewer rollouts can be sampled than are to train, or one is to be balanced.
        """
        if rollouts > config.most:
            raise ValueError(
                f"rounds={config.rounds} of per_round={config.per_round} are {config.most} "
                f"rollouts, and rollouts_per_prompt={rollouts} are to train; raise the one or "
                "lower the other"
            )
        if rollouts < 2:
            raise ValueError(
                "rollouts_per_prompt=1: reinforce_ada trains right and wrong rollouts of a prompt; "
                "set rollouts_per_prompt=2 or more"
            )
        super().__init__()
        self.config, self.prompts, self.rollouts = config, prompts, rollouts
        self.apart = False

    def allocate(self, stream: Stream) -> Generator[Ask, Group | None, None]:
        config, left = self.config, []
        for _ in range(self.prompts):
            yield Sample(*stream.next(), config.per_round)
        while (group := (yield Receive())) is not None:
            done, more = self.exits(group), config.most - len(group)
            if more > 0 and not done:
                yield Sample(group.serial, group.prompt, min(more, config.per_round))
                continue
            lots = -(-len(group) // config.per_round)
            left.append((lots, done, informative(group, self.apart)))
            kept_G = teaching.select(group, self.rollouts, self.apart, config.positive)
            yield Finish(group, kept_G) if kept_G.any() else Discard(group)
        names = ("rounds", "exited", "informative_share")
        means = np.mean(left, axis=0) if left else ()
        self.figures = {f"allocation/{k}": float(v) for k, v in zip(names, means, strict=False)}

    def exits(self, group: Group) -> bool:
        """Its exit condition holds for all that was sampled of it so far. An unknown verdict is
        neither right nor wrong."""
        for unit in teaching.split(group, self.rollouts, self.apart, self.config.positive):
            right, wrong = (unit.right_U == 1).sum(), (unit.right_U == 0).sum()
            half = unit.n // 2
            balanced = right >= half and wrong >= unit.n - half
            if not (balanced if self.config.exit == "balanced" else right):
                return False
        return True


def sizes(config: Config, prompts: int, rollouts: int) -> tuple[int, int]:
    """Rollouts of a prompt: the fewest and the most that are asked for at once, or train."""
    return min(rollouts, config.per_round), max(rollouts, config.per_round)


def spends(config: Config, prompts: int, rollouts: int) -> int:
    """The most rollouts of a step, if no prompt leaves early."""
    return prompts * config.most


def trains(config: Config, prompts: int, rollouts: int) -> int:
    """Fewest rollouts of a group that trains, where verdicts are known: a prompt that is to be
    balanced stays until there are enough, and for `positive_focused` its first lot may do."""
    return rollouts if config.exit == "balanced" else min(rollouts, config.per_round)
