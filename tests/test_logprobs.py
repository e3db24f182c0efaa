"""Logprob and entropy inside the head: exact values and gradients, and no large tensor ever.

Shape suffixes: H hidden size, V vocabulary, N scored tokens, B rows, T tokens of a row.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ranks import on_ranks
from tests.tiny import tiny_model
from trainer.logprobs import LogitRule, Scorer, score_tokens

torch.set_num_threads(1)


def plain(hidden_NH, weight_VH, bias_V, targets_N, rule):
    """The same by autograd over all logits, in float64."""
    z_NV = rule.scale * (hidden_NH @ weight_VH.t() + (0.0 if bias_V is None else bias_V))
    if rule.cap is not None:
        z_NV = rule.cap * torch.tanh(z_NV / rule.cap)
    logp_NV = (z_NV / rule.temperature).log_softmax(-1)
    entropy_N = torch.special.entr(logp_NV.exp()).sum(-1)
    return torch.stack([logp_NV.gather(1, targets_N[:, None])[:, 0], entropy_N], -1)


def leaves(*tensors):
    return [None if t is None else t.detach().clone().requires_grad_() for t in tensors]


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(0, 9),
    elements=st.sampled_from([1, 40, 100, 10_000]),
    temperature=st.sampled_from([1.0, 0.7, 1.3]),
    scale=st.sampled_from([1.0, 0.25]),
    cap=st.sampled_from([None, 3.0]),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_gradients(tokens, elements, temperature, scale, cap, biased, seed) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    exact = [draw(tokens, 6).double(), draw(17, 6).double(), draw(17).double() if biased else None]
    targets_N = torch.randint(0, 17, (tokens,), generator=generator)
    upstream_N2 = draw(tokens, 2)
    rule = LogitRule(temperature, scale, cap)
    theirs = leaves(*exact)
    expected_N2 = plain(*theirs, targets_N, rule)
    expected_N2.backward(upstream_N2.double())
    ours = leaves(*(None if t is None else t.float() for t in exact))
    got_N2 = score_tokens(*ours, targets_N, rule, elements)
    got_N2.backward(upstream_N2)
    torch.testing.assert_close(got_N2.double(), expected_N2, rtol=1e-5, atol=1e-5)
    for mine, reference in zip(ours, theirs, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=2e-5)


def test_impossible_tokens_leave_no_nan() -> None:
    """A logit of -inf (a padded vocabulary) has p log p = 0 and no gradient."""
    bias_V = torch.zeros(5)
    bias_V[3] = -math.inf
    hidden_NH, weight_VH = leaves(torch.randn(4, 3), torch.randn(5, 3))
    scores_N2 = score_tokens(hidden_NH, weight_VH, bias_V, torch.tensor([0, 1, 2, 4]))
    scores_N2.sum().backward()
    assert scores_N2.isfinite().all()
    assert hidden_NH.grad.isfinite().all()
    assert (weight_VH.grad[3] == 0).all()
    assert score_tokens(hidden_NH, weight_VH, bias_V, torch.tensor([3] * 4))[0, 0] == -math.inf


def test_bfloat16_weights_get_float32_logits() -> None:
    """Products of bf16 numbers, summed and normalised in float32: no bf16 rounding of logits."""
    hidden_NH, weight_VH = torch.randn(8, 64).bfloat16(), torch.randn(50, 64).bfloat16()
    targets_N = torch.arange(8)
    expected_N2 = plain(hidden_NH.double(), weight_VH.double(), None, targets_N, LogitRule())
    got_N2 = score_tokens(hidden_NH, weight_VH, None, targets_N)
    torch.testing.assert_close(got_N2.double(), expected_N2, rtol=1e-5, atol=1e-5)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_tensor_is_larger_than_stated() -> None:
    hidden_NH, weight_VH = leaves(torch.randn(1000, 4), torch.randn(300, 4))
    with Largest() as largest:
        score_tokens(
            hidden_NH, weight_VH, None, torch.arange(1000) % 300, LogitRule(), 7000
        ).sum().backward()
    assert 6000 <= largest.numel <= 7000  # all logits at once would be 300,000
    assert hidden_NH.grad is not None


def _peak(rank: int, elements: int) -> float:
    """MiB that scoring 4096 tokens of a vocabulary of 50,000 adds to the process's peak."""
    hidden_NH, weight_VH = leaves(torch.randn(4096, 16), torch.randn(50_000, 16))
    targets_N = torch.arange(4096)
    score_tokens(hidden_NH[:2], weight_VH, None, targets_N[:2]).sum().backward()
    before = _high_water()
    score_tokens(hidden_NH, weight_VH, None, targets_N, LogitRule(0.9), elements).sum().backward()
    return _high_water() - before


def _high_water() -> float:
    """MiB. Not ru_maxrss: that counts what the parent held when it started this process."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1]) / 1024


def test_peak_memory() -> None:
    """Three tensors of the stated size (64 MiB each here), and the weight's gradient (3 MiB).

    All logits would be 781 MiB, and plain autograd holds several such tensors. (Blocks of 32 MiB
    and more go straight back to the system; of smaller ones the C library may keep some.)
    """
    (peak,) = on_ranks(1, _peak, 2**24, fresh=True)
    assert 2 * 64 < peak < 4 * 64


MODELS = [
    ("qwen3", True, {}),
    ("qwen3", False, {}),
    ("llama", False, {}),
    ("gpt2", True, {}),
    ("gemma2", True, {"final_logit_softcapping": 2.0}),
    ("cohere", True, {"logit_scale": 0.3}),
    ("granite", False, {"logits_scaling": 3.0}),
]


@pytest.mark.parametrize(("arch", "tied", "sizes"), MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_scorer_agrees_with_the_models_own_logits(arch, tied, sizes, temperature) -> None:
    """Logprob, entropy and the gradients of all weights; outside the call nothing has changed."""
    model, twin = (tiny_model(arch, tied=tied, **sizes) for _ in range(2))
    ids_BT = torch.randint(0, 38, (2, 7), generator=torch.Generator().manual_seed(0))
    index_N = torch.tensor([0, 3, 5, 9, 12])  # flat (row, position) whose logits score
    targets_N = ids_BT.flatten()[index_N + 1]
    scorer = Scorer(model, temperature, max_elements=90)
    scorer.check(model)
    logp_N, entropy_N = scorer(model, index_N, targets_N, input_ids=ids_BT)
    logits_NV = twin(ids_BT, use_cache=False).logits.flatten(0, 1)[index_N] / temperature
    expected_NV = logits_NV.log_softmax(-1)
    expected_N = expected_NV.gather(1, targets_N[:, None])[:, 0]
    expected_entropy_N = -(expected_NV.exp() * expected_NV).sum(-1)
    torch.testing.assert_close(logp_N, expected_N, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy_N, expected_entropy_N, rtol=1e-5, atol=1e-5)
    (logp_N.sum() - 0.3 * entropy_N.sum()).backward()
    (expected_N.sum() - 0.3 * expected_entropy_N.sum()).backward()
    own = dict(twin.named_parameters())
    assert ("lm_head.weight" in own) != tied
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, own[name].grad, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(ids_BT).logits, twin(ids_BT).logits)
    assert model.config.to_dict() == twin.config.to_dict()


def test_an_unknown_change_of_logits_is_refused_by_name() -> None:
    model = tiny_model("llama")
    untouched = model.forward

    def colder(*args, **kwargs):
        out = untouched(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    model.forward = colder
    with pytest.raises(ValueError, match=r"'llama' changes its logits"):
        Scorer(model).check(model)
