"""What an allocator may ask for, and the shape of an allocator.

An allocator is a generator of asks. It pulls prompts from the checkpointed stream itself;
"prompts per step" says how many groups a step trains, not how many it may try.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samplers.types import Group, Prompt


@dataclass(frozen=True, slots=True)
class Sample:
    """Sample `n` more rollouts of this draw. Answered at once (None); received later."""

    draw: int
    prompt: Prompt
    n: int


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for the next draw whose samples are done: answered with its Group so far, verified.

    With chunked rollouts a draw may be done in a later step only. Answered with None where no more
    of those that were asked for will be done in this one: what is left is received in the next.
    """


@dataclass(frozen=True, slots=True)
class Annotate:
    """Have the learners annotate a group (`grad_norm`): answered with the annotated group."""

    group: Group
    what: str


@dataclass(frozen=True, slots=True)
class Finish:
    """This group trains; `kept_G` selects its rollouts (None: all)."""

    group: Group
    kept_G: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class PutBack:
    """Return a draw to the stream: it comes first at the next step."""

    draw: int
    prompt: Prompt


Ask = Sample | Receive | Annotate | Finish | PutBack


class Stream(Protocol):
    def next(self) -> tuple[int, Prompt]: ...
    def put_back(self, draw: int, prompt: Prompt) -> None: ...


class Allocation(Protocol):
    """One allocator. Everything it remembers is in its state dict."""

    def allocate(self, stream: Stream) -> Generator[Ask, Group | None, None]: ...
    def observe(self, groups: list[Group]) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
    def metrics(self) -> dict[str, float]: ...
