"""o1_pruner: how much shorter than the group's mean, plus alpha times how much more often right.

weight = clip(mean(n) / n - 1 + alpha ([right] - mean right), -2, 4), then standardised over all
answers of the step. O1-Pruner (2501.12570; code: StarDewXXX/O1-Pruner), which is off-policy: there
the means are those of rollouts of the initial model, the data set is standardised once, two
responses a problem are trained on, and the loss has length-normalised ratios (gspo's, clip 0.2).
Here the means are those of the group itself, as long as it is on-policy.

The length term also pays wrong answers, without a bound but the clip: short wrong ones can beat
right ones. `gate: correct` gives it to right answers alone; right then beats wrong at any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from rewards.shaping import base
from rewards.shaping.base import Floats, Gate
from samplers.types import Group

NOISE = 1e-8
requires = base.requires


class Config(base.Compared):
    gate: Gate = "none"
    """'correct': no length term for wrong answers. 'none': the published form."""
    alpha: float = Field(5.0, gt=1)
    """Weight of being right; above 1, or brevity could outweigh it."""
    clip: tuple[float, float] = (-2.0, 4.0)
    """Bounds of the weight before it is standardised."""
    standardised: bool = True
    """Mean 0 and deviation 1 over all known answers of the step."""

    @field_validator("clip")
    @classmethod
    def _in_order(cls, clip: tuple[float, float]) -> tuple[float, float]:
        if not clip[0] < clip[1]:
            raise ValueError(f"{list(clip)}: the lower bound comes first; set [-2, 4]")
        return clip


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group: the weight minus `correct`."""

    def formula(lengths_N: Floats, right_N: Floats) -> Floats:
        return weights(lengths_N, right_N, config.alpha, config.clip, config.gate)

    parts = [base.compared(group, config, formula) for group in groups]
    if config.standardised and groups:
        used = np.concatenate([p[g.known_GCA] for g, p in zip(groups, parts, strict=True)])
        parts = [standardised(part, used) for part in parts]
    return [base.replaced(g, p, "none") for g, p in zip(groups, parts, strict=True)], state


def weights(
    lengths: Floats,
    right: Floats,
    alpha: float = 5.0,
    clip: tuple[float, float] = (-2.0, 4.0),
    gate: Gate = "none",
) -> Floats:
    """[N] for the N answers of one problem."""
    shorter = lengths.mean() / np.maximum(lengths, 1.0) - 1.0
    if gate == "correct":
        shorter = shorter * right
    return np.clip(shorter + alpha * (right - right.mean()), *clip)


def standardised(values: Floats, used: Floats) -> Floats:
    """By mean and deviation (ddof 0) of the values that are `used`; 0 where they are all equal."""
    deviation = used.std() if used.size else 0.0
    return np.zeros_like(values) if deviation < NOISE else (values - used.mean()) / deviation
