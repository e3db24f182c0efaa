"""oversample: sample many rollouts of each prompt, train on few of both kinds.

T1, Hou et al. 2025 (arXiv:2501.11651), samples 64 and keeps some of both; its rule is unpublished.
Ours is Reinforce-Ada's balanced down-sampling (`_teaching.py`). Baselines use all that was
sampled.
"""

from __future__ import annotations

from collections.abc import Generator

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
    samples: int = Field(64, ge=2)
    """Rollouts of each prompt that are sampled [paper]; rollouts_per_prompt of them train."""
    positive: float = Field(teaching.ABOVE, ge=0, lt=1)
    """With several answers at a cut a rollout counts as right where a larger share of them is."""


class Allocator(Forgetful):
    """`samples` rollouts of `prompts` prompts a step; `rollouts` of each train. Remembers nothing.

    Metrics: allocation/informative_share (of the groups sampled), allocation/balance (share of
    right ones among the rollouts that train).
    """

    def __init__(self, config: Config, prompts: int, rollouts: int) -> None:
        """
        Raises:
            ValueError: there is nothing to select from, or one rollout is to stand for both kinds.
        """
        if rollouts > config.samples:
            raise ValueError(
                f"samples={config.samples}: rollouts_per_prompt={rollouts} are to train; sample at "
                f"least as many: samples={rollouts} or more"
            )
        if rollouts < 2:
            raise ValueError(
                "rollouts_per_prompt=1: oversample trains right and wrong rollouts of a prompt; "
                "set rollouts_per_prompt=2 or more"
            )
        super().__init__()
        self.config, self.prompts, self.rollouts = config, prompts, rollouts
        self.apart = False

    def allocate(self, stream: Stream) -> Generator[Ask, Group | None, None]:
        config = self.config
        mixed: list[bool] = []
        right: list[float] = []
        for _ in range(self.prompts):
            yield Sample(*stream.next(), config.samples)
        while (group := (yield Receive())) is not None:
            mixed.append(informative(group, self.apart))
            kept_G = teaching.select(group, self.rollouts, self.apart, config.positive)
            if not kept_G.any():  # no verdict is known
                yield Discard(group)
                continue
            for unit in teaching.split(group, self.rollouts, self.apart, config.positive):
                right.extend(unit.right_U[kept_G[unit.index_U]])
            yield Finish(group, kept_G)
        self.figures = {}
        if mixed:
            self.figures["allocation/informative_share"] = float(np.mean(mixed))
        if right:
            self.figures["allocation/balance"] = float(np.mean(right))


def sizes(config: Config, prompts: int, rollouts: int) -> tuple[int, int]:
    """Rollouts of a prompt that train, and that are asked for."""
    return rollouts, config.samples


def spends(config: Config, prompts: int, rollouts: int) -> int:
    """The most rollouts of a step."""
    return prompts * config.samples
