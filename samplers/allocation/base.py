"""What an allocator may ask for, and the shape of an allocator.

An allocator is a generator of asks. It pulls prompts from the checkpointed stream itself;
"prompts per step" says how many groups a step trains, not how many it may try.

Shape suffixes: G rollouts of a group, C cuts, A answers per cut.
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
    """Have the learners measure groups (`grad_norm`): answered with the annotated groups."""

    groups: tuple[Group, ...]
    what: str


@dataclass(frozen=True, slots=True)
class Finish:
    """This group trains; `kept_G` selects its rollouts (None: all).

    `weights_G` multiplies the advantages of each rollout (None: 1), where an allocator gives
    prompts different numbers of rollouts and they are to count alike.
    """

    group: Group
    kept_G: NDArray[np.bool_] | None = None
    weights_G: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """This group is complete and trains in the next step, where it is received first.

    Its tokens are then older by a version: see `waits` in `Allocation`.
    """

    group: Group


@dataclass(frozen=True, slots=True)
class Discard:
    """What was sampled of this draw so far does not train: it is counted, and observed.

    More samples of the draw are a group of their own, with other random numbers. A group that is
    received and never named again is discarded when the step ends.
    """

    group: Group


@dataclass(frozen=True, slots=True)
class PutBack:
    """Return a draw to the stream: it comes first at the next step."""

    draw: int
    prompt: Prompt


Ask = Sample | Receive | Annotate | Finish | Keep | Discard | PutBack
Reply = Group | tuple[Group, ...] | None
Asks = Generator[Ask, Any, None]
"""`yield Receive()` gives a Group or None, `yield Annotate(...)` a tuple of groups."""


class Stream(Protocol):
    def next(self) -> tuple[int, Prompt]: ...
    def put_back(self, draw: int, prompt: Prompt) -> None: ...


class Allocation(Protocol):
    """One allocator, the class `Allocator` of its file. What it remembers is in its state dict.

    Optional beside it:

        refills: class attribute; True where it samples again after it has received, so that
            rollouts are to come one group at a time and not all of a round together
        apart: attribute, False; set to True where statistics are within a mode (subgroup)
        sizes(config, prompts, rollouts) -> (fewest, most) rollouts of one prompt that are asked
            for at once or trained, in the module; without it rollouts_per_prompt
        trains(config, prompts, rollouts) -> the fewest rollouts of a group that trains, in the
            module, where that is not the fewest of `sizes`: one alone may have nothing to be
            compared with
        spends(config, prompts, rollouts) -> the most rollouts that a step may ask for, in the
            module; without it prompts * rollouts
        waits(config) -> steps that a complete group may wait until it trains, in the module: so
            many versions of max_staleness are set aside
        provides / requires / refuses(config), in the module: see trainer/compatibility.py

    `__init__(config, prompts, rollouts)` raises ValueError for numbers that contradict each other.
    """

    def allocate(self, stream: Stream) -> Asks: ...
    def observe(self, groups: list[Group]) -> None:
        """Everything verified in the step that trained or was discarded; not what is kept."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON, and numpy arrays as values of dicts, as they are now, whatever comes later. Under
        `statistics` what is known of each prompt by its index: a later stage on the same data
        begins with it."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
    def metrics(self) -> dict[str, float]: ...


class Forgetful:
    """What an allocator is asked for that takes nothing along from one step to the next."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        """Metrics of the step."""

    def observe(self, groups: list[Group]) -> None:
        """It learns nothing from what it saw."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state

    def metrics(self) -> dict[str, float]:
        return dict(self.figures)


def units(group: Group, apart: bool) -> dict[str, NDArray[np.intp]]:
    """Indices of the rollouts that are compared with each other: all, or those of each mode."""
    if not apart:
        return {"": np.arange(len(group))}
    return {key: np.flatnonzero(mine_G) for key, mine_G in group.subgroups.items()}


def rights(group: Group) -> NDArray[np.float64]:
    """[G, C]: share of right answers among the known ones at each cut; NaN where none is known."""
    known_GCA = group.known_GCA
    right_GC = (group.correct_GCA & known_GCA).sum(axis=2)
    count_GC = known_GCA.sum(axis=2)
    return np.where(count_GC > 0, right_GC / np.maximum(count_GC, 1), np.nan)


def mixed(rights_GC: NDArray[np.float64]) -> bool:
    """Right and wrong answers at some cut: with group baselines only such rollouts teach."""
    some_C = (np.nan_to_num(rights_GC, nan=0.0) > 0).any(axis=0)
    short_C = (np.nan_to_num(rights_GC, nan=1.0) < 1).any(axis=0)
    return bool((some_C & short_C).any())


def informative(group: Group, apart: bool = False) -> bool:
    """Mixed raw verdicts, at any cut, among the rollouts that are compared (rule: raw verdicts
    decide, never shaped rewards)."""
    rights_GC = rights(group)
    return any(mixed(rights_GC[mine]) for mine in units(group, apart).values())
