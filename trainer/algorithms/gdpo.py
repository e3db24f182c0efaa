"""GDPO (2601.05242): every reward component is standardised in the group by itself, then summed.

A = sum_k w_k (r_k - mean) / (std + eps), then (A - mean) / (std + eps) over the rollouts of the
batch, as in the paper's TRL code (its verl code weighs rollouts by their tokens there). Summed
first, components of different scale would drown each other, and different mixtures collapse into
the same advantage. Priority is a matter of gating, not of weights: see `gated`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field

from samplers.types import Group
from trainer import credit
from trainer.algorithms import _plain
from trainer.types import TrainSequence

Floats = _plain.Floats
requires = _plain.requires


class Config(_plain.Config):
    weights: Mapping[str, float] = Field(default_factory=dict)
    """Weight of each reward component (`correct`, and the shapers by name); 1 where left out."""
    gated: tuple[str, ...] = ()
    """Components that count only for right answers."""
    gate: Literal["right", "zero"] = "right"
    """right: a gated component compares the right rollouts with each other and gives the wrong
    ones 0; what our shapers need, which add to or take from the reward of a right answer. zero:
    it is 0 where wrong and all are compared, the paper's form, for rewards >= 0 of their own."""
    batch_normalize: bool = True
    """Standardise the sums over the rollouts of the batch."""
    eps: float = Field(1e-4, ge=0)
    """Added to every deviation (the paper's code)."""


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """The weighed sum of standardised components, for every token of a rollout."""
    parts = [_plain.components(group) for group in groups]
    names = list(parts[0]) if parts else []
    _known({*config.weights, *config.gated}, names)
    counted, right = _plain.counted(groups, config), _plain.right(groups)
    total = [np.zeros(len(group)) for group in groups]
    for name in names:
        values = [part[name] for part in parts]
        if name in config.gated:
            wrong = np.nan if config.gate == "right" else 0.0
            values = [
                np.where(right_G | np.isnan(v_G), v_G, wrong)
                for v_G, right_G in zip(values, right, strict=True)
            ]
        formula = partial(credit.grpo, eps=config.eps)
        own = _plain.compared(groups, config, formula, values, counted)
        weight = config.weights.get(name, 1.0)
        total = [t_G + weight * a_G for t_G, a_G in zip(total, own, strict=True)]
    if config.batch_normalize:
        total = normalized(total, _plain.rewards(groups), counted, config.eps)
    return _plain.sequences(groups, total, config)


def normalized(
    advantages: Sequence[Floats],
    rewards: Sequence[Floats],
    counted: Sequence[_plain.Bools],
    eps: float,
) -> list[Floats]:
    """(A - mean) / (std + eps), by the counted rollouts of known reward; unknown ones get 0."""
    parts = zip(advantages, rewards, counted, strict=True)
    pool = [a_G[c_G & ~np.isnan(r_G)] for a_G, r_G, c_G in parts]
    flat = np.concatenate([np.empty(0), *pool])
    if len(flat) < 2 or flat.std() < credit.NOISE:
        return [np.zeros_like(a_G) for a_G in advantages]
    mean, scale = flat.mean(), flat.std(ddof=1) + eps
    return [
        np.where(np.isnan(r_G), 0.0, credit.quiet(a_G - mean) / scale)
        for a_G, r_G in zip(advantages, rewards, strict=True)
    ]


def _known(wanted: set[str], names: Sequence[str]) -> None:
    missing = sorted(wanted - set(names))
    if missing and names:
        raise ValueError(
            f"algorithm gdpo: no reward component named {', '.join(missing)}; there are "
            f"{', '.join(names)}; add a shaper of that name, or correct weights and gated"
        )
