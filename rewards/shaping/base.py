"""What length rewards share: how length is counted, who is compared with whom, and the gate.

Shape suffixes: G rollouts of a group, C cuts, A answers per cut, N answers that are compared. A
formula is a pure function of lengths and correctness; `added` and `replaced` turn what it says
into the component, the difference that the shaper makes to the verdict's score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rewards.lengths import Kind, lengths
from samplers.facts import MARKERS, SUBGROUPS
from samplers.seam import Component
from samplers.types import Group

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Gate = Literal["none", "correct"]

FLOOR = 0.1
"""Share of its score that a right answer keeps behind the gate, however long it is."""


class Measured(Component):
    """What counts as length."""

    length: Kind = "response"
    """What is counted: the whole 'response' or the thought alone ('think')."""
    count_forced: bool = False
    """Whether forced tokens (a prefill, a forced close, inserted text) count as well."""


class Compared(Measured):
    """Whose lengths an answer's own is compared with, at its cut."""

    within: Literal["group", "subgroup"] = "group"
    """All rollouts of the prompt, or those of the same mode or budget ('subgroup')."""


class Gated(Component):
    """Rewards that a wrong answer may earn by its length."""

    gate: Gate = "none"
    """'correct': a wrong answer gets nothing from this component, and what it takes from a right
    one leaves at least a tenth of the score, whatever was listed before: if all that take are
    gated, right beats wrong answers of score 0 at any length. 'none': the published form."""


class Capped(Component):
    """Rewards that know the longest response."""

    max_tokens: int | None = Field(None, ge=1)
    """Longest response, in tokens; None takes each rollout's own cap."""


def requires(config: Component) -> Mapping[str, str]:
    """What `length` and `within` need: part of the `requires` of whatever has these settings."""
    needs = {}
    if getattr(config, "length", None) == "think":
        needs[MARKERS] = "length=think counts the thought alone"
    if getattr(config, "within", None) == "subgroup":
        needs[SUBGROUPS] = "within=subgroup compares the rollouts of one mode or one budget"
    return needs


def measured(group: Group, config: Measured) -> Floats:
    """[G, C, A] lengths as `config` counts them."""
    return lengths(group, config.length, config.count_forced)


def right(group: Group) -> Bools:
    """[G, C, A]: correct, and known to be."""
    return group.correct_GCA & group.known_GCA


def scores(group: Group) -> Floats:
    """[G, C, A] verdict scores; NaN where the verdict is unknown."""
    return np.array(
        [[[v.score if v.known else np.nan for v in c] for c in r] for r in group.verdicts],
        dtype=np.float64,
    )


def caps(group: Group, config: Capped) -> Floats:
    """[G, 1, 1] longest response of each rollout."""
    caps_G = [config.max_tokens or r.plan.max_tokens for r in group.rollouts]
    return np.array(caps_G, dtype=np.float64)[:, None, None]


def targets(group: Group) -> Floats:
    """[G, 1, 1] wanted lengths (`Plan.target`); NaN where a plan wants none."""
    wanted_G = [r.plan.target for r in group.rollouts]
    return np.array(wanted_G, dtype=np.float64)[:, None, None]  # None becomes NaN


def by_mode(group: Group, table: Mapping[str, float], field: str) -> Floats:
    """[G, 1, 1] entry of each rollout's mode in `table`.

    Raises:
        ValueError: a mode has no entry; `field` names the setting.
    """
    modes_G = [r.plan.subgroup for r in group.rollouts]
    missing = sorted(set(modes_G) - set(table))
    if missing:
        raise ValueError(
            f"{field}: no entry for mode {missing[0]!r}; it has {', '.join(table)}. "
            "Give every mode of the budget policy a number (0: no length reward)"
        )
    return np.array([table[mode] for mode in modes_G], dtype=np.float64)[:, None, None]


def compared(
    group: Group,
    config: Compared,
    formula: Callable[[Floats, Floats], Floats],
    marks_GCA: Floats | None = None,
) -> Floats:
    """[G, C, A] of `formula(lengths_N, marks_N)`, for each set of answers that are compared.

    Such a set are the known answers of one cut, of all rollouts or of one subgroup; unknown ones
    get 0. Marks are 1 for right and 0 for wrong answers, or those given.
    """
    lengths_GCA, known_GCA = measured(group, config), group.known_GCA
    marks_GCA = right(group).astype(np.float64) if marks_GCA is None else marks_GCA
    everyone = [np.ones(len(group), dtype=bool)]
    sets = everyone if config.within == "group" else group.subgroups.values()
    out_GCA = np.zeros_like(lengths_GCA)
    for members_G in sets:
        for c in range(out_GCA.shape[1]):
            here_GA = members_G[:, None] & known_GCA[:, c]
            if here_GA.any():
                n, marks = lengths_GCA[:, c][here_GA], marks_GCA[:, c][here_GA]
                out_GCA[:, c][here_GA] = formula(n, marks)
    return out_GCA


def added(group: Group, extra_GCA: Floats, gate: Gate) -> Floats:
    """The component of a method whose reward is the score plus `extra_GCA`, gated if asked."""
    if gate == "none":
        return extra_GCA
    return np.where(right(group), np.maximum(extra_GCA, least(group)), 0.0)


def least(group: Group) -> Floats:
    """[G, C, A], at most 0: what the gate lets a component take, after those listed before it."""
    so_far_GCA = group.total_GCA.copy()
    for arrays in group.token_rewards.values():
        so_far_GCA[:, -1, 0] += [array_T.sum() for array_T in arrays]
    return np.minimum(FLOOR * scores(group) - so_far_GCA, 0.0)


def replaced(group: Group, reward_GCA: Floats, gate: Gate) -> Floats:
    """The component of a method whose reward stands in place of right = 1, wrong = 0.

    A right answer earns that reward times its score, a wrong one earns it on top of its score.
    """
    right_GCA = right(group)
    difference_GCA = np.where(right_GCA, (reward_GCA - 1.0) * scores(group), reward_GCA)
    return added(group, difference_GCA, gate)


def half_cosine(progress: Floats, start: Floats | float, end: Floats | float) -> Floats:
    """`start` at progress 0, `end` from 1 on, half a cosine between."""
    return end + 0.5 * (start - end) * (1.0 + np.cos(np.pi * np.minimum(progress, 1.0)))
