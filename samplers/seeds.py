"""Random numbers as a counter hash: a key of integers and a position give one uniform number.

Nothing is consumed in order, so a rollout's tokens do not depend on its neighbours in a batch,
on the engine it ran on or on what was sampled before it. SplitMix64 (Steele et al. 2014).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key(*parts: int) -> int:
    """A 64-bit key of integers, order-sensitive: key(run_seed, group, rollout, phase, ...)."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        word = np.array([part & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
        state = _mix((state ^ _mix(word + _GAMMA)) + _GAMMA)
    return int(state[0])


def uniforms(keys_N: NDArray[np.uint64], positions_N: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in (0, 1) per (key, position), 53 random bits each."""
    bits = _mix(keys_N + _GAMMA * (positions_N + np.uint64(1)))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
