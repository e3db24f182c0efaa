"""Group advantages: what each rollout was worth compared with the others of its prompt.

A group is one array of rewards [G]; groups may differ in size. NaN is an unknown verdict: it
leaves every statistic and gets advantage 0. `counted` says which rollouts the statistics use
(None: all known ones); the others are still compared with them. Everything is float64.

Sources: verl 0.8 `core_algos.py`, TRL 1.10 `grpo_trainer.py`, prime-rl, RLHFlow/GVM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Std = Literal["group", "batch", "centred", "none"]
Form = Literal["grpo", "dr_grpo", "rloo"]
Singleton = Literal["zero", "raw"]

NOISE = 1e-8
"""Rewards that differ by less are equal: 0.1 + 0.2 and 0.3 must not become an advantage."""


def grpo(
    rewards: Sequence[Floats],
    counted: Sequence[Bools] | None = None,
    std: Std = "group",
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> list[Floats]:
    """(r - group mean) / (std + eps), GRPO (Shao et al. 2024); std "none" is Dr.GRPO's r - mean.

    The deviation is the unbiased one, of the group, of all rewards of the batch as they are
    ("batch", TRL's `scale_rewards`), or of all that are left when each group's mean is taken away
    ("centred": DLER, REINFORCE++-baseline; their code weighs rollouts by their tokens and takes
    the tokens' mean away once more, by which groups of equal rewards get an advantage). A group
    with fewer than two counted rewards has no deviation: advantage 0, or with singleton "raw"
    verl's rule (mean 0, deviation 1).

    Returns: one [G] array per group; exactly 0 for groups of equal rewards.
    """
    masks = _counted(rewards, counted)
    pool = list(map(np.compress, masks, rewards))
    if std == "centred":
        pool = [quiet(used - used.mean()) for used in pool if len(used) > 1]
    batch_std = _std(np.concatenate([np.empty(0), *pool]))
    out = []
    for rewards_G, counted_G in zip(rewards, masks, strict=True):
        used = rewards_G[counted_G]
        alone = len(used) < 2
        advantages_G = _alone(rewards_G, singleton) if alone else quiet(rewards_G - used.mean())
        if std != "none":
            own = 1.0 if alone else _std(used)
            scale = own if alone or std == "group" else batch_std
            advantages_G = advantages_G * (0.0 if scale < NOISE else 1.0 / (scale + eps))
        out.append(_known(advantages_G))
    return out


def rloo(
    rewards: Sequence[Floats],
    counted: Sequence[Bools] | None = None,
    singleton: Singleton = "zero",
) -> list[Floats]:
    """r minus the mean of the others (REINFORCE leave-one-out, Ahmadian et al. 2024)."""
    out = []
    for rewards_G, counted_G in zip(rewards, _counted(rewards, counted), strict=True):
        others_G = counted_G.sum() - counted_G
        rest_G = rewards_G[counted_G].sum() - np.where(counted_G, rewards_G, 0.0)
        against_G = quiet(rewards_G - rest_G / np.maximum(others_G, 1))
        advantages_G = np.where(others_G > 0, against_G, _alone(rewards_G, singleton))
        out.append(_known(advantages_G))
    return out


def max_rl(rewards: Sequence[Floats], counted: Sequence[Bools] | None = None) -> list[Floats]:
    """(r - mean) / mean, 0 where the mean is not positive: Max-RL, as in prime-rl."""
    out = []
    for rewards_G, counted_G in zip(rewards, _counted(rewards, counted), strict=True):
        mean = rewards_G[counted_G].mean() if counted_G.any() else 0.0
        scale = 1.0 / mean if mean > 0 else 0.0
        out.append(_known(quiet(rewards_G - mean) * scale))
    return out


FORMS: dict[Form, Callable[..., list[Floats]]] = {
    "grpo": grpo,
    "dr_grpo": partial(grpo, std="none"),
    "rloo": rloo,
}
"""The advantages that methods start from: standardised, centred, against the mean of the others."""


def raft(rewards: Sequence[Floats]) -> list[Floats]:
    """max(r, 0): only what was accepted is learned from (RAFT, Dong et al. 2023; GVM's form)."""
    return [_known(np.maximum(rewards_G, 0.0)) for rewards_G in rewards]


def keep_sign(before_G: Floats, after_G: Floats) -> Floats:
    """`after_G`, at 0 where it would have crossed to the other side; from 0 it may only rise."""
    return np.where(before_G < 0, np.minimum(after_G, 0.0), np.maximum(after_G, 0.0))


def _counted(rewards: Sequence[Floats], counted: Sequence[Bools] | None) -> list[Bools]:
    known = [~np.isnan(rewards_G) for rewards_G in rewards]
    if counted is None:
        return known
    return [k & c for k, c in zip(known, counted, strict=True)]


def _std(values: Floats) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _alone(rewards_G: Floats, singleton: Singleton) -> Floats:
    return rewards_G if singleton == "raw" else np.zeros_like(rewards_G)


def quiet(differences_G: Floats) -> Floats:
    """Differences that are rounding noise made exactly 0."""
    return np.where(np.abs(differences_G) < NOISE, 0.0, differences_G)


def _known(advantages_G: Floats) -> Floats:
    return np.where(np.isnan(advantages_G), 0.0, advantages_G)
