"""T1: the KL's place in the advantage, and what the loss must bring."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from samplers import seam
from samplers.types import Group
from tests import made
from trainer import credit, rows
from trainer.types import TrainSequence


def group(rewards: list[float], serial: int = 0, seed: int = 0) -> Group:
    """With logprobs of the policy and of the reference, as learners annotate them."""
    rng = np.random.default_rng(seed)
    one = made.group(rewards, serial=serial)
    for name in ("old", "ref"):
        values = []
        for row in rows.rows(replace(one, kept_G=None)):
            values_T = np.full(len(row), np.nan, np.float32)
            values_T[row.mask_T] = -rng.exponential(1.0, int(row.mask_T.sum()))
            values.append(values_T)
        (one,) = rows.annotate([one], name, values)
    return one


def rows_of(groups: list[Group], **settings: Any) -> list[TrainSequence]:
    module, config = seam.resolve("trainer.algorithms", {"name": "t1", **settings})
    found: list[TrainSequence] = module.sequences(groups, config)
    return found


def test_by_the_book() -> None:
    groups = [group([1.0, 0.0, 0.0], seed=1), group([1.0, 1.0], serial=1, seed=2)]
    got = rows_of(groups, beta=0.5)
    base = np.concatenate(credit.rloo([np.array([1.0, 0, 0]), np.array([1.0, 1.0])]))
    gaps = [(row.old_T - row.ref_T)[row.mask_T] for row in got]  # type: ignore[operator]
    mean = np.concatenate(gaps).mean()
    for row, advantage, gap in zip(got, base, gaps, strict=True):
        assert row.advantages_T[row.mask_T] == pytest.approx(advantage - 0.5 * (gap - mean), 1e-5)
        assert not row.advantages_T[~row.mask_T].any()


def test_the_kl_pays_nothing_on_average() -> None:
    groups = [group([1.0, 1.0, 1.0], seed=3)]
    got = rows_of(groups, beta=1.0)
    trained = np.concatenate([row.advantages_T[row.mask_T] for row in got])
    assert np.abs(trained).max() > 0.1
    assert trained.mean() == pytest.approx(0, abs=1e-6)


def test_a_shift_of_every_log_ratio_changes_nothing() -> None:
    one = group([1.0, 0.0], seed=4)
    ref = tuple(values_T - 3 for values_T in one.annotations["ref"])
    moved = replace(one, annotations={**one.annotations, "ref": ref})
    for a, b in zip(rows_of([one]), rows_of([moved]), strict=True):
        assert a.advantages_T == pytest.approx(b.advantages_T, abs=1e-6)


def test_where_the_reference_is_the_policy_it_is_leave_one_out() -> None:
    one = group([1.0, 0.0, 0.0], seed=5)
    same = replace(one, annotations={**one.annotations, "ref": one.annotations["old"]})
    module, config = seam.resolve("trainer.algorithms", "rloo")
    for a, b in zip(rows_of([same]), module.sequences([same], config), strict=True):
        assert np.array_equal(a.advantages_T, b.advantages_T)


def test_the_tokens_of_a_masked_rollout_are_in_no_mean() -> None:
    one = group([1.0, 0.0], seed=6)
    cut = replace(
        one.rollouts[1],
        answers=((replace(one.rollouts[1].final, tokens=made.run((21, 22), 1, "length")),),),
    )
    masked = replace(one, rollouts=(one.rollouts[0], cut))
    first, second = rows_of([masked], mask_truncated=True, beta=1.0)
    assert not second.mask_T.any()
    gap = (first.old_T - first.ref_T)[first.mask_T]  # type: ignore[operator]
    assert first.advantages_T[first.mask_T] == pytest.approx(1.0 - (gap - gap.mean()), abs=1e-5)


def test_what_it_asks_of_the_learners_and_of_the_loss() -> None:
    module, config = seam.resolve("trainer.algorithms", "t1")
    assert config.beta == 2e-4
    assert module.needs(config) == {"old_logprobs", "ref_logprobs"}
    assert "reference: ema" in module.refuses(config)["kl none"]
    assert rows_of([]) == []
