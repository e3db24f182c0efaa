"""A pilot that trains: the gradient stays unbiased, by going through every outcome of a bandit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from samplers.types import Group
from tests.allocated import Says, at_rates
from tests.test_gvm import RATES, Blocks, allocator, norm
from trainer import credit

CHANCES = (0.35, 0.7)
"""Of two prompts, each with a right and a wrong answer: a bandit that can be gone through whole."""
PILOT, LATER = 2, 3


def estimates(worth: Callable[[list[Any]], list[Any]], pooled: bool) -> tuple[Any, Any]:
    """Exact mean of what a step with `reuse` adds up for each prompt, through the real driver, and
    what it should be: [2] each, gradients with respect to the logit of the right answer."""
    most = PILOT + 2 * LATER
    mean_P, mass = np.zeros(2), 0.0
    for pilots in itertools.product([False, True], repeat=2 * PILOT):
        for later in itertools.product([False, True], repeat=2 * LATER):
            outcomes = [list(pilots[d * PILOT :][:PILOT]) for d in range(2)]
            steps = Blocks(
                allocator(2, PILOT + LATER, every=1, pilot=PILOT, least=2, reuse=True),
                _told(outcomes, iter(later), most), norm,
            )  # fmt: skip
            groups = steps.step().groups
            assert sum(map(len, groups)) == 2 * (PILOT + LATER)
            if pooled:
                groups = _pool(groups)
            rewards = [g.correct_GCA[:, -1, 0].astype(float) for g in groups]
            chance, sums_P = 1.0, np.zeros(2)
            for group, reward_G, value_G in zip(groups, rewards, worth(rewards), strict=True):
                p = CHANCES[group.serial]
                chance *= np.where(reward_G == 1, p, 1 - p).prod()
                weights_G = 1.0 if group.weights_G is None else group.weights_G
                sums_P[group.serial] += (weights_G * value_G * (reward_G - p)).sum()
            mean_P += chance * sums_P
            mass += chance
    assert mass == pytest.approx(1)  # every outcome once
    p = np.array(CHANCES)
    return mean_P, (PILOT + LATER) * p * (1 - p)


def _told(outcomes: list[list[bool]], later: Any, most: int) -> Says:
    """The pilot's outcomes, then those of `later` in the order in which they are asked for."""

    def says(draw: int, index: int) -> bool:
        if index >= len(outcomes[draw]):
            assert index == len(outcomes[draw]) < most
            outcomes[draw].append(next(later))
        return outcomes[draw][index]

    return says


def _pool(groups: list[Group]) -> list[Group]:
    """Pilot and what came later as one group, every rollout alike: what one must not do."""
    out = []
    for first, second in (groups[:2], groups[2:]):
        assert first.serial == second.serial
        both = (first.rollouts + second.rollouts, first.verdicts + second.verdicts)
        out.append(replace(first, rollouts=both[0], verdicts=both[1], weights_G=None))
    return out


@pytest.mark.parametrize("worth", [credit.rloo, credit.raft])
def test_a_pilot_that_trains_does_not_bias_the_gradient(worth: Any) -> None:
    mean_P, right_P = estimates(worth, pooled=False)
    assert mean_P == pytest.approx(right_P, rel=1e-9)


@pytest.mark.parametrize("worth", [credit.rloo, credit.raft])
def test_pooled_with_what_it_decided_it_would(worth: Any) -> None:
    """Not merely in length: the prompts no longer weigh the same."""
    mean_P, right_P = estimates(worth, pooled=True)
    ratio_P = mean_P / right_P
    assert abs(ratio_P[0] / ratio_P[1] - 1) > 0.01


def test_a_pilot_that_trains_is_a_group_of_its_own() -> None:
    steps = Blocks(allocator(3, 8, every=1, pilot=4, reuse=True), at_rates(RATES, 5), norm)
    for first in (0, 3):
        out = steps.step()
        assert not out.discarded
        assert [(g.serial, g.part) for g in out.groups] == [
            (first + d, part) for d in range(3) for part in range(2)
        ]
        assert sum(map(len, out.groups)) == 3 * 8
        for pilot, later in zip(out.groups[::2], out.groups[1::2], strict=True):
            assert pilot.weights_G is None
            assert len(pilot) == 4
            assert len(later) >= 2
            assert later.weights_G is not None
            assert later.weights_G.sum() == pytest.approx(4)
            assert [r.index for r in later.rollouts] == list(range(4, 4 + len(later)))
        assert not steps.made
        assert not steps.stream.returned
