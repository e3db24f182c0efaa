"""Policy losses: closed forms, finite differences, settings."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batching import token_weights
from trainer.losses import LossConfig, kl_estimate, needs, policy_loss

POLICIES = ("ppo_clip", "gspo", "cispo", "cispo_cap", "gppo", "ce")


def tokens(seed: int, rows: int = 4, spread: float = 0.3) -> dict[str, Any]:
    """Random flat tokens of a few rows, float64: everything that the loss may be handed."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, rows)
    row_N = np.repeat(np.arange(rows), lengths)
    old_N = -rng.exponential(1.0, len(row_N))
    weights_B = token_weights("seq_mean_token_mean", lengths)
    arrays = {
        "current_N": old_N + rng.normal(0, spread, len(row_N)),
        "entropy_N": rng.exponential(1.0, len(row_N)),
        "weights_N": weights_B[row_N],
        "advantages_N": rng.normal(0, 1, rows)[row_N],
        "behaviour_N": old_N + rng.normal(0, 0.2, len(row_N)),
        "old_N": old_N,
        "ref_N": old_N + rng.normal(0, spread, len(row_N)),
    }
    out: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return out | {"row_N": torch.from_numpy(row_N), "rows": rows}


def evaluate(loss: LossConfig, given: dict[str, Any]) -> tuple[float, torch.Tensor, dict[str, Any]]:
    """Loss, gradient of the current logprobs, metrics."""
    given = dict(given)
    current_N = given.pop("current_N").clone().requires_grad_()
    value, metrics = policy_loss(loss, current_N, given.pop("entropy_N"), **given)
    (grad_N,) = torch.autograd.grad(value, current_N)
    return value.item(), grad_N, metrics


def differences(loss: LossConfig, given: dict[str, Any], step: float = 1e-6) -> torch.Tensor:
    """The gradient of the value by central differences."""
    out = []
    for n in range(len(given["current_N"])):
        ends = []
        for sign in (1, -1):
            moved_N = given["current_N"].clone()
            moved_N[n] += sign * step
            ends.append(evaluate(loss, given | {"current_N": moved_N})[0])
        out.append((ends[0] - ends[1]) / (2 * step))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dual_clip": 1.3},
        {"delta": 1.2},
        {"kl": "k2", "kl_coef": 0.3},
        {"kl": "k3", "kl_coef": 0.3, "entropy_coef": 0.1},
        {"kl": "abs", "kl_coef": 0.3},
        {"name": "gspo", "eps_low": 0.1, "eps_high": 0.1},
        {"name": "gspo", "eps_low": 0.1, "eps_high": 0.1, "delta": 1.05},
        {"name": "ce"},
        {"name": "ppo_clip", "positive_ce_coef": 0.1},
        {"importance": "token", "importance_cap": 1.1},
        {"importance": "sequence"},
    ],
    ids=str,
)
def test_gradients_are_those_of_the_value(fields: dict[str, Any]) -> None:
    loss = LossConfig(**fields)
    for seed in range(5):
        given = tokens(seed)
        _, grad_N, _ = evaluate(loss, given)
        assert torch.allclose(grad_N, differences(loss, given), atol=1e-7)


def test_entropy_bonus_reaches_the_entropy() -> None:
    given = tokens(0)
    entropy_N = given.pop("entropy_N").requires_grad_()
    current_N = given.pop("current_N")
    value, _ = policy_loss(LossConfig(entropy_coef=0.25), current_N, entropy_N, **given)
    (grad_N,) = torch.autograd.grad(value, entropy_N)
    assert torch.allclose(grad_N, -0.25 * given["weights_N"])


@pytest.mark.parametrize("name", POLICIES)
def test_good_tokens_are_imitated_beside_any_policy_loss(name: str) -> None:
    given = tokens(8)
    value, grad_N, _ = evaluate(LossConfig(name=name, importance="token"), given)
    both, both_grad_N, metrics = evaluate(
        LossConfig(name=name, importance="token", positive_ce_coef=0.1), given
    )
    good_N = given["advantages_N"] > 0
    assert 0 < good_N.sum() < len(good_N)
    weights_N = given["weights_N"] * good_N
    assert torch.allclose(both_grad_N - grad_N, -0.1 * weights_N)
    assert both - value == pytest.approx(-0.1 * float((weights_N * given["current_N"]).sum()))
    assert metrics["positive_ce"].tolist() == pytest.approx(
        [-float(given["current_N"][good_N].sum()), int(good_N.sum())]
    )


@pytest.mark.parametrize("name", POLICIES)
def test_in_a_first_update_every_loss_is_the_policy_gradient(name: str) -> None:
    given = tokens(1) | {"old_N": None}
    _, grad_N, metrics = evaluate(LossConfig(name=name), given)
    assert torch.allclose(grad_N, -given["weights_N"] * given["advantages_N"])
    assert metrics["ppo_kl"][0] == 0
    assert metrics.get("clip_fraction", torch.zeros(2))[0] == 0


def test_clipping_stops_only_what_would_go_too_far() -> None:
    """A>0 is free below the range, A<0 above it; the dual clip then bounds the latter."""
    ratios = torch.tensor([0.5, 0.5, 1.0, 1.0, 2.0, 2.0], dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64)
    given = {
        "current_N": ratios.log(),
        "entropy_N": None,
        "old_N": torch.zeros(6, dtype=torch.float64),
        "weights_N": torch.ones(6, dtype=torch.float64),
        "advantages_N": signs,
        "behaviour_N": torch.full((6,), math.nan, dtype=torch.float64),
        "row_N": torch.arange(6),
        "rows": 6,
    }
    value, grad_N, metrics = evaluate(LossConfig(), given)
    assert grad_N.tolist() == pytest.approx([-0.5, 0.0, -1.0, 1.0, 0.0, 2.0])
    assert value == pytest.approx(-0.5 + 0.8 - 1 + 1 - 1.28 + 2)
    assert metrics["clip_fraction"].tolist() == [2, 6]
    _, grad_N, metrics = evaluate(LossConfig(dual_clip=1.5), given)
    assert grad_N.tolist() == pytest.approx([-0.5, 0.0, -1.0, 1.0, 0.0, 0.0])
    assert metrics["clip_fraction_low"].tolist() == [1, 6]
    _, grad_N, _ = evaluate(LossConfig(name="gppo"), given)
    assert grad_N.tolist() == pytest.approx([-0.5, 0.8, -1.0, 1.0, -1.28, 2.0])
    _, grad_N, _ = evaluate(LossConfig(name="cispo"), given)
    assert grad_N.tolist() == pytest.approx([-0.8, 0.8, -1.0, 1.0, -1.28, 1.28])
    _, grad_N, _ = evaluate(LossConfig(name="cispo_cap", cap=1.5), given)
    assert grad_N.tolist() == pytest.approx([-0.5, 0.5, -1.0, 1.0, -1.5, 1.5])
    _, grad_N, _ = evaluate(LossConfig(delta=1.5), given)
    assert grad_N.tolist() == pytest.approx([-0.5, 0.0, -1.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize(("name", "field"), [("gspo", "dual_clip"), ("gppo", "delta")])
def test_a_bound_that_is_said_to_have_no_effect_has_none(name: str, field: str) -> None:
    with pytest.warns(UserWarning, match=f"{field}: 1.01 has no effect"):
        bounded = LossConfig(name=name, **{field: 1.01})
    for seed in range(5):
        given = tokens(seed, spread=1.0)
        plain = evaluate(LossConfig(name=name), given)
        assert evaluate(bounded, given)[0] == plain[0]
        assert torch.equal(evaluate(bounded, given)[1], plain[1])


def test_gppo_has_the_value_of_ppo() -> None:
    for seed in range(5):
        given = tokens(seed)
        assert evaluate(LossConfig(name="gppo"), given)[0] == evaluate(LossConfig(), given)[0]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_importance_weights_scale_the_policy_term_alone(level: str) -> None:
    given = tokens(2)
    terms = {"kl": "k2", "kl_coef": 0.5}
    with_terms = evaluate(LossConfig(importance=level, importance_cap=1.1, **terms), given)
    for row in range(given["rows"]):
        of_row = given["row_N"] == row
        gap = given["old_N"][of_row] - given["behaviour_N"][of_row]
        ratio = gap.exp() if level == "token" else gap.sum().exp().expand(len(gap))
        given["advantages_N"][of_row] *= torch.minimum(ratio, torch.tensor(1.1))
    by_hand = evaluate(LossConfig(**terms), given)
    assert with_terms[0] == pytest.approx(by_hand[0])
    assert torch.allclose(with_terms[1], by_hand[1])


def test_kl_estimators_over_a_whole_vocabulary() -> None:
    """k1 and k3 are right on average; of their gradients k2's is, and k1's is 0."""
    rng = np.random.default_rng(7)
    logits_V, ref_logits_V = torch.from_numpy(rng.normal(0, 1, (2, 50)))
    logits_V.requires_grad_()
    current_V, ref_V = logits_V.log_softmax(-1), ref_logits_V.log_softmax(-1)
    chance_V = current_V.exp().detach()
    kl = (current_V.exp() * (current_V - ref_V)).sum()
    (kl_grad_V,) = torch.autograd.grad(kl, logits_V, retain_graph=True)
    for kind, value, gradient in (
        ("k1", kl, torch.zeros_like(kl_grad_V)),
        ("k2", None, kl_grad_V),
        ("k3", kl, None),
    ):
        mean = (chance_V * kl_estimate(kind, current_V, ref_V)).sum()
        (grad_V,) = torch.autograd.grad(mean, logits_V, retain_graph=True)
        assert value is None or torch.allclose(mean, value)
        assert gradient is None or torch.allclose(grad_V, gradient, atol=1e-12)


def test_tokens_nobody_sampled_have_importance_one() -> None:
    given = tokens(3)
    given["behaviour_N"] = torch.full_like(given["behaviour_N"], math.nan)
    value, _, metrics = evaluate(LossConfig(importance="sequence"), given)
    assert value == evaluate(LossConfig(), given)[0]
    assert metrics["engine_gap"].tolist() == [0, 0]
    assert metrics["engine_gap_max"] == 0


def test_engine_gap_is_over_sampled_tokens() -> None:
    given = tokens(4)
    given["behaviour_N"][0] = math.nan
    _, _, metrics = evaluate(LossConfig(), given)
    gaps = (given["old_N"] - given["behaviour_N"])[1:].abs()  # current moved, old did not
    assert metrics["engine_gap"].tolist() == pytest.approx([gaps.sum().item(), len(gaps)])
    assert metrics["engine_gap_max"].item() == pytest.approx(gaps.max().item())


@pytest.mark.parametrize("name", POLICIES)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), pieces=st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_any_split_of_the_rows_sums_to_the_whole(name: str, seed: int, pieces: list[int]) -> None:
    loss = LossConfig(name=name, kl="k3", kl_coef=0.1, entropy_coef=0.1, importance="sequence")
    given_ = tokens(seed, rows=6)
    whole, grad_N, metrics = evaluate(loss, given_)
    total, sums = 0.0, {k: torch.zeros_like(v) for k, v in metrics.items()}
    for piece in range(3):
        chosen = [row for row in range(6) if pieces[row] == piece]
        mine_N = torch.isin(given_["row_N"], torch.tensor(chosen, dtype=torch.long))
        part = {k: v[mine_N] if isinstance(v, torch.Tensor) else v for k, v in given_.items()}
        renumbered = {row: i for i, row in enumerate(chosen)}
        part["row_N"] = torch.tensor(
            [renumbered[int(row)] for row in part["row_N"]], dtype=torch.long
        )
        part["rows"] = len(chosen)
        value, part_grad_N, part_metrics = evaluate(loss, part)
        total += value
        assert torch.allclose(part_grad_N, grad_N[mine_N])
        for k, v in part_metrics.items():
            sums[k] = torch.maximum(sums[k], v) if k.endswith("_max") else sums[k] + v
    assert total == pytest.approx(whole)
    for k, v in metrics.items():
        assert torch.allclose(sums[k], v, rtol=1e-5, atol=1e-6), k


@pytest.mark.parametrize("name", POLICIES)
def test_filler_adds_nothing_and_counts_nowhere(name: str) -> None:
    loss = LossConfig(name=name, kl="k3", kl_coef=0.1, importance="token")
    given = tokens(5, rows=1)
    given["weights_N"] = torch.zeros_like(given["weights_N"])
    value, grad_N, metrics = evaluate(loss, given)
    assert value == 0
    assert not grad_N.any()
    assert all(not v.any() for v in metrics.values())


@pytest.mark.parametrize("name", POLICIES)
def test_extreme_ratios_stay_finite(name: str) -> None:
    given = tokens(6)
    given["current_N"] = given["old_N"] - 2000.0
    given["advantages_N"] = -given["advantages_N"].abs()
    loss = LossConfig(name=name, kl="k3", kl_coef=0.1, importance="sequence")
    for first, second in (("current_N", "old_N"), ("old_N", "current_N")):
        swapped = given | {"current_N": given[first], "old_N": given[second]}
        value, grad_N, _ = evaluate(loss, swapped)
        assert math.isfinite(value)
        assert grad_N.isfinite().all()


# -- settings -------------------------------------------------------------------------------------


def test_each_loss_has_its_own_defaults() -> None:
    gspo = LossConfig(name="gspo")
    assert (gspo.eps_low, gspo.eps_high) == (3e-4, 4e-4)
    assert gspo.aggregation == "seq_mean_token_mean"
    assert LossConfig(name="gspo", eps_low=0.1).eps_low == 0.1
    assert LossConfig(**LossConfig(name="gspo").model_dump()) == gspo


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"aggregation": "drgrpo"}, "norm_length: not set"),
        ({"kl_coef": 0.1}, "choose kl: k2 or k3"),
        ({"dual_clip": 1.0}, "dual_clip"),
        ({"delta": 0.9}, "delta"),
        ({"eps_low": 1.5}, "eps_low"),
        ({"name": "ppo"}, "name"),
        ({"clip": 0.2}, "clip"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LossConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "ce", "eps_high": 0.1},
        {"name": "gspo", "dual_clip": 3.0},
        {"name": "cispo", "delta": 2.0},
        {"name": "ppo_clip", "cap": 2.0},
        {"norm_length": 100},
        {"reference": "ema"},
        {"kl": "k2", "kl_coef": 0.1, "reference_decay": 0.5},
        {"importance_cap": 3.0},
        {"importance_normalize": True},
        {"kl": "k1", "kl_coef": 0.1},
    ],
    ids=str,
)
def test_settings_without_effect_warn(fields: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="no effect|is 0 on average"):
        LossConfig(**fields)


@pytest.mark.parametrize("name", POLICIES)
def test_a_loss_as_it_ships_does_not_warn_nor_does_its_dump(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LossConfig(**LossConfig(name=name).model_dump())


def test_needs_names_the_passes_that_a_setting_costs() -> None:
    assert needs(LossConfig(), updates=1) == set()
    assert needs(LossConfig(), updates=2) == {"old_logprobs"}
    assert needs(LossConfig(name="ce"), updates=2) == set()
    weighed = LossConfig(name="ce", importance="token")  # by weights from before the first update
    assert needs(weighed, updates=1) == set()
    assert needs(weighed, updates=2) == {"old_logprobs"}
    assert needs(LossConfig(kl="k2", kl_coef=0.1), updates=1) == {"ref_logprobs"}
    normal = LossConfig(importance="token", importance_normalize=True)
    assert needs(normal, updates=1) == {"old_logprobs"}
