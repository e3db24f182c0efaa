"""dynamic: ask for more prompts until enough of their groups can teach.

DAPO's dynamic sampling, Yu et al. 2025 (arXiv:2503.14476; code: verl): a group whose raw verdicts
are all alike is put aside and another prompt tried, a bounded number of times. verl cuts what is
beyond `prompts_per_step` informative groups; here it trains in the next step, unless set otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from typing import Any, Literal

from pydantic import Field

from samplers.allocation.base import (
    Ask,
    Discard,
    Finish,
    Keep,
    Receive,
    Sample,
    Stream,
    informative,
)
from samplers.seam import Component
from samplers.types import Group

_PRIOR = 2.0
"""Groups' worth of belief that all are informative: a step that begins with no experience asks for
what it needs, and a run of bad luck does not take the share to 0."""


class Config(Component):
    max_rounds: int = Field(10, ge=1)
    """A step tries at most this many times prompts_per_step prompts [verl], then trains what there
    is."""
    surplus: Literal["keep", "train", "drop"] = "keep"
    """Informative groups beyond prompts_per_step: `keep` them for the next step (one version of
    max_staleness), `train` them in this one, or `drop` those that were drawn last [verl]."""
    momentum: float = Field(0.5, ge=0, lt=1)
    """Weight of earlier steps in the informative share, by which it is told how many to ask for."""


class Allocator:
    """Draws prompts until `prompts` groups are informative; `rollouts` of each.

    Of its own draws each step wants as many informative groups as it trains, less those kept for
    it. With chunks they may come in later steps, as others come in this one that were begun before:
    in the mean a step has what it needs, and one that has less does not begin still more. Never are
    more kept than one step trains, so none waits twice: what is beyond that trains at once. A group
    of one rollout has nothing to be compared with and trains as it is, as in verl.

    Metrics of the step: allocation/rounds (prompts tried / prompts_per_step),
    allocation/informative_share (of the groups that came), allocation/surplus (informative groups
    beyond those needed), allocation/missing (groups fewer than prompts_per_step: the tries were
    used up, or with chunks the rest is under way).
    """

    refills = True

    def __init__(self, config: Config, prompts: int, rollouts: int) -> None:
        self.config, self.prompts, self.rollouts = config, prompts, rollouts
        self.apart = False
        self.kept: list[int] = []
        """Serials of the groups that wait for the next step."""
        self.going = 0
        """Draws asked for and not received, of this step and of those before."""
        self.seen = [0.0, 0.0]
        """Informative groups and all groups that came, earlier steps by `momentum`."""
        self._figures: dict[str, float] = {}

    def allocate(self, stream: Stream) -> Generator[Ask, Group | None, None]:
        waiting, self.kept = self.kept, []
        self.seen = [self.config.momentum * n for n in self.seen]
        before, own = self.going, set[int]()
        # With chunks what is begun now comes later, and until then as many are kept in each step:
        # they count in all of these together, or the steps after would have too few.
        needed = self.prompts - math.ceil(len(waiting) * self.prompts / (self.prompts + before))
        tried, trained, surplus, came, taught = 0, 0, 0, 0, 0
        held: list[Group] = []
        while True:
            for _ in range(self._wanted(needed, len(own), before, tried)):
                draw, prompt = stream.next()
                own.add(draw)
                self.going, tried = self.going + 1, tried + 1
                yield Sample(draw, prompt, self.rollouts)
            if (group := (yield Receive())) is None:
                break
            if group.serial in waiting:
                waiting.remove(group.serial)
                trained += 1
                yield Finish(group)
                continue
            teaches = self._came(group)
            came, taught = came + 1, taught + teaches
            needed -= teaches and group.serial in own
            own.discard(group.serial)
            if not teaches:
                yield Discard(group)
            elif self.config.surplus == "drop":
                held.append(group)
            elif trained + len(waiting) < self.prompts:
                trained += 1
                yield Finish(group)
            else:
                surplus += 1
                yield self._beyond(group)
        # The first to come are the short ones: which are dropped is decided when all are there.
        for group in sorted(held, key=lambda group: group.serial):
            drop = trained == self.prompts
            trained, surplus = trained + (not drop), surplus + drop
            yield Discard(group) if drop else Finish(group)
        self._figures = {
            "allocation/rounds": tried / self.prompts,
            "allocation/surplus": float(surplus),
            "allocation/missing": float(self.prompts - trained),
            **({"allocation/informative_share": taught / came} if came else {}),
        }

    def _wanted(self, needed: int, going: int, before: int, tried: int) -> int:
        """Draws to ask for now, where `needed` of the step's own are yet to be informative: as many
        as make up for those that will not be, less the `going` that are under way.

        At most `prompts` at a time, lest much be kept; and as many more as were under way `before`
        the step, since so many of its own will not come in it either.
        """
        if needed <= 0:
            return 0
        share = (self.seen[0] + _PRIOR) / (self.seen[1] + _PRIOR)
        together = min(math.ceil(needed / share), self.prompts + before)
        return max(0, min(together - going, self.config.max_rounds * self.prompts - tried))

    def _came(self, group: Group) -> bool:
        """Whether a group that was asked for can teach."""
        self.going = max(0, self.going - 1)
        alone = len(group) == 1 and bool(group.known_GCA.any())
        teaches = alone or informative(group, self.apart)
        self.seen = [self.seen[0] + teaches, self.seen[1] + 1]
        return teaches

    def _beyond(self, group: Group) -> Ask:
        """An informative group that the step does not need."""
        if self.config.surplus == "train" or len(self.kept) == self.prompts:
            return Finish(group)
        self.kept.append(group.serial)
        return Keep(group)

    def observe(self, groups: list[Group]) -> None:
        """What counts is noted when a group comes."""

    def state_dict(self) -> dict[str, Any]:
        return {"kept": list(self.kept), "going": self.going, "seen": list(self.seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept, self.going = list(state["kept"]), int(state["going"])
        self.seen = [float(n) for n in state["seen"]]

    def metrics(self) -> dict[str, float]:
        return dict(self._figures)


def spends(config: Config, prompts: int, rollouts: int) -> int:
    """The most rollouts of a step: of all the prompts that it may try."""
    return config.max_rounds * prompts * rollouts


def waits(config: Config) -> int:
    """Steps that a complete group may wait until it trains."""
    return 1 if config.surplus == "keep" else 0
