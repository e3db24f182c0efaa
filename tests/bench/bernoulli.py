"""A pool of prompts whose success rates are known, and a policy that learns from their groups.

The model of learning. Prompt i is answered right with probability p_i, the sigmoid of
b_i + theta . phi_i, and never where its level is unsolvable. b_i is how hard it is to begin with,
phi_i a unit vector of D features: a direction that all prompts share, one of its level, one of its
own, which is random, so that prompts are in each other's way (D is below their number).

The gradient of a rollout's log probability is (right - p_i) phi_i, and noise: what its tokens do
that has nothing to do with being right, a random vector of length NOISE sqrt(tokens / TOKENS). A
step is the policy gradient of the groups that an allocator trains, with the advantages of
`trainer.algorithms.grpo`. With Adam the length of a step does not depend on the gradient's, so an
allocator can win by the direction alone, by less noise; plain steps (`sgd`) add up what the
rollouts give. What follows is not put in by hand: a group without both outcomes teaches nothing and
adds no noise, few or lopsided samples are noisy, noise makes others forget, and prompts of a level
help each other.

Shape suffixes: P prompts, D features, L levels, G rollouts of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rewards.verdict import Verdict
from samplers.data import Dataset
from samplers.seeds import uniforms
from samplers.types import Answer, Group, Job, Prompt, Rollout, Tokens
from trainer.algorithms import grpo

Floats = NDArray[np.float64]
FEATURES = 256
COMMON, LEVEL = 0.1, 0.3
"""Shares of |phi|^2 that all prompts have in common, and those of a level."""
NOISE, TOKENS = 8.0, 200
PLAIN = 60.0
"""Learning rate of plain steps over Adam's."""
BETAS, EPS = (0.9, 0.95), 1e-8
RIGHT, WRONG = Verdict(True, 1.0, "ok"), Verdict(False, 0.0, "wrong")
LONGEST = 4096
IDS, LOGPROBS = np.ones(LONGEST, np.int32), np.zeros(LONGEST, np.float32)
IDS.flags.writeable = LOGPROBS.flags.writeable = False


@dataclass(frozen=True, slots=True)
class Level:
    """Prompts alike in difficulty. Logits of success are uniform between those of two rates."""

    name: str
    share: float
    rates: tuple[float, float]
    """Lowest and highest success rate at the start; (0, 0): nobody ever solves them."""
    tokens: int
    """Mean length of a rollout, uniform from half to one and a half times as much."""


@dataclass(frozen=True, slots=True)
class Regime:
    """A pool, and how much of it a step of uniform allocation takes."""

    title: str
    levels: tuple[Level, ...]
    size: int
    prompts: int
    rollouts: int
    steps: int
    lr: float


class Pool:
    """The prompts and the policy: makes rollouts, grades them, learns from groups."""

    def __init__(self, regime: Regime, seed: int, sgd: bool = False) -> None:
        random = self.random = np.random.default_rng((0xBE12, seed))
        self.regime, self.levels, self.sgd = regime, regime.levels, sgd
        shares = np.array([level.share for level in self.levels])
        assert np.isclose(shares.sum(), 1), shares
        ends = np.rint(shares.cumsum() * regime.size).astype(int)
        self.level_P = np.searchsorted(ends, np.arange(regime.size), side="right")
        low, high = np.array([level.rates for level in self.levels]).T[:, self.level_P]
        self.solvable_P = high > 0
        spread_P = random.random(regime.size)
        low, high = (np.where(self.solvable_P, edge, 0.5) for edge in (low, high))
        self.bias_P = (1 - spread_P) * _logit(low) + spread_P * _logit(high)
        parts = [
            _unit(random.normal(size=(n, FEATURES))) for n in (1, len(self.levels), regime.size)
        ]
        own = 1 - COMMON - LEVEL
        self.features_PD = (
            COMMON**0.5 * parts[0] + LEVEL**0.5 * parts[1][self.level_P] + own**0.5 * parts[2]
        )
        self.theta_D = np.zeros(FEATURES)
        self.moments = np.zeros((2, FEATURES))
        self.steps = self.rollouts = self.tokens = 0
        self.advantages = grpo.formula(grpo.Config())
        self.rates_P = self._rates()
        self.dataset = Dataset(self.prompt, regime.size, f"bernoulli-{seed}")

    def prompt(self, index: int) -> Prompt:
        level = int(self.level_P[index])
        meta = {"difficulty": level + 1, "rate": float(self.rates_P[index])}
        return Prompt(index, str(index), (), "", "1", "exact", meta)

    def make(self, jobs: Sequence[Job]) -> list[Rollout]:
        """Rollouts that are right with their prompt's rate of now; counted as paid for."""
        index_J = np.array([job.prompt.index for job in jobs])
        seeds_J = np.array([job.seed for job in jobs], np.uint64)
        first, second = (uniforms(seeds_J, np.full_like(seeds_J, i)) for i in (0, 1))
        mean_J = np.array([level.tokens for level in self.levels])[self.level_P[index_J]]
        lengths_J = np.rint(mean_J * (0.5 + second)).astype(int)
        right_J = first < self.rates_P[index_J]
        self.rollouts += len(jobs)
        self.tokens += int(lengths_J.sum())
        rows = zip(jobs, lengths_J.tolist(), right_J.tolist(), strict=True)
        return [_rollout(job, length, right) for job, length, right in rows]

    def verify(self, groups: Sequence[Group]) -> list[Group]:
        return [
            replace(
                group,
                verdicts=tuple(
                    ((RIGHT if rollout.final.text == "1" else WRONG,),)
                    for rollout in group.rollouts
                ),
            )
            for group in groups
        ]

    def measure(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """Gradient norms of log pi, as learners would give them: one [1] array per rollout."""
        out = []
        for group in groups:
            rate = self.rates_P[group.prompt.index]
            score_G = np.where(group.correct_GCA[:, 0, 0], 1 - rate, rate)
            tokens_G = np.array([rollout.sampled_tokens for rollout in group.rollouts])
            norms_G = np.sqrt(score_G**2 + NOISE**2 * tokens_G / TOKENS).astype(np.float32)
            norms = tuple(norms_G[:, None])
            out.append(replace(group, annotations={**group.annotations, "grad_norm": norms}))
        return tuple(out)

    def learn(self, groups: Sequence[Group]) -> int:
        """One optimiser step on the kept rollouts.

        Returns: how many of them had an advantage other than 0; without any no step is taken.
        """
        rewards = [group.correct_GCA[:, 0, 0].astype(np.float64) for group in groups]
        signal_P = np.zeros(len(self.rates_P))
        noise = trained = effective = 0.0
        for group, rewards_G, advantages_G in zip(
            groups, rewards, self.advantages(rewards), strict=True
        ):
            kept_G = np.ones(len(group), bool) if group.kept_G is None else group.kept_G
            pushes_G = kept_G * advantages_G
            if group.weights_G is not None:
                pushes_G = pushes_G * group.weights_G
            i = group.prompt.index
            signal_P[i] += (pushes_G * (rewards_G - self.rates_P[i])).sum()
            tokens_G = np.array([rollout.sampled_tokens for rollout in group.rollouts])
            noise += (pushes_G**2 * tokens_G).sum() / TOKENS
            trained += kept_G.sum()
            effective += (pushes_G != 0).sum()
        if effective:
            noise_D = self.random.normal(size=FEATURES) * (NOISE * (noise / FEATURES) ** 0.5)
            self._step((signal_P @ self.features_PD + noise_D) / trained, trained)
        return int(effective)

    def success(self) -> dict[str, float]:
        """Mean success rate, of all prompts and of each level."""
        means = {
            level.name: float(self.rates_P[self.level_P == i].mean())
            for i, level in enumerate(self.levels)
        }
        return {"all": float(self.rates_P.mean()), **means}

    def _step(self, gradient_D: Floats, trained: float) -> None:
        if self.sgd:
            nominal = self.regime.prompts * self.regime.rollouts
            self.theta_D += PLAIN * self.regime.lr * trained / nominal * gradient_D
        else:
            self.steps += 1
            first, second = BETAS
            self.moments[0] = first * self.moments[0] + (1 - first) * gradient_D
            self.moments[1] = second * self.moments[1] + (1 - second) * gradient_D**2
            mean_D = self.moments[0] / (1 - first**self.steps)
            scale_D = np.sqrt(self.moments[1] / (1 - second**self.steps)) + EPS
            self.theta_D += self.regime.lr * mean_D / scale_D
        self.rates_P = self._rates()

    def _rates(self) -> Floats:
        logits_P = self.bias_P + self.features_PD @ self.theta_D
        return np.where(self.solvable_P, 1 / (1 + np.exp(-logits_P)), 0.0)


def _rollout(job: Job, length: int, right: bool) -> Rollout:
    thought = Tokens(IDS[: length - 1], LOGPROBS[: length - 1], "stop")
    answer = Answer(length - 1, Tokens(IDS[:1], LOGPROBS[:1], "stop"), str(int(right)))
    return Rollout(
        job.prompt.index, job.group, job.index, job.seed, job.plan, IDS[:1], thought, True,
        ((answer,),),
    )  # fmt: skip


def _logit(rates: Floats) -> Floats:
    return np.log(rates) - np.log1p(-rates)


def _unit(vectors_ND: Floats) -> Floats:
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
