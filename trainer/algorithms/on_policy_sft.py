"""On-policy SFT (2602.13407): imitate one's own rollouts that are right and within the cap.

The honesty baseline: at equal generated tokens a method of this family must beat it. Plain
cross-entropy on what is kept, so rewards other than the verdict are without effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from rewards.lengths import Kind, lengths
from samplers.seam import Component
from samplers.types import Group
from trainer.algorithms import _plain
from trainer.types import TrainSequence


class Config(Component):
    cap: int | None = Field(None, ge=1)
    """Tokens; longer rollouts are not imitated (the paper: 3500). None: only those that the
    response cap cut off are not."""
    length: Kind = "response"
    """What must be within the cap: the whole 'response' or the thought alone ('think')."""


def requires(config: Config) -> Mapping[str, str]:
    return {"loss ce": "it imitates; set loss: {name: ce}", **_plain.requires(config)}


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """Advantage 1 for every token of a kept rollout; the others leave the denominators too."""
    kept = [imitated(group, config).astype(np.float64) for group in groups]
    rows = _plain.sequences(groups, kept, _plain.Config())
    return [row for row in rows if row.advantages_T.any()]


def imitated(group: Group, config: Config) -> _plain.Bools:
    """[G]: known to be right, ended by itself, and not above the cap."""
    whole_G = np.array([not rollout.truncated for rollout in group.rollouts])
    (right_G,) = _plain.right([group])
    if config.cap is None:
        return whole_G & right_G
    return whole_G & right_G & (lengths(group, config.length)[:, -1, 0] <= config.cap)
