"""HBPO's advantage: reference vectors, closed forms, and what unknown or wrong groups get."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from samplers import seam
from samplers.types import Group
from tests import made, vectors
from trainer.config import resolve
from trainer.types import TrainSequence

BUDGETS = (512, 512, 1024, 1024)


def f2(budget: int, beta: float = 4.0, longest: int = 4096) -> float:
    return beta * math.cos(math.pi * budget / (2 * longest))


def group(
    rewards: Sequence[float], budgets: Sequence[int | None] = BUDGETS, **fields: Any
) -> Group:
    """Rollouts of announced budgets; `rewards` is all that the components sum to."""
    rollouts = []
    for g, budget in enumerate(budgets):
        rollout = made.rollout(g, range(11, 12 + g))
        plan = replace(rollout.plan, subgroup=str(budget), target=budget, max_tokens=4096)
        rollouts.append(replace(rollout, plan=plan))
    right = [1.0 if r > 0 else r * 0 for r in rewards]
    shaped = np.array(rewards, dtype=float) - right
    base = made.group(right, rollouts=tuple(rollouts), **fields)
    return replace(base, rewards={**base.rewards, "hbpo": shaped.reshape(-1, 1, 1)})


def rows_of(groups: Sequence[Group], **settings: Any) -> list[TrainSequence]:
    module, config = seam.resolve("trainer.algorithms", {"name": "hbpo", **settings})
    found: list[TrainSequence] = module.sequences(groups, config)
    return found


def advantages(groups: Sequence[Group], **settings: Any) -> list[float]:
    """One per row, which all its trained tokens carry."""
    rows = rows_of(groups, **settings)
    for row in rows:
        assert len(set(row.advantages_T[row.mask_T].tolist())) == 1
    return [float(row.advantages_T[row.mask_T][0]) for row in rows]


@vectors.each("hbpo_advantage")
def test_hbpo_of_the_vectors(case: vectors.Case) -> None:
    inputs = case["inputs"]
    assert inputs["std_ddof"] == 1
    ids = inputs["group_ids"]
    found = np.zeros(len(ids))
    for serial, key in enumerate(dict.fromkeys(ids)):
        at = [i for i, other in enumerate(ids) if other == key]
        one = group(
            [inputs["rewards"][i] for i in at], [inputs["budgets"][i] for i in at], serial=serial
        )
        settings = {"beta": inputs["beta"], "eps": inputs["eps"]}
        found[at] = advantages([one], max_tokens=inputs["L_max"], **settings)
    vectors.check(case, {"paper": found})


def test_a_budget_is_measured_by_what_it_could_earn() -> None:
    rewards = np.array([f2(512), f2(512), f2(1024), 0.0])
    outer = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    inner = np.array([0, 0, -f2(1024) / 2, -f2(1024) / 2])  # 512 earned all it could, 1024 half
    assert advantages([group(rewards.tolist())]) == pytest.approx(inner + outer, abs=1e-6)


def test_a_group_that_is_all_wrong_is_pushed_away_unless_told_not_to() -> None:
    wrong = group([0.0, 0.0, 0.0, 0.0])
    assert advantages([wrong]) == pytest.approx([-f2(b) for b in BUDGETS])
    assert advantages([wrong], zero_if_all_wrong=True) == [0, 0, 0, 0]
    mixed = group([f2(512), 0.0, 0.0, 0.0])
    assert advantages([mixed], zero_if_all_wrong=True) == advantages([mixed])


def test_unknown_rewards_leave_every_mean() -> None:
    known = advantages([group([f2(512), 0.0, f2(1024)], [512, 1024, 1024])])
    with_unknown = advantages(
        [group([f2(512), np.nan, 0.0, f2(1024), np.nan], [512, 512, 1024, 1024, 64])]
    )
    assert with_unknown == pytest.approx(known)


def test_truncated_rollouts_may_leave_the_budgets_mean() -> None:
    one = group([f2(512), 0.0, f2(1024), f2(1024)])
    cut = replace(one.rollouts[1].final, tokens=made.run((21, 22), 1, "length"))
    rollouts = (one.rollouts[0], replace(one.rollouts[1], answers=((cut,),)), *one.rollouts[2:])
    one = replace(one, rollouts=rollouts)
    used = np.array([f2(512), f2(1024), f2(1024)])
    inter = (np.array([f2(512), 0.0, f2(1024), f2(1024)]) - used.mean()) / used.std(ddof=1)
    got = advantages([one], exclude_truncated_from_stats=True)
    assert got == pytest.approx(inter, abs=1e-3)  # every counted one earned all it could
    assert advantages([one])[0] < got[0] - 1


def test_selecting_changes_no_baseline() -> None:
    whole = advantages([group([f2(512), 0.0, 0.0, 1.0])])
    kept = np.array([True, False, False, True])
    assert advantages([group([f2(512), 0.0, 0.0, 1.0], kept_G=kept)]) == [whole[0], whole[3]]


def test_a_rollout_without_a_target_is_compared_with_the_group_alone() -> None:
    plain, _ = advantages([group([1.0, 0.0], [None, None])])
    assert plain == pytest.approx(np.sqrt(0.5), abs=1e-5)


def test_what_it_needs_and_refuses_to_run_without() -> None:
    module, config = seam.resolve("trainer.algorithms", "hbpo")
    reward = "shaping hbpo with beta=4 and max_tokens=None"
    assert set(module.requires(config)) == {"subgroups", "target length", reward}
    assert rows_of([]) == []


@pytest.mark.parametrize("scale", [{}, {"beta": 2}, {"max_tokens": 64}, {"beta": 4, "alpha": 0.1}])
def test_its_reward_must_be_of_the_same_scale(scale: dict[str, Any]) -> None:
    recipe = {
        "name": "x",
        "model": {"path": "base/find"},
        "data": {"task": "find"},
        "rollout": {"max_tokens": 64},
        "budget": {"name": "hierarchical", "budgets": [8, 16], "prefill": "{budget}~"},
        "rollouts_per_prompt": 4,
        "shaping": [{"name": "hbpo", **scale}],
    }
    own = {key: value for key, value in scale.items() if key != "alpha"}
    assert resolve({**recipe, "algorithm": {"name": "hbpo", **own}}).stages
    with pytest.raises(ValueError, match="algorithm=hbpo needs shaping hbpo with beta=3 and"):
        resolve({**recipe, "algorithm": {"name": "hbpo", **own, "beta": 3}})
    with pytest.raises(ValueError, match="and max_tokens=99: its baseline"):
        resolve({**recipe, "algorithm": {"name": "hbpo", **own, "max_tokens": 99}})
