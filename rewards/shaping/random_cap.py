"""random_cap: a right answer earns its chance to fit under a cap drawn at random.

R = [right] * (C - max(L, 1) + 1) / C for an answer of length L <= C and 0 beyond: the share of the
caps 1, 2, ..., C that are no shorter than it. The mean of R over problems is the accuracy under a
cap that is drawn uniformly, which is the area under accuracy against cap; with `length: think` and
thoughts that end by themselves it is what evaluations call `cap_area`. Ours.

Right beats wrong at any length up to the cap. Beyond one that is set shorter than responses can
be, a right answer earns no more than a wrong one: `gate: correct` mends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.shaping import base
from rewards.shaping.base import Floats
from samplers.types import Group

requires = base.requires


class Config(base.Measured, base.Capped, base.Gated):
    pass


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group: R minus `correct`, in [-1, 0]; 0 where wrong."""
    out = []
    for group in groups:
        fits_GCA = fits(base.measured(group, config), base.caps(group, config))
        out.append(base.replaced(group, base.right(group) * fits_GCA, config.gate))
    return out, state


def fits(lengths: Floats, longest: Floats | float) -> Floats:
    """In [0, 1]: the share of the caps 1..longest that a length is within."""
    return np.maximum(longest - np.maximum(lengths, 1.0) + 1.0, 0.0) / longest
