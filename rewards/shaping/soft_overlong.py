"""soft_overlong: a penalty that grows over the last tokens before the cap, for any verdict.

0 up to max_tokens - cache, then (max_tokens - cache - length) / cache down to -1. DAPO (Yu et al.
2025), section 3.4; capped at -1 as in TRL (verl has no cap: it never matters below max_tokens).

A right answer at the cap is worth what a short wrong one is; `gate: correct` mends that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from rewards.shaping import base
from rewards.shaping.base import Floats
from samplers.types import Group

requires = base.requires


class Config(base.Measured, base.Capped, base.Gated):
    cache: int = Field(4096, ge=1)
    """Tokens before the cap over which the penalty grows."""


def shape(groups: Sequence[Group], config: Config, state: Any) -> tuple[list[Floats], Any]:
    """One [G, C, A] array per group, in [-1, 0]. Raises ValueError if cache exceeds the cap."""
    out = []
    for group in groups:
        caps_G11 = base.caps(group, config)
        if caps_G11.min() < config.cache:
            raise ValueError(
                f"soft_overlong.cache={config.cache}: must not exceed the cap of "
                f"{int(caps_G11.min())} tokens; the penalty would begin before the first token"
            )
        penalty_GCA = penalty(base.measured(group, config), caps_G11, config.cache)
        out.append(base.added(group, penalty_GCA, config.gate))
    return out, state


def penalty(lengths: Floats, cap: Floats | float, cache: int) -> Floats:
    """0 up to cap - cache, then linear down to -1 at the cap and beyond."""
    return np.clip((cap - cache - lengths) / cache, -1.0, 0.0)
