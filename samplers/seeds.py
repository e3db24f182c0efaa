"""Random numbers as a counter hash: a key of integers and a position give one uniform number.

Nothing is consumed in order, so a rollout's tokens do not depend on its neighbours in a batch,
on the engine it ran on or on what was sampled before it. SplitMix64 (Steele et al. 2014).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MASK = 0xFFFFFFFFFFFFFFFF
_GAMMA = 0x9E3779B97F4A7C15


def _mix(z: Any) -> Any:
    """SplitMix64's finaliser, of a Python int or an array of uint64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def key(*parts: int) -> int:
    """A 64-bit key of integers, order-sensitive: key(run_seed, group, rollout, phase, ...)."""
    state = 0
    for part in parts:
        word = _mix((part & _MASK) + _GAMMA & _MASK)
        state = _mix((state ^ word) + _GAMMA & _MASK)
    return state


def uniforms(keys_N: NDArray[np.uint64], positions_N: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in (0, 1) per (key, position), 53 random bits each."""
    bits_N = _mix(keys_N + np.uint64(_GAMMA) * (positions_N + np.uint64(1)))
    return ((bits_N >> 11).astype(np.float64) + 0.5) * 2.0**-53
