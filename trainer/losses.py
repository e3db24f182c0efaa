"""Policy losses over a flat list of scored tokens.

Shape suffixes: N scored tokens, R rows. `row_N` says which row a token belongs to, for
sequence-level quantities; nothing here knows of padding, packing or trees. The weight of a
token already holds the aggregation (`trainer/batching.py`), so the loss is a plain sum.

Names of logprobs: `current` (with gradient), `old` (the learner before the batch's first update;
None where there is only one update: the detached current), `behaviour` (the engine's), `ref`.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from samplers.seam import Component

if TYPE_CHECKING:
    from torch import Tensor

Name = Literal["ppo_clip", "gspo", "cispo", "cispo_cap", "gppo", "ce"]
Aggregation = Literal[
    "token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "drgrpo", "drgrpo_verl"
]
Kl = Literal["none", "k1", "k2", "k3", "abs"]
Level = Literal["none", "token", "sequence"]

LOG_BOUND = 20.0
"""Log ratios are clamped to +-20 before exp, as in verl."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "gspo": {"eps_low": 3e-4, "eps_high": 4e-4, "aggregation": "seq_mean_token_mean"},
}
_READ_BY = {
    "eps_low": {"ppo_clip", "gspo", "cispo", "gppo"},
    "eps_high": {"ppo_clip", "gspo", "cispo", "gppo"},
    "cap": {"cispo_cap"},
    "dual_clip": {"ppo_clip", "gppo"},
    "delta": {"ppo_clip", "gspo"},
}


class LossConfig(Component):
    """The policy loss, how it is aggregated, and the terms beside it."""

    name: Name = "ppo_clip"
    """ppo_clip: PPO with separate bounds (DAPO's clip-higher). gspo: one ratio per sequence
    (Zheng et al. 2025). cispo: clipped ratio as a constant weight (MiniMax-M1), both bounds
    relative as in verl. cispo_cap: the same with one absolute cap, as in TRL. gppo: PPO's value,
    bounded gradient where it clips (Klear-Reasoner). ce: advantage-weighted log likelihood."""
    eps_low: float = Field(0.2, ge=0, le=1)
    """The ratio is clipped at 1 - eps_low. gspo: 3e-4 unless set."""
    eps_high: float = Field(0.28, ge=0)
    """The ratio is clipped at 1 + eps_high. gspo: 4e-4 unless set."""
    cap: float = Field(5.0, gt=0)
    """cispo_cap: the largest weight a token can have (an absolute ratio, not 1 + eps)."""
    dual_clip: float | None = Field(None, gt=1)
    """Bound on the loss of a bad token, in units of |advantage| (verl 3, DAPO-type recipes 10)."""
    delta: float | None = Field(None, gt=1)
    """TRL's one-sided bound: the unclipped ratio is capped here, which bounds bad tokens too."""
    aggregation: Aggregation = "token_mean"
    """token_mean (DAPO), seq_mean_token_mean (GRPO), seq_mean_token_sum, drgrpo: sum / (rows x
    norm_length) (Dr.GRPO in TRL; just_mean of AnytimeReasoner), drgrpo_verl: sum / norm_length.
    gspo: seq_mean_token_mean unless set."""
    norm_length: int | None = Field(None, ge=1)
    """Tokens; the constant of the drgrpo aggregations, usually the response cap."""
    kl: Kl = "none"
    """Estimator of KL(current, reference) per token. k2's gradient is right; k3's nearly."""
    kl_coef: float = Field(0.0, ge=0)
    """Weight of the KL term; 0 only measures it."""
    reference: Literal["frozen", "ema"] = "frozen"
    """frozen: the model the stage began with. ema: a moving average of the trained one."""
    reference_decay: float = Field(0.99, ge=0, le=1)
    """ema: share of the old reference kept at each optimiser step."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    positive_ce_coef: float = Field(0.0, ge=0)
    """Weight of -logprob on tokens of positive advantage, beside the policy loss and aggregated as
    it is: with a 0/1 reward and a group's baseline, of right rollouts (Klear-Reasoner, 0.1; its
    code averages over their tokens alone)."""
    importance: Level = "none"
    """Truncated importance sampling old / behaviour, for the gap between engine and learner."""
    importance_cap: float = Field(2.0, gt=0)
    """Importance weights are truncated here."""
    importance_normalize: bool = False
    """Divide importance weights by their mean over the optimiser step. Costs a scoring pass."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_loss(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {**_DEFAULTS.get(str(data.get("name")), {}), **data}

    @model_validator(mode="after")
    def _combine(self) -> LossConfig:
        if self.aggregation.startswith("drgrpo") and self.norm_length is None:
            raise ValueError(
                f"norm_length: not set, and aggregation '{self.aggregation}' divides by it; "
                "set it to a number of tokens (usually rollout.max_tokens)"
            )
        if self.kl == "none" and self.kl_coef:
            raise ValueError(
                f"kl_coef: {self.kl_coef} with kl 'none'; choose kl: k2 or k3, or set kl_coef: 0"
            )
        for reason in self._without_effect():
            warnings.warn(f"loss.{reason}", stacklevel=2)
        if self.kl == "k1" and self.kl_coef:
            warnings.warn("loss.kl: the gradient of k1 is 0 on average; use k2", stacklevel=2)
        return self

    def _without_effect(self) -> list[str]:
        """One line per setting that was changed and that nothing reads."""
        unread = {
            f: f"name '{self.name}'" for f, names in _READ_BY.items() if self.name not in names
        }
        if not self.aggregation.startswith("drgrpo"):
            unread["norm_length"] = f"aggregation '{self.aggregation}'"
        if self.kl == "none":
            unread["reference"] = "kl 'none'"
        if self.reference != "ema" or self.kl == "none":
            unread["reference_decay"] = f"reference '{self.reference}' and kl '{self.kl}'"
        if self.importance == "none":
            unread |= dict.fromkeys(("importance_cap", "importance_normalize"), "importance 'none'")
        fields = type(self).model_fields
        return [
            f"{field}: {getattr(self, field)} has no effect with {why}"
            for field, why in unread.items()
            if getattr(self, field) != fields[field].default
        ]

    @property
    def only_policy(self) -> bool:
        """Tokens of advantage 0 have no gradient: there is no other term."""
        return not self.kl_coef and not self.entropy_coef


def needs(config: LossConfig, updates: int) -> set[str]:
    """Logprobs that must be known before the first of `updates` optimiser steps on a batch.

    With importance_normalize already when the batch is packed: its mean is over all rows.
    """
    importance = config.importance != "none"
    ratio = updates > 1 and (config.name != "ce" or importance)
    normalized = importance and config.importance_normalize
    wanted = {"old_logprobs": ratio or normalized, "ref_logprobs": config.kl != "none"}
    return {name for name, needed in wanted.items() if needed}


def policy_loss(
    config: LossConfig,
    current_N: Tensor,
    entropy_N: Tensor | None,
    *,
    weights_N: Tensor,
    advantages_N: Tensor,
    behaviour_N: Tensor,
    row_N: Tensor,
    rows: int,
    old_N: Tensor | None = None,
    ref_N: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over the tokens of weight x (policy + positive_ce_coef x cross-entropy of the good ones
    + kl_coef x KL - entropy_coef x entropy).

    Args:
        weights_N: normalised over the whole optimiser step; 0 marks filler, which no metric counts.
        behaviour_N: NaN where the token has none; its importance weight is then 1.
        row_N: row of each token, in [0, rows).

    Returns:
        The scalar loss, and per metric a [2] tensor (sum, count) to be added up over micro-batches
        and ranks, or for a name that ends in `_max` a scalar to take the largest of.
    """
    on_policy_N, counted_N = current_N.detach(), weights_N > 0
    old_N = on_policy_N if old_N is None else old_N
    sampled_N = ~behaviour_N.isnan() & counted_N
    metrics = _engine_gap(old_N, behaviour_N, sampled_N)

    def mean(name: str, values_N: Tensor, where_N: Tensor = counted_N) -> None:
        metrics[name] = _summed(values_N.detach().float(), where_N)

    if config.importance != "none":
        importance_N = importance_weights(config, old_N - behaviour_N, row_N, rows)
        mean("importance", importance_N, sampled_N)
        if not config.importance_normalize:  # else batching has put them into the advantages
            advantages_N = advantages_N * importance_N
    loss_N, clipped = _POLICY[config.name](config, current_N, old_N, advantages_N, row_N, rows)
    for name, clipped_N in clipped.items():
        mean(name, clipped_N)
    if config.positive_ce_coef:
        good_N = advantages_N > 0
        mean("positive_ce", -on_policy_N, counted_N & good_N)
        loss_N = loss_N - config.positive_ce_coef * good_N * current_N
    mean("ppo_kl", old_N - on_policy_N)
    if ref_N is not None and config.kl != "none":
        kl_N = kl_estimate(config.kl, current_N, ref_N)
        mean("ref_kl", kl_N)
        if config.kl_coef:
            loss_N = loss_N + config.kl_coef * kl_N
    if entropy_N is not None:
        mean("entropy", entropy_N)
        if config.entropy_coef:
            loss_N = loss_N - config.entropy_coef * entropy_N
    return (weights_N * loss_N).sum(), metrics


def _engine_gap(old_N: Tensor, behaviour_N: Tensor, sampled_N: Tensor) -> dict[str, Tensor]:
    """Of old, not current, logprobs: also after the first of several updates both sides had the
    same weights."""
    import torch

    gap_N = torch.where(sampled_N, (old_N - behaviour_N).abs(), 0.0).detach()
    largest = gap_N.max() if len(gap_N) else gap_N.sum()
    return {"engine_gap": _summed(gap_N.float(), sampled_N), "engine_gap_max": largest}


def _summed(values_N: Tensor, where_N: Tensor) -> Tensor:
    """[2]: sum and count of the values that `where_N` names."""
    import torch

    summed = torch.where(where_N, values_N, 0.0).sum()
    return torch.stack([summed, where_N.sum().to(summed)])


def importance_weights(config: LossConfig, log_ratio_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """min(exp(old - behaviour), cap) per token, or of the summed log ratio per row. Detached.

    A NaN log ratio (no behaviour logprob) counts as 0. With `importance_normalize` the weights are
    divided by their mean over the tokens (over the rows, at sequence level) that are handed in,
    which must then be the whole optimiser step. Source: verl `rollout_corr_helper.py`.
    """
    import torch

    log_ratio_N = log_ratio_N.detach().nan_to_num(nan=0.0)
    if config.importance == "sequence":
        log_ratio_N = _row_sums(log_ratio_N, row_N, rows)[row_N]
    weights_N = log_ratio_N.clamp(-LOG_BOUND, LOG_BOUND).exp().clamp(max=config.importance_cap)
    if not config.importance_normalize or not len(weights_N):
        return weights_N
    if config.importance == "token":
        return weights_N / weights_N.mean()
    each_N = _row_sums(torch.ones_like(weights_N), row_N, rows)[row_N]
    rows_present = (1.0 / each_N).sum()
    return weights_N / ((weights_N / each_N).sum() / rows_present)


def kl_estimate(kind: str, current_N: Tensor, ref_N: Tensor) -> Tensor:
    """Per-token estimate of KL(current || ref), nats (Schulman 2020; clamps as in verl)."""
    difference_N = current_N - ref_N
    if kind == "k1":
        return difference_N
    if kind == "abs":
        return difference_N.abs()
    if kind == "k2":
        return difference_N.square() / 2
    assert kind == "k3", kind
    minus_N = (-difference_N).clamp(-LOG_BOUND, LOG_BOUND)
    return (minus_N.exp() - minus_N - 1).clamp(-10.0, 10.0)


def _row_sums(values_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    return values_N.new_zeros(rows).index_add(0, row_N, values_N)


Clipped = dict[str, "Tensor"]


def _ratio(current_N: Tensor, old_N: Tensor) -> Tensor:
    return (current_N - old_N).clamp(-LOG_BOUND, LOG_BOUND).exp()


def _worse(
    config: LossConfig, advantages_N: Tensor, ratio_N: Tensor, clipped_N: Tensor
) -> tuple[Tensor, Clipped]:
    """PPO's pessimism: the larger of the losses at the ratio and at the clipped ratio."""
    import torch

    if config.delta is not None and config.name in _READ_BY["delta"]:
        ratio_N = ratio_N.clamp(max=config.delta)
    free_N, bounded_N = -advantages_N * ratio_N, -advantages_N * clipped_N
    loss_N = torch.maximum(free_N, bounded_N)
    metrics = {"clip_fraction": bounded_N > free_N}
    if config.dual_clip is not None and config.name in _READ_BY["dual_clip"]:
        ceiling_N = -advantages_N * config.dual_clip
        metrics["clip_fraction_low"] = (loss_N >= ceiling_N) & (advantages_N < 0)
        loss_N = torch.where(advantages_N < 0, torch.minimum(loss_N, ceiling_N), loss_N)
    return loss_N, metrics


def _ppo_clip(
    config: LossConfig, current_N: Tensor, old_N: Tensor, advantages_N: Tensor, *_: Any
) -> tuple[Tensor, Clipped]:
    ratio_N = _ratio(current_N, old_N)
    clipped_N = ratio_N.clamp(1 - config.eps_low, 1 + config.eps_high)
    return _worse(config, advantages_N, ratio_N, clipped_N)


def _gppo(
    config: LossConfig, current_N: Tensor, old_N: Tensor, advantages_N: Tensor, *_: Any
) -> tuple[Tensor, Clipped]:
    """The value is PPO's; a clipped token keeps the gradient of its bound instead of none."""
    ratio_N = _ratio(current_N, old_N)
    bounded_N = ratio_N.detach().clamp(1 - config.eps_low, 1 + config.eps_high)
    return _worse(config, advantages_N, ratio_N, bounded_N * (ratio_N / ratio_N.detach()))


def _gspo(
    config: LossConfig,
    current_N: Tensor,
    old_N: Tensor,
    advantages_N: Tensor,
    row_N: Tensor,
    rows: int,
) -> tuple[Tensor, Clipped]:
    """The ratio is the geometric mean of the row's; its gradient goes to each token straight."""
    import torch

    frozen_N = current_N.detach()
    counts_R = _row_sums(torch.ones_like(frozen_N), row_N, rows).clamp(min=1)
    mean_R = _row_sums(frozen_N - old_N, row_N, rows) / counts_R
    ratio_N = (current_N - frozen_N + mean_R[row_N]).clamp(max=10.0).exp()
    clipped_N = ratio_N.clamp(1 - config.eps_low, 1 + config.eps_high)
    return _worse(config, advantages_N, ratio_N, clipped_N)


def _cispo(
    config: LossConfig, current_N: Tensor, old_N: Tensor, advantages_N: Tensor, *_: Any
) -> tuple[Tensor, Clipped]:
    ratio_N = _ratio(current_N, old_N).detach()
    low, high = 1 - config.eps_low, 1 + config.eps_high
    if config.name == "cispo_cap":
        low, high = 0.0, config.cap
    weight_N = ratio_N.clamp(low, high)
    return -weight_N * advantages_N * current_N, {"clip_fraction": weight_N != ratio_N}


def _ce(
    config: LossConfig, current_N: Tensor, old_N: Tensor, advantages_N: Tensor, *_: Any
) -> tuple[Tensor, Clipped]:
    return -advantages_N * current_N, {}


_POLICY = {
    "ppo_clip": _ppo_clip,
    "gspo": _gspo,
    "cispo": _cispo,
    "cispo_cap": _cispo,
    "gppo": _gppo,
    "ce": _ce,
}
