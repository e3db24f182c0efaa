"""The simulated policy of tests/bench/bernoulli.py learns by the policy gradient it claims."""

from __future__ import annotations

import numpy as np
import pytest

from samplers.types import Group, Job, Plan
from tests.bench import bernoulli
from tests.bench.allocators import MIXED
from tests.bench.bernoulli import Level, Pool, Regime
from trainer.algorithms import grpo


def regime(levels: tuple[Level, ...] = MIXED) -> Regime:
    return Regime("", levels, 50, 4, 8, 1, 0.01)


def groups(pool: Pool, prompts: list[int], n: int) -> list[Group]:
    found = []
    for index in prompts:
        jobs = [
            Job(pool.prompt(index), Plan(4096), group=index, index=i, seed=1000 * index + i)
            for i in range(n)
        ]
        found.append(Group(pool.prompt(index), index, tuple(pool.make(jobs))))
    return pool.verify(found)


def test_plain_step_follows_the_numeric_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bernoulli, "NOISE", 0.0)
    pool = Pool(regime(), seed=0, sgd=True)
    batch = groups(pool, [31, 33, 36], 8)  # of medium difficulty
    advantages = grpo.formula(grpo.Config())([g.correct_GCA[:, 0, 0].astype(float) for g in batch])

    def objective(theta_D: np.ndarray) -> float:
        logits_P = pool.bias_P + pool.features_PD @ theta_D
        right_P = 1 / (1 + np.exp(-logits_P))
        total = 0.0
        for group, advantages_G in zip(batch, advantages, strict=True):
            p = right_P[group.prompt.index]
            chance_G = np.where(group.correct_GCA[:, 0, 0], p, 1 - p)
            total += float(advantages_G @ np.log(chance_G))
        return total

    step = 1e-5
    numeric_D = [
        (objective(step * e_D) - objective(-step * e_D)) / (2 * step)
        for e_D in np.eye(bernoulli.FEATURES)
    ]
    assert np.linalg.norm(numeric_D) > 0.1
    effective = pool.learn(batch)
    assert effective == sum(len(a) for a in advantages if a.any()) > 0
    rate = bernoulli.PLAIN * pool.regime.lr / (4 * 8)
    np.testing.assert_allclose(pool.theta_D, rate * np.array(numeric_D), rtol=1e-5, atol=1e-9)


def test_rollouts_are_right_at_the_rate_of_their_prompt() -> None:
    pool = Pool(regime(), seed=1)
    for group in groups(pool, [3, 35, 48], 4000):
        rate = pool.rates_P[group.prompt.index]
        error = np.sqrt(rate * (1 - rate) / 4000)
        assert abs(group.correct_GCA.mean() - rate) < 4 * error
    assert pool.rollouts == 12000
    assert pool.tokens == pytest.approx(4000 * (100 + 200 + 400), rel=0.03)


def test_groups_all_alike_take_no_step() -> None:
    pool = Pool(regime((Level("never", 1.0, (0.0, 0.0), 100),)), seed=2)
    assert pool.learn(groups(pool, [0, 1], 8)) == 0
    assert not pool.theta_D.any()


def test_noise_hides_the_gradient_but_does_not_bias_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(noise: float, seeds: range) -> np.ndarray:
        monkeypatch.setattr(bernoulli, "NOISE", noise)
        out = []
        for seed in seeds:
            pool = Pool(regime(), seed=0, sgd=True)
            pool.random = np.random.default_rng(seed)
            pool.learn(groups(pool, [31, 33, 36], 8))
            out.append(pool.theta_D)
        return np.array(out)

    clean_D = steps(0.0, range(1))[0]
    noisy_ND = steps(8.0, range(400))
    assert np.linalg.norm(noisy_ND[0] - clean_D) > 3 * np.linalg.norm(clean_D)
    error = np.linalg.norm(noisy_ND - clean_D, axis=1).mean() / np.sqrt(400)
    assert np.linalg.norm(noisy_ND.mean(axis=0) - clean_D) < 1.3 * error
