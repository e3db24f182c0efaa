"""Uniform allocation: the same number of rollouts for every prompt, each group trained once."""

from __future__ import annotations

from collections.abc import Generator

from samplers.allocation.base import Ask, Finish, Forgetful, Receive, Sample, Stream
from samplers.seam import Component
from samplers.types import Group


class Config(Component):
    """Nothing to set."""


class Allocator(Forgetful):
    """Draws `prompts` prompts a step and samples `rollouts` of each. Remembers nothing."""

    def __init__(self, config: Config, prompts: int, rollouts: int) -> None:
        super().__init__()
        self.prompts, self.rollouts = prompts, rollouts

    def allocate(self, stream: Stream) -> Generator[Ask, Group | None, None]:
        for _ in range(self.prompts):
            yield Sample(*stream.next(), self.rollouts)
        while (group := (yield Receive())) is not None:
            yield Finish(group)
