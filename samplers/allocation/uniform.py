"""Uniform allocation: the same number of rollouts for every prompt, each group trained once."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from samplers.allocation.base import Ask, Finish, Receive, Sample, Stream
from samplers.seam import Component
from samplers.types import Group


class Config(Component):
    """Nothing to set."""


class Allocator:
    """Draws `prompts` prompts a step and samples `rollouts` of each. Remembers nothing."""

    def __init__(self, config: Config, prompts: int, rollouts: int) -> None:
        self.prompts, self.rollouts = prompts, rollouts

    def allocate(self, stream: Stream) -> Generator[Ask, Group | None, None]:
        for _ in range(self.prompts):
            yield Sample(*stream.next(), self.rollouts)
        while (group := (yield Receive())) is not None:
            yield Finish(group)

    def observe(self, groups: list[Group]) -> None:
        """Uniform learns nothing from what it saw."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state

    def metrics(self) -> dict[str, float]:
        return {}
