"""soft_overlong: a penalty that grows over the last tokens before the cap, for any verdict.

0 up to max_tokens - cache, then (max_tokens - cache - length) / cache down to -1. DAPO (Yu et al.
2025), section 3.4; capped at -1 as in TRL (verl has no cap: it never matters below max_tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rewards.lengths import lengths
from samplers.seam import Component
from samplers.types import Group


class Config(Component):
    cache: int = Field(4096, ge=1)
    """Tokens before the cap over which the penalty grows."""
    max_tokens: int | None = Field(None, ge=1)
    """The cap; None takes each rollout's own."""


def shape(
    groups: Sequence[Group], config: Config, state: Any
) -> tuple[list[NDArray[np.float64]], Any]:
    """One [G, C, A] array per group, in [-1, 0]. Raises ValueError if cache exceeds the cap."""
    out = []
    for group in groups:
        caps_G = [config.max_tokens or r.plan.max_tokens for r in group.rollouts]
        if min(caps_G) < config.cache:
            raise ValueError(
                f"soft_overlong.cache={config.cache}: must not exceed the cap of {min(caps_G)} "
                "tokens; the penalty would begin before the first token"
            )
        caps_G11 = np.array(caps_G, dtype=np.float64)[:, None, None]
        out.append(penalty(lengths(group), caps_G11, config.cache))
    return out, state


def penalty(
    lengths: NDArray[np.float64], cap: NDArray[np.float64] | float, cache: int
) -> NDArray[np.float64]:
    """0 up to cap - cache, then linear down to -1 at the cap and beyond."""
    return np.clip((cap - cache - lengths) / cache, -1.0, 0.0)
