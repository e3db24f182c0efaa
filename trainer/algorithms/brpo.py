"""BRPO of AnytimeReasoner (Qi et al. 2025, 2505.13438): dense credit from nested budgets.

A thought is cut at S budgets of prior P and answered A times at each. Segment s of the thought (its
tokens between budgets s-1 and s) is worth what the budgets from s on bring, R_s = sum_{k>=s} P_k
r_k, against a baseline that weighs two estimates of it, (s V1 + (S-s) V2) / S:

    V1_s = (sum_{k<s} 2^k r_k / sum_{k<s} 2^k) sum_{k>=s} P_k    its own past; V1_0 = 0
    V2_s = mean of R_s over the rollouts of the prompt           0 for one without company

Answers are trained beside, each against the others of its truncation point, under every budget with
equal weight; forced text never is. No deviation divides anything. The paper's loss is a sum over a
constant length: `loss: {aggregation: drgrpo, norm_length: ...}`.

Cuts may differ between rollouts (they may be drawn): a segment ends where its own rollout was cut.
Cuts at or beyond the end of a thought collapse to one truncation point; the last segment's return
holds the rewards of all of them. A thought that is cut has the length of the cut whatever it does:
`shaping` says at which cuts length rewards and the like count. Unknown answers leave every mean; a
rollout with a cut of which no answer is known is not trained on.

Shape suffixes: G rollouts of a group, S cuts, A answers per cut, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rewards.apply import CORRECT
from samplers.facts import CUT_CREDIT, CUTS, TOKEN_REWARDS, TREES
from samplers.seam import Component
from samplers.types import Group, Rollout
from trainer import rows
from trainer.types import TrainSequence

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]
VarianceReduction = Literal["brpo", "v1only", "v2only", "none", "notrain"]
Baseline = Literal["centred", "leave_one_out"]


class Config(Component):
    variance_reduction: VarianceReduction = "brpo"
    """Baseline of the thought: both estimates, one of them (v2only is GRPO without deviation), or
    none; notrain: advantage 0, only answers learn. The paper's ablations."""
    summary: Literal["brpo", "grpo", "none"] = "brpo"
    """Which answers learn: all; the last one of the last cut, as GRPO's would; none."""
    answer_weight: float = Field(1.0, ge=0)
    """Weight of the loss of forced answers, those to a thought that was cut. 1 is the paper's; on
    the tiny model 0 to 0.25 is safer early on. At 0 they are not trained on and cost nothing. The
    answer to a thought that ended by itself always weighs 1."""
    shaping: Literal["cuts", "final", "rollout"] = "cuts"
    """Where the reward components beside `correct` count for a thought: at every cut, each with
    what it is there; at the last cut alone, by that cut's prior; or the last cut's whole, against
    the group's mean, beside what the cuts bring. Answers are always compared by all components."""
    baseline: Baseline = "centred"
    """A mean over rollouts or answers holds what is compared with it (the paper), or the others."""
    ended_by_eos: Literal["zero", "close"] = "zero"
    """A thought that ended the whole response instead of itself: worth 0 at every cut at or beyond
    its end (the paper), or what the forced answer is worth."""
    rows: Literal["tree", "multi"] = "tree"
    """One training row a rollout, its answers branches of the thought under an attention mask; or a
    plain row for every answer, for attention kernels without masks. The gradients are the same."""

    @model_validator(mode="after")
    def _trains_something(self) -> Config:
        if self.variance_reduction == "notrain" and self.summary == "none":
            raise ValueError(
                "variance_reduction=notrain and summary=none train neither thoughts nor answers; "
                "set either of them to brpo"
            )
        return self


def provides(config: Config) -> set[str]:
    return {CUT_CREDIT, TREES} if config.rows == "tree" else {CUT_CREDIT}


def requires(config: Config) -> dict[str, str]:
    return {CUTS: "segments of a thought are credited by what was answered at its cuts"}


def refuses(config: Config) -> dict[str, str]:
    out = {
        TOKEN_REWARDS: "they are of the final answer alone, and every cut has one",
        "importance normalized": "its mean is over rows that are scored before there are branches",
    }
    if config.rows == "tree":
        out["packed rows"] = (
            "branches need an attention mask of their own; set algorithm.rows=multi"
        )
    else:
        why = "a sequence would be a single answer of a rollout; set algorithm.rows=tree"
        out |= {"loss gspo": why, "importance sequence": why}
    return out


def sequences(groups: Sequence[Group], config: Config) -> list[TrainSequence]:
    """Rows of the kept rollouts, each trained token with its segment's or answer's advantage."""
    trees = [tree for group in groups for tree in _trees(group, config)]
    return trees if config.rows == "tree" else [row for t in trees for row in rows.branches(t)]


def _trees(group: Group, config: Config) -> list[TrainSequence]:
    scores_GSA = scores(group, config)
    after_GS = np.array([[cut[0].after for cut in r.answers] for r in group.rollouts])
    split_GS = np.argmax(after_GS[:, :, None] == after_GS[:, None, :], axis=2)
    thought_GS = _thoughts(group, config)
    answers_GSA = answering(scores_GSA, split_GS, config.summary, config.baseline)
    known_G = ~np.isnan(thought_GS).any(axis=1)
    kept_G = known_G if group.kept_G is None else known_G & group.kept_G
    return [
        _credited(group, int(g), thought_GS[g], answers_GSA[g], config.answer_weight)
        for g in np.flatnonzero(kept_G)
    ]


def _thoughts(group: Group, config: Config) -> Floats:
    """[G, S] advantage of each segment, shaping where `config.shaping` has it."""
    how = (config.variance_reduction, config.baseline)
    scores_GSA, prior_GS = scores(group, config), priors(group)
    if config.shaping == "cuts":
        return thinking(scores_GSA, prior_GS, *how).advantages_GS
    correct = replace(group, rewards={CORRECT: group.rewards[CORRECT]})
    bare_GSA = scores(correct, config)
    if config.shaping == "final":
        bare_GSA[:, -1] = scores_GSA[:, -1]
        return thinking(bare_GSA, prior_GS, *how).advantages_GS
    shaped_G1A = (scores_GSA - bare_GSA)[:, -1:]
    shaped_G1 = thinking(shaped_G1A, np.ones((len(group), 1)), *how).advantages_GS
    return thinking(bare_GSA, prior_GS, *how).advantages_GS + shaped_G1


def _credited(
    group: Group, g: int, thought_S: Floats, answers_SA: Floats, answer_weight: float
) -> TrainSequence:
    """Tree row of rollout g; what has no advantage (NaN) is not trained on."""
    rollout, row = group.rollouts[g], rows.tree_row(group, g)
    after_S = np.array([cut[0].after for cut in rollout.answers])
    own_S = rollout.ended & (after_S == len(rollout.thought))
    weight_S = np.where(own_S, 1.0, answer_weight or np.nan)
    runs = [len(answer.tokens) for cut in rollout.answers for answer in cut]
    segment_T = np.searchsorted(after_S, np.arange(after_S[-1]), side="right")
    advantages_T = np.concatenate(
        [
            np.zeros(len(rollout.prompt_ids_T)),
            thought_S[segment_T],
            np.repeat((answers_SA * weight_S[:, None]).reshape(-1), runs),
        ]
    )
    mask_T = row.mask_T & ~np.isnan(advantages_T)
    advantages_T = np.where(mask_T, advantages_T, 0.0).astype(np.float32)
    return replace(row, mask_T=mask_T, advantages_T=advantages_T)


def scores(group: Group, config: Config) -> Floats:
    """[G, S, A] reward of every answer, NaN where unknown."""
    scores_GSA = group.total_GCA.copy()
    if group.verdicts:
        scores_GSA[~group.known_GCA] = np.nan
    if config.ended_by_eos == "zero":
        for g, rollout in enumerate(group.rollouts):
            if _ended_by_eos(rollout):
                past_S = [cut[0].after >= len(rollout.thought) for cut in rollout.answers]
                scores_GSA[g, past_S] = 0.0
    return scores_GSA


def _ended_by_eos(rollout: Rollout) -> bool:
    return rollout.thought.finish == "stop" and not rollout.ended


def priors(group: Group) -> Floats:
    """[G, S] prior probability of each cut as a test-time budget."""
    return np.array(
        [r.plan.weights or np.full(len(r.answers), 1.0 / len(r.answers)) for r in group.rollouts]
    )


class Thinking(NamedTuple):
    """What `thinking` finds, [G, S] each; NaN for a rollout of which not every cut is known."""

    advantages_GS: Floats
    v1_GS: Floats
    v2_GS: Floats
    returns_GS: Floats


def thinking(
    scores_GSA: Floats,
    prior_GS: Floats,
    variance_reduction: VarianceReduction = "brpo",
    baseline: Baseline = "centred",
) -> Thinking:
    """Advantage of each segment of each thought of one prompt."""
    G, S, _ = scores_GSA.shape
    sums_GS, known_GS = _sums(scores_GSA)
    mean_GS = np.where(known_GS > 0, sums_GS / np.maximum(known_GS, 1), np.nan)
    returns_GS = _from_here_on(prior_GS * mean_GS)
    recent_S = 2.0 ** np.arange(S)
    past_GS = np.cumsum(recent_S * mean_GS, axis=1) / np.cumsum(recent_S)
    v1_GS = np.zeros((G, S))
    v1_GS[:, 1:] = past_GS[:, :-1] * _from_here_on(prior_GS)[:, 1:]
    unknown_G = np.isnan(returns_GS[:, 0])
    v1_GS[unknown_G] = returns_GS[unknown_G] = np.nan
    total_S, count = returns_GS[~unknown_G].sum(axis=0), int((~unknown_G).sum())
    if count < 2:
        v2_GS = np.where(unknown_G[:, None], np.nan, np.zeros((G, S)))
    elif baseline == "centred":
        v2_GS = np.where(unknown_G[:, None], np.nan, total_S / count)
    else:
        v2_GS = (total_S - returns_GS) / (count - 1)
    share_S = np.arange(S) / S
    baseline_GS = {
        "brpo": share_S * v1_GS + (1 - share_S) * v2_GS,
        "v1only": v1_GS,
        "v2only": v2_GS,
        "none": 0.0,
        "notrain": returns_GS,
    }[variance_reduction]
    return Thinking(returns_GS - baseline_GS, v1_GS, v2_GS, returns_GS)


def answering(
    scores_GSA: Floats,
    split_GS: Ints,
    summary: Literal["brpo", "grpo", "none"] = "brpo",
    baseline: Baseline = "centred",
) -> Floats:
    """[G, S, A] advantage of each answer, NaN where its score is unknown or it is not trained on.

    Several answers per cut: against the answers of the same thought at the same truncation point.
    One: against the group's answers at the same cut. 0 where there is none to compare it with.

    Args:
        split_GS: index of the first cut of each cut's truncation point.
        summary: grpo: only the last answer of the last cut is trained on. none: no answer.
    """
    if summary == "none":
        return np.full(scores_GSA.shape, np.nan)
    sums_GS, known_GS = _sums(scores_GSA)
    if scores_GSA.shape[2] == 1:
        sums_GS, known_GS = sums_GS.sum(axis=0)[None], known_GS.sum(axis=0)[None]
    else:
        same_GSS = (split_GS[:, :, None] == split_GS[:, None, :]).astype(np.float64)
        sums_GS = (same_GSS @ sums_GS[..., None])[..., 0]
        known_GS = (same_GSS @ known_GS[..., None])[..., 0]
    sums_GS1, known_GS1 = sums_GS[..., None], known_GS[..., None]
    if baseline == "centred":
        out_GSA = scores_GSA - sums_GS1 / np.maximum(known_GS1, 1)
    else:
        out_GSA = (known_GS1 * scores_GSA - sums_GS1) / np.maximum(known_GS1 - 1, 1)
    if summary == "grpo":
        out_GSA[:, :-1] = out_GSA[:, -1:, :-1] = np.nan
    return out_GSA


def _sums(scores_GSA: Floats) -> tuple[Floats, Ints]:
    """[G, S] sum and number of the known scores at each cut."""
    return np.nansum(scores_GSA, axis=2), (~np.isnan(scores_GSA)).sum(axis=2)


def _from_here_on(values_GS: Floats) -> Floats:
    return np.cumsum(values_GS[:, ::-1], axis=1)[:, ::-1]
