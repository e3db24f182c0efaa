"""T1 (2501.11651): leave-one-out advantages, and KL to a moving reference as a token's reward.

A token of a rollout gets A_rloo - beta (k - mean k), where k = log(policy / reference) of that
token under the weights that the step begins with, and the mean is over all trained tokens of the
batch: on average it neither rewards nor punishes, it only says which tokens stray. The other half
is the loss: `loss: {kl: k2, kl_coef: 0, reference: ema, entropy_coef: 0.001}` (coefficients of the
bonus and of the moving average are unpublished). No code was released.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from samplers.types import Group
from trainer import credit
from trainer.algorithms import _plain
from trainer.types import TrainSequence

requires = _plain.requires


class Config(_plain.Config):
    base: credit.Form = "rloo"
    """What the KL is taken from: against the mean of the others (rloo, the paper), centred
    (dr_grpo) or standardised (grpo)."""
    beta: float = Field(2e-4, ge=0)
    """Weight of the KL (the paper's)."""


def needs(config: Config) -> set[str]:
    return {"old_logprobs", "ref_logprobs"}


def refuses(config: Config) -> Mapping[str, str]:
    return {
        "kl none": "the reference then stands still and is in no estimate of memory; set loss: "
        "{kl: k2, kl_coef: 0, reference: ema}, which measures it and keeps it moving",
        "one rollout a prompt": "there are no others to compare it with; raise rollouts_per_prompt",
    }


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """The rollout's advantage less beta times the token's centred log ratio."""
    advantages = _plain.advantages(groups, config, credit.FORMS[config.base])
    rows = _plain.sequences(groups, advantages, config)
    gaps = [_gap(row) for row in rows]
    trained = [gap_T[row.mask_T] for gap_T, row in zip(gaps, rows, strict=True)]
    pool = np.concatenate([np.empty(0), *trained])
    mean = pool.mean() if len(pool) else 0.0
    return [
        _plain.added(row, -config.beta * (gap_T - mean))
        for row, gap_T in zip(rows, gaps, strict=True)
    ]


def _gap(row: TrainSequence) -> _plain.Floats:
    """[T] log(policy / reference); 0 where the token is not trained on."""
    old_T, ref_T = row.old_T, row.ref_T
    assert old_T is not None, "t1 needs old_logprobs"
    assert ref_T is not None, "t1 needs ref_logprobs"
    return np.where(row.mask_T, old_T.astype(np.float64) - ref_T, 0.0)
