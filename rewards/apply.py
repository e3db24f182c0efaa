"""From verdicts to rewards: the component `correct` and whatever the shapers add to it.

A shaper is a file with `shape(groups, config, state) -> (one [G, C, A] array per group, state)`
and perhaps a `Config`. Its component carries its name, and the sum of all components is the
method's reward, so a shaper returns the difference that it makes. Where a verdict is unknown
every component is NaN, whatever the shaper says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samplers import seam
from samplers.types import Group

Spec = str | Mapping[str, Any]
Arrays = list[NDArray[np.float64]]
CORRECT = "correct"


@dataclass(frozen=True, slots=True)
class Shaper:
    name: str
    """Name of its reward component."""
    shape: Callable[[Sequence[Group], Any], tuple[Arrays, Any]]


def shaper(spec: Spec) -> Shaper:
    """The shaper that `spec` names: a file of ours, a user's module, or my_pkg.my_file:fn.

    Raises:
        ValueError: there is none of that name, or its settings are not what it takes.
    """
    path, settings = seam.split(spec)
    if ":" in path:
        if settings:
            raise ValueError(f"shaping: {path} takes no settings; got {', '.join(settings)}")
        from rewards import custom

        reward = custom.reward(path)
        return Shaper(
            path.rpartition(":")[2], lambda groups, state: ([*map(reward, groups)], state)
        )
    module, config = seam.resolve("rewards.shaping", spec)
    if not callable(getattr(module, "shape", None)):
        raise ValueError(f"shaping: module '{path}' has no shape(groups, config, state)")
    name = path.rpartition(".")[2]
    return Shaper(name, lambda groups, state: module.shape(groups, config, state))


class Shaping:
    """The shapers of a stage and their states."""

    def __init__(self, specs: Sequence[Spec]) -> None:
        self.shapers = [shaper(spec) for spec in specs]
        names = [CORRECT, *(s.name for s in self.shapers)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"shaping: two components are named '{name}'; each may be listed once, and "
                    f"'{CORRECT}' is always there"
                )
        self.states: dict[str, Any] = {}

    def apply(self, groups: Sequence[Group]) -> list[Group]:
        """Verified groups with their named reward components, [G, C, A] each."""
        groups = [replace(group, rewards={CORRECT: scores(group)}) for group in groups]
        for one in self.shapers:
            parts, self.states[one.name] = one.shape(groups, self.states.get(one.name))
            if len(parts) != len(groups):
                raise ValueError(
                    f"{one.name}: returned {len(parts)} arrays for {len(groups)} groups"
                )
            groups = [_add(g, one.name, p) for g, p in zip(groups, parts, strict=True)]
        return groups

    def state_dict(self) -> dict[str, Any]:
        return dict(self.states)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.states = dict(state)


def scores(group: Group) -> NDArray[np.float64]:
    """Every verdict's score, [G, C, A]; NaN where it is unknown."""
    return np.array(
        [[[v.score if v.known else np.nan for v in c] for c in r] for r in group.verdicts],
        dtype=np.float64,
    )


def _add(group: Group, name: str, part: NDArray[np.float64]) -> Group:
    known = group.known_GCA
    if part.shape != known.shape:
        raise ValueError(f"{name}: returned an array of shape {part.shape}, not {known.shape}")
    if np.isinf(part[known]).any():
        raise ValueError(f"{name}: returned an infinite reward for prompt {group.prompt.id}")
    return replace(group, rewards={**group.rewards, name: np.where(known, part, np.nan)})
