"""l1: think for the announced N tokens (exact), or for at most that many (max).

exact: R = [right] - alpha |N - n|. max: R = [right] * (clip(alpha (N - n), -1, 1) + 1) / 2 as the
code has it, [right] * clip(alpha (N - n) + 0.5, 0, 1) as the paper does. LCPO, "L1: Controlling
How Long A Reasoning Model Thinks" (Aggarwal & Welleck 2025; code: cmu-l3/l1).

exact pays wrong answers for keeping to N, and a right one far from N gets less than a wrong one
near it. max never pays a wrong answer, but a right one far beyond N gets nothing either.
`gate: correct` mends both: right beats wrong at any length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from rewards.shaping import base
from rewards.shaping.base import Floats
from samplers.facts import TARGET
from samplers.types import Group

ALPHA = {"exact": 3e-4, "max": 2e-3, "max_paper": 3e-4}


class Config(base.Measured, base.Gated):
    mode: Literal["exact", "max", "max_paper"] = "exact"
    """Exactly the announced tokens; at most those, in the code's form; or in the paper's."""
    alpha: float | None = Field(None, gt=0)
    """Reward per token; None: the published one, 3e-4 (max: 2e-3, which makes 1e-3 a token)."""


def requires(config: Config) -> Mapping[str, str]:
    return {**base.requires(config), TARGET: "it rewards keeping to the announced length"}


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group: R minus `correct`; 0 where no length is announced."""
    return [_group(group, config) for group in groups], state


def _group(group: Group, config: Config) -> Floats:
    wanted_G11 = base.targets(group)
    lengths_GCA = base.measured(group, config)
    alpha = config.alpha or ALPHA[config.mode]
    if config.mode == "exact":
        return base.added(group, np.nan_to_num(exact(lengths_GCA, wanted_G11, alpha)), config.gate)
    form = at_most if config.mode == "max" else at_most_paper
    kept_GCA = np.nan_to_num(form(lengths_GCA, wanted_G11, alpha), nan=1.0)
    return base.replaced(group, base.right(group) * kept_GCA, config.gate)


def exact(lengths: Floats, wanted: Floats, alpha: float) -> Floats:
    """-alpha per token too many or too few: what is added to the verdict."""
    return -alpha * np.abs(wanted - lengths)


def at_most(lengths: Floats, wanted: Floats, alpha: float) -> Floats:
    """In [0, 1], 1/2 at the wanted length: what a right verdict is multiplied with (code)."""
    return (np.clip(alpha * (wanted - lengths), -1.0, 1.0) + 1.0) / 2.0


def at_most_paper(lengths: Floats, wanted: Floats, alpha: float) -> Floats:
    """The same with the whole slope, as the paper writes it."""
    return np.clip(alpha * (wanted - lengths) + 0.5, 0.0, 1.0)
