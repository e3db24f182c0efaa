"""An allocator of several rounds that remembers and puts back: the hardest to run ahead."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from samplers.allocation.base import Ask, Finish, PutBack, Receive, Sample, Stream
from samplers.types import Group


class Allocator:
    """Samples each draw in two rounds and every third one in a third; draws one more prompt than it
    needs and puts it back."""

    refills = True

    def __init__(self, config: Any, prompts: int, rollouts: int) -> None:
        self.prompts, self.rollouts = prompts, rollouts
        self.seen: list[int] = []

    def allocate(self, stream: Stream) -> Generator[Ask, Group | None, None]:
        for _ in range(self.prompts):
            yield Sample(*stream.next(), 1)
        while (group := (yield Receive())) is not None:
            more = self.rollouts - len(group) + (group.serial % 3 == 0)
            if more:
                yield Sample(group.serial, group.prompt, min(more, max(1, self.rollouts - 1)))
            else:
                yield Finish(group)
        yield PutBack(*stream.next())

    def observe(self, groups: list[Group]) -> None:
        self.seen += [group.serial for group in groups]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = list(state["seen"])

    def metrics(self) -> dict[str, float]:
        return {"seen": len(self.seen)}
