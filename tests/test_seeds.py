"""Random numbers: the published generator, independent streams, the same tokens anywhere."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import stats

from samplers.seeds import key, uniforms

MASK = 2**64 - 1


def splitmix(state: int) -> int:
    """One output of SplitMix64, as published (Steele, Lea, Flood 2014)."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def one(seed: int, position: int) -> float:
    return float(uniforms(np.array([seed], np.uint64), np.array([position], np.uint64))[0])


def test_uniforms_are_splitmix64():
    """The first outputs of seed 1234567 are widely published; the top 53 bits make the number."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    published += [4593380528125082431, 16408922859458223821]
    for position, bits in enumerate(published):
        assert one(1234567, position) == ((bits >> 11) + 0.5) / 2**53
    rng = np.random.default_rng(0)
    for seed, position in rng.integers(0, 2**62, (50, 2)).tolist():
        bits = splitmix((seed + 0x9E3779B97F4A7C15 * position) & MASK)
        assert one(seed, position) == ((bits >> 11) + 0.5) / 2**53


def test_a_position_does_not_need_the_others():
    keys = np.array([key(7, i) for i in range(64)], np.uint64)
    positions = np.arange(64, dtype=np.uint64) % 5
    together = uniforms(keys, positions)
    order = np.random.default_rng(1).permutation(64)
    np.testing.assert_array_equal(uniforms(keys[order], positions[order]), together[order])
    assert together.tolist() == [one(int(k), int(p)) for k, p in zip(keys, positions, strict=True)]


def test_keys_are_fixed_64_bit_words_that_feel_every_part():
    """A fold of SplitMix64 over the parts; recipes are repeated, so words must not change."""
    assert key() == 0
    assert key(5) == splitmix(splitmix(5))
    assert key(5, 9) == splitmix(key(5) ^ splitmix(9))
    assert key(-7) == splitmix(splitmix(2**64 - 7))
    assert key(-1) == key(2**64 - 1)
    words = [key(*parts) for n in (1, 2, 3) for parts in itertools.product(range(6), repeat=n)]
    assert len(set(words)) == 6 + 36 + 216
    assert all(0 <= word < 2**64 for word in words)
    base = key(11, 22, 33, 44)
    for i in range(4):
        parts = [11, 22, 33, 44]
        parts[i] ^= 1
        changed = bin(base ^ key(*parts)).count("1")
        assert 16 < changed < 48  # about half of the bits


def test_numbers_are_uniform_and_streams_independent():
    """Kolmogorov-Smirnov along positions and along neighbouring keys; correlation of neighbours."""
    n = 20_000
    along = uniforms(np.full(n, key(3), np.uint64), np.arange(n, dtype=np.uint64))
    keys = np.array([key(3, i) for i in range(n)], np.uint64)
    across = uniforms(keys, np.zeros(n, np.uint64))
    for numbers in (along, across):
        assert numbers.min() > 0
        assert numbers.max() < 1
        assert stats.kstest(numbers, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / np.sqrt(n)
    later = uniforms(keys, np.ones(n, np.uint64))
    assert abs(np.corrcoef(across, later)[0, 1]) < 4 / np.sqrt(n)
