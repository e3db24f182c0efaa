"""From verdicts to rewards: the component `correct` and whatever the shapers add to it.

A shaper is a file with `shape(groups, config, state) -> (one [G, C, A] array per group, state)`
and perhaps a `Config`. Its component carries its name, and the sum of all components is the
method's reward, so a shaper returns the difference that it makes. Where a verdict is unknown
every component is NaN, whatever the shaper says.

`shape_tokens` in its place rewards single tokens: a tuple of one [T] array per rollout for each
group, T the thought as far as the final answer saw it, then that answer. Either may name further
parameters: `decode` (from lists of ids to their texts) and `thinking` (the markers, or None).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.shaping.base import scores
from rewards.texts import Decode
from samplers import seam
from samplers.render import ThinkingConfig
from samplers.types import Group

Spec = str | Mapping[str, Any]
Add = Callable[[Group, str, Any], Group]
CORRECT = "correct"
GIVEN = {"decode", "thinking"}


@dataclass(frozen=True, slots=True)
class Shaper:
    name: str
    """Name of its reward component."""
    shape: Callable[..., tuple[Sequence[Any], Any]]
    """(groups, state, and what it wants) -> (one part per group, state)."""
    add: Add
    """A group with its part."""
    wants: frozenset[str] = frozenset()
    """Further parameters of `shape`."""


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
        name = path.rpartition(":")[2]
        return Shaper(name, lambda groups, state: ([*map(reward, groups)], state), _add)
    module, config = seam.resolve("rewards.shaping", spec)
    adds: dict[str, Add] = {"shape": _add, "shape_tokens": _add_tokens}
    entry = next((name for name in adds if callable(getattr(module, name, None))), None)
    if entry is None:
        raise ValueError(
            f"shaping: module '{path}' has no shape(groups, config, state), and no shape_tokens"
        )
    shape = getattr(module, entry)
    return Shaper(
        path.rpartition(".")[2],
        lambda groups, state, **given: shape(groups, config, state, **given),
        adds[entry],
        frozenset(GIVEN & set(inspect.signature(shape).parameters)),
    )


class Shaping:
    """The shapers of a stage and their states.

    Args:
        decode: texts of lists of ids.
        thinking: the markers of thoughts, where there are any.
    """

    def __init__(
        self,
        specs: Sequence[Spec],
        decode: Decode | None = None,
        thinking: ThinkingConfig | None = None,
    ) -> None:
        self.shapers = [shaper(spec) for spec in specs]
        self.given = {"decode": decode, "thinking": thinking}
        names = [CORRECT, *(s.name for s in self.shapers)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"shaping: two components are named '{name}'; each may be listed once, and "
                    f"'{CORRECT}' is always there"
                )
        self.states: dict[str, Any] = {}

    def apply(self, groups: Sequence[Group]) -> list[Group]:
        """Verified groups with their named reward components, [G, C, A] or one [T] a rollout."""
        groups = [replace(group, rewards={CORRECT: scores(group)}) for group in groups]
        for one in self.shapers:
            given = {name: self.given[name] for name in one.wants}
            begun = self.states.get(one.name) is not None
            parts, self.states[one.name] = one.shape(groups, self.states.get(one.name), **given)
            if not begun and (where := _lost(self.states[one.name], one.name)):
                raise ValueError(
                    f"shaping: the state of {where}, which no checkpoint gives back as it is; keep "
                    "texts, numbers, lists, dicts with texts as keys, and arrays as their values"
                )
            if len(parts) != len(groups):
                raise ValueError(
                    f"{one.name}: returned {len(parts)} arrays for {len(groups)} groups"
                )
            groups = [one.add(g, one.name, p) for g, p in zip(groups, parts, strict=True)]
        return groups

    def state_dict(self) -> dict[str, Any]:
        return dict(self.states)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.states = dict(state)


def _lost(state: Any, at: str) -> str:
    """What of a state would not come back from JSON (and arrays beside it); '': it all would."""
    if isinstance(state, Mapping):
        keys = [key for key in state if not isinstance(key, str)]
        inner = (_lost(value, f"{at}.{key}") for key, value in state.items())
        return f"{at} has the key {keys[0]!r}" if keys else next(filter(None, inner), "")
    if isinstance(state, list):
        found = next(filter(None, (_lost(value, at) for value in state)), "")
        array = any(isinstance(value, np.ndarray) for value in state)
        return f"{at} has arrays in a list" if array else found
    array = isinstance(state, np.ndarray) and not state.dtype.hasobject
    plain = state is None or array or isinstance(state, bool | int | float | str)
    return "" if plain else f"{at} has a {type(state).__name__}"


def _add(group: Group, name: str, part: NDArray[np.float64]) -> Group:
    known = group.known_GCA
    if part.shape != known.shape:
        raise ValueError(f"{name}: returned an array of shape {part.shape}, not {known.shape}")
    if np.isinf(part[known]).any():
        raise ValueError(f"{name}: returned an infinite reward for prompt {group.prompt.id}")
    return replace(group, rewards={**group.rewards, name: np.where(known, part, np.nan)})


def _add_tokens(group: Group, name: str, part: Sequence[NDArray[np.float64]]) -> Group:
    """Per-token rewards of the final answer's own tokens: NaN where its verdict is unknown."""
    want = [(rollout.final.after + len(rollout.final.tokens),) for rollout in group.rollouts]
    if [np.shape(array_T) for array_T in part] != want:
        shapes = [np.shape(array_T) for array_T in part]
        raise ValueError(f"{name}: returned arrays of shapes {shapes}, not {want}")
    if not all(np.isfinite(array_T).all() for array_T in part):
        raise ValueError(f"{name}: returned a reward that is not finite for {group.prompt.id}")
    known_G = group.known_GCA[:, -1, 0]
    arrays = tuple(np.where(k, array_T, np.nan) for k, array_T in zip(known_G, part, strict=True))
    return replace(group, token_rewards={**group.token_rewards, name: arrays})
