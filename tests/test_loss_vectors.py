"""Policy losses, their aggregation and KL estimators against reference vectors with gradients."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch

from tests import vectors
from trainer.batching import token_weights
from trainer.losses import LossConfig, importance_weights, kl_estimate, policy_loss

AGGREGATIONS = {
    "token-mean": "token_mean",
    "seq-mean-token-mean": "seq_mean_token_mean",
    "seq-mean-token-sum": "seq_mean_token_sum",
    "seq-mean-token-sum-norm": "drgrpo_verl",
}
TRL = {  # loss type -> aggregation (one process and one optimiser step: bnpo is dapo)
    "grpo": "seq_mean_token_mean",
    "bnpo": "token_mean",
    "dr_grpo": "drgrpo",
    "dapo": "token_mean",
    "cispo": "token_mean",
}


def config(**fields: Any) -> LossConfig:
    """A config of published code, which sets fields that its loss does not read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LossConfig(**fields)


class Padded:
    """[B, T] inputs and a mask, as the flat tokens that the loss takes."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.mask_BT = torch.tensor(inputs["mask"]) > 0
        self.row_N = torch.nonzero(self.mask_BT)[:, 0]
        self.rows, self.width = self.mask_BT.shape

    def flat(self, values: Any) -> torch.Tensor:
        values_BT = torch.tensor(values, dtype=torch.float64)
        if values_BT.ndim == 1:
            values_BT = values_BT[:, None].expand(self.mask_BT.shape)
        return values_BT[self.mask_BT].clone()

    def padded(self, values_N: torch.Tensor) -> list[list[float]]:
        out = torch.zeros(self.mask_BT.shape, dtype=values_N.dtype)
        out[self.mask_BT] = values_N
        return out.tolist()

    def weights(self, loss: LossConfig) -> torch.Tensor:
        trained_B = self.mask_BT.sum(1).numpy()
        weight_B = token_weights(loss.aggregation, trained_B, loss.norm_length)
        return torch.from_numpy(weight_B)[self.row_N]


def run(inputs: dict[str, Any], loss: LossConfig) -> dict[str, Any]:
    """The shipped loss on padded inputs: value, gradient and the means of its metrics."""
    padded = Padded(inputs)
    current_N = padded.flat(inputs["log_prob"]).requires_grad_()
    advantages_N = padded.flat(inputs["advantages"])
    if inputs.get("rollout_is_weights") is not None:
        # Every loss is homogeneous in the advantage: its importance weight goes there.
        advantages_N = advantages_N * padded.flat(inputs["rollout_is_weights"])
    ref = inputs.get("ref_log_prob")
    value, metrics = policy_loss(
        loss,
        current_N,
        None,
        weights_N=padded.weights(loss),
        advantages_N=advantages_N,
        behaviour_N=torch.full_like(advantages_N, math.nan),
        row_N=padded.row_N,
        rows=padded.rows,
        old_N=padded.flat(inputs["old_log_prob"]),
        ref_N=None if ref is None else padded.flat(ref),
    )
    value.backward()
    assert current_N.grad is not None
    means = {n: float(v[0] / v[1]) for n, v in metrics.items() if v.ndim and v[1]}
    return {
        "loss": value.item(),
        "grad_log_prob": padded.padded(current_N.grad),
        "pg_clipfrac": means.get("clip_fraction"),
        "pg_clipfrac_lower": means.get("clip_fraction_low"),
        "ppo_kl": means["ppo_kl"],
    }


def verl_config(inputs: dict[str, Any], name: str, aggregation: str | None = None) -> LossConfig:
    aggregation = aggregation or AGGREGATIONS[inputs["agg"]]
    return config(
        name=name,
        eps_low=inputs["eps_low"],
        eps_high=inputs["eps_high"],
        dual_clip=inputs.get("dual_clip_c"),
        aggregation=aggregation,
        norm_length=inputs.get("norm_constant") or len(inputs["mask"][0]),
    )


@vectors.each("policy_loss_ppo_clip")
def test_ppo_clip_of_the_vectors(case: vectors.Case) -> None:
    vectors.check(case, run(case["inputs"], verl_config(case["inputs"], "ppo_clip")))


@vectors.each("policy_loss_gppo")
def test_gppo_of_the_vectors(case: vectors.Case) -> None:
    vectors.check(case, run(case["inputs"], verl_config(case["inputs"], "gppo")))


@vectors.each("policy_loss_cispo")
def test_cispo_of_the_vectors(case: vectors.Case) -> None:
    vectors.check(case, run(case["inputs"], verl_config(case["inputs"], "cispo")))


@vectors.each("policy_loss_gspo")
def test_gspo_of_the_vectors(case: vectors.Case) -> None:
    inputs = case["inputs"]
    vectors.check(case, run(inputs, verl_config(inputs, "gspo", "seq_mean_token_mean")))


@vectors.each("trl_loss")
def test_trl_losses_of_the_vectors(case: vectors.Case) -> None:
    inputs = case["inputs"]
    cispo = inputs["loss_type"] == "cispo"
    sequence = inputs.get("importance_sampling_level") == "sequence"
    loss = config(
        name="cispo_cap" if cispo else "gspo" if sequence else "ppo_clip",
        eps_low=inputs["eps_low"],
        eps_high=0.0 if cispo else inputs["eps_high"],
        cap=inputs["eps_high"] if cispo else 5.0,
        delta=inputs.get("delta"),
        aggregation=TRL[inputs["loss_type"]],
        norm_length=inputs["max_completion_length"],
        kl="k3" if inputs["beta"] else "none",
        kl_coef=inputs["beta"],
    )
    vectors.check(case, run(inputs, loss))


@vectors.each("loss_aggregation")
def test_aggregation_of_the_vectors(case: vectors.Case) -> None:
    inputs = case["inputs"]
    padded = Padded(inputs)
    norm = inputs["norm_constant"] or padded.width
    weights_N = padded.weights(config(aggregation=AGGREGATIONS[inputs["agg"]], norm_length=norm))
    vectors.check(case, {"value": float((weights_N * padded.flat(inputs["loss"])).sum())})


@vectors.each("kl_estimators")
def test_kl_estimators_of_the_vectors(case: vectors.Case) -> None:
    got = {}
    for kind in ("k1", "k2", "k3", "abs"):
        current_N = torch.tensor(case["inputs"]["log_prob"], dtype=torch.float64).requires_grad_()
        ref_N = torch.tensor(case["inputs"]["ref_log_prob"], dtype=torch.float64)
        kl_N = kl_estimate(kind, current_N, ref_N)
        kl_N.sum().backward()
        assert current_N.grad is not None
        got |= {kind: kl_N.tolist(), f"grad_{kind}": current_N.grad.tolist()}
    vectors.check(case, got)


@vectors.each("tis_weights")
def test_importance_weights_of_the_vectors(case: vectors.Case) -> None:
    inputs = case["inputs"]
    padded = Padded(inputs)
    loss = config(
        importance=inputs["level"],
        importance_cap=inputs["threshold"],
        importance_normalize=inputs["batch_normalize"],
    )
    log_ratio_N = padded.flat(inputs["log_ratio_train_minus_rollout"])
    weights_N = importance_weights(loss, log_ratio_N, padded.row_N, padded.rows)
    vectors.check(case, {"weights": padded.padded(weights_N)})
