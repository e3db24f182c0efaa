"""The reward alarm where training has a cap that evaluations have not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.test_alarms import history, raised


def capped(records: list[dict[str, Any]], most: float = 0.8) -> list[dict[str, Any]]:
    """The same run under a cap that cuts off `most` of the rollouts at first, and none later."""
    steps = len(records) - 1
    out = []
    for record in records:
        cut = most * float(np.clip(1 - 2 * record["step"] / steps, 0, 1))
        made = {**record, "truncated": cut} if record["step"] else dict(record)
        for name in ("reward/correct", "reward/total"):
            if name in made:
                made[name] *= 1 - cut
        out.append(made)
    return out


@pytest.mark.parametrize("seed", range(5))
def test_what_fits_under_a_cap_is_not_unearned(seed: int) -> None:
    records = capped(history(seed=seed))
    assert "reward" not in raised(records)
    blind = [{k: v for k, v in r.items() if k != "truncated"} for r in records]
    assert "reward" in raised(blind), "this run would be told on without the share cut off"


@pytest.mark.parametrize("seed", range(5))
def test_a_reward_that_is_fooled_under_a_cap_is_told(seed: int) -> None:
    records = capped(history(seed=seed, held_out=0.5, accuracy=lambda t: 0.4 + 0.5 * t))
    assert raised(records).get("reward")


def test_a_batch_that_is_cut_off_whole_says_nothing() -> None:
    records = [
        r | ({"truncated": 1.0, "reward/correct": 0.0} if r["step"] else {}) for r in history()
    ]
    assert "reward" not in raised(records)
