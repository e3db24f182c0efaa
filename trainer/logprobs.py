"""Logprob and entropy of scored tokens, computed inside the head, chunk by chunk.

A [tokens, vocabulary] tensor is the largest thing a language model makes. None larger than
`max_elements` is ever made here: the head's forward is replaced by one that takes the scored
positions only, goes through them in chunks, keeps two numbers a token and recomputes a chunk's
logits in backward. Because it runs inside the head module, ZeRO-3 gathers (and frees) the weight
around it as for any other module.

Shape suffixes: B rows, T tokens of a row, H hidden size, V vocabulary, N scored tokens, C tokens
of a chunk; the last axis 2 is (logprob, entropy).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

AtHead = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(hidden_NH, weight_VH, bias_V) of chosen positions -> what the head returns instead of logits."""
SMALLEST_LOGIT = -1e30
"""Stands in for -inf, so that 0 * log 0 is 0 in an entropy."""


@dataclass(frozen=True, slots=True)
class LogitRule:
    """From the head's output z to the logits of the sampling distribution.

    logits = softcap(scale * z) / temperature, softcap(x) = cap * tanh(x / cap).
    """

    temperature: float = 1.0
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
        """[C, V] in float32, whatever the weights are in."""
        if weight_VH.dtype == torch.float32:
            z_CV = hidden_CH.float() @ weight_VH.t()
        elif weight_VH.is_cuda:  # products of 16-bit numbers, summed and kept in 32 bits
            z_CV = torch.mm(hidden_CH, weight_VH.t(), out_dtype=torch.float32)
        else:
            z_CV = hidden_CH.float() @ weight_VH.float().t()
        if bias_V is not None:
            z_CV += bias_V
        if self.scale != 1.0:
            z_CV *= self.scale
        if self.cap is not None:
            z_CV = z_CV.div_(self.cap).tanh_().mul_(self.cap)
        return z_CV.div_(self.temperature) if self.temperature != 1.0 else z_CV

    def backward_(self, grad_CV: Tensor, logits_CV: Tensor) -> Tensor:
        """Gradient with respect to z, in place; `logits_CV` is what `logits` returned."""
        if self.temperature != 1.0:
            grad_CV /= self.temperature
        if self.cap is not None:
            slope_CV = logits_CV * (self.temperature / self.cap)  # tanh, so its slope is 1 - tanh^2
            grad_CV *= slope_CV.square_().neg_().add_(1)
        return grad_CV.mul_(self.scale) if self.scale != 1.0 else grad_CV


class ScoreTokens(torch.autograd.Function):
    """(hidden_NH, weight_VH, bias_V, targets_N, rule, chunk) -> [N, 2] logprob and entropy.

    With p = softmax(logits), log p_y the logprob and H the entropy, per logit j:
    d log p_y / d l_j = [j = y] - p_j and d H / d l_j = -p_j (log p_j + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        rule: LogitRule,
        chunk: int,
    ) -> Tensor:
        out_N2 = torch.empty(len(targets_N), 2, dtype=torch.float32, device=hidden_NH.device)
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            logp_CV = rule.logits(hidden_NH[part], weight_VH, bias_V).log_softmax(-1)
            out_N2[part, 0] = logp_CV.gather(1, targets_N[part, None])[:, 0]
            p_CV = logp_CV.exp()
            out_N2[part, 1] = -p_CV.mul_(logp_CV.clamp_(min=SMALLEST_LOGIT)).sum(-1)
            del logp_CV, p_CV  # or they live through the next chunk
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, out_N2)
        ctx.rule, ctx.chunk = rule, chunk
        return out_N2

    @staticmethod
    def backward(ctx: Any, grad_N2: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, targets_N, out_N2 = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden_NH = torch.empty_like(hidden_NH) if wants_hidden else None
        grad_weight_VH = _zeros(weight_VH) if wants_weight else None
        grad_bias_V = _zeros(bias_V) if wants_bias else None
        for start in range(0, len(targets_N), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits_CV = ctx.rule.logits(hidden_NH[part], weight_VH, bias_V)
            grad_CV = _grad_z(ctx.rule, logits_CV, targets_N[part], out_N2[part], grad_N2[part])
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(0)
            grad_CV = grad_CV.to(weight_VH.dtype)
            if grad_hidden_NH is not None:
                grad_hidden_NH[part] = (grad_CV @ weight_VH).to(hidden_NH.dtype)
            if grad_weight_VH is not None:
                grad_weight_VH += grad_CV.t() @ hidden_NH[part].to(weight_VH.dtype)
            del logits_CV, grad_CV
        return (
            grad_hidden_NH,
            None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype),
            None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype),
            None,
            None,
            None,
        )


def _grad_z(
    rule: LogitRule, logits_CV: Tensor, targets_C: Tensor, scores_C2: Tensor, grad_C2: Tensor
) -> Tensor:
    """Gradient with respect to the head's output:
    g_logprob ([j = y] - p_j) - g_entropy p_j (log p_j + H), through `rule`."""
    logp_CV = logits_CV.log_softmax(-1)
    p_CV = logp_CV.exp()
    grad_CV = logp_CV.clamp_(min=SMALLEST_LOGIT).add_(scores_C2[:, 1:]).mul_(grad_C2[:, 1:])
    grad_CV.add_(grad_C2[:, :1]).mul_(p_CV).neg_()
    del p_CV
    grad_CV.scatter_add_(1, targets_C[:, None], grad_C2[:, :1])
    return rule.backward_(grad_CV, logits_CV)


def _zeros(like: Tensor) -> Tensor:
    """Chunks are summed in float32."""
    return torch.zeros(like.shape, dtype=torch.float32, device=like.device)


def score_tokens(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    rule: LogitRule = LogitRule(),
    max_elements: int = 2**25,
) -> Tensor:
    """[N, 2] float32: logprob of each target and entropy (nats) of its distribution.

    Gradients are exact for both, with respect to hidden states, weight and bias. Logits are
    computed in float32; at most three tensors of `max_elements` elements live at once (one row
    of the vocabulary at least).
    """
    chunk = max(1, max_elements // weight_VH.shape[0])
    scores: Tensor = ScoreTokens.apply(hidden_NH, weight_VH, bias_V, targets_N, rule, chunk)
    return scores


# What models of the library do to logits after their head, as (field, neutral value). While
# scoring, the field is neutral and `LogitRule` does the same inside the head.
_AFTER_HEAD = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}


class Scorer:
    """Makes a transformers causal LM return (logprob, entropy) of chosen tokens.

    Outside `__call__` the model behaves as before. `check` proves on a probe that the model's
    own logits agree: a model that does something else after its head is refused by name.
    """

    def __init__(self, model: Any, temperature: float = 1.0, max_elements: int = 2**25) -> None:
        config = model.config.get_text_config()
        self.model, self.max_elements = model, max_elements
        self.rule = LogitRule(
            temperature,
            (getattr(config, "logit_scale", None) or 1.0)
            / (getattr(config, "logits_scaling", None) or 1.0),
            getattr(config, "final_logit_softcapping", None),
        )
        self._request: tuple[Tensor, AtHead] | None = None
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(
                f"model: '{model.config.model_type}' has no output embeddings; a causal language "
                "model is needed"
            )
        self._head, self._plain = head, head.forward
        head.forward = self._forward

    def _forward(self, hidden_BTH: Tensor) -> Tensor:
        if self._request is None:
            logits: Tensor = self._plain(hidden_BTH)
            return logits
        index_N, at_head = self._request
        hidden_NH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1]).index_select(0, index_N)
        return at_head(hidden_NH, self._head.weight, getattr(self._head, "bias", None))

    def __call__(
        self, module: Any, index_N: Tensor, targets_N: Tensor, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        """Logprob and entropy, each [N] float32, of `targets_N` at flat positions `index_N`.

        `module` is the model itself or the engine that wraps it.
        """

        def scores(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
            rule, elements = self.rule, self.max_elements
            return score_tokens(hidden_NH, weight_VH, bias_V, targets_N, rule, elements)

        scores_N2 = self.run(module, index_N, scores, **inputs)
        assert scores_N2.shape == (len(targets_N), 2), "the head's output was reshaped after it"
        return scores_N2[:, 0], scores_N2[:, 1]

    def run(self, module: Any, index_N: Tensor, at_head: AtHead, **inputs: Any) -> Tensor:
        """The model with `at_head` in the place of its head; returns what that returned."""
        with self._scoring(index_N, at_head):
            out: Tensor = module(**inputs, use_cache=False).logits
        return out

    @contextmanager
    def _scoring(self, index_N: Tensor, at_head: AtHead) -> Iterator[None]:
        """Turn the head over to us, and off what the model does to logits after it."""
        model, config = self.model, self.model.config
        own = {name: vars(model)[name] for name in _AFTER_HEAD if name in vars(model)}
        self._request = (index_N, at_head)
        try:
            if self.rule.scale != 1.0 or self.rule.cap is not None:
                model.config = copy.deepcopy(config)
                for name, neutral in _AFTER_HEAD.items():
                    if hasattr(model.config.get_text_config(), name):
                        setattr(model.config.get_text_config(), name, neutral)
                    if name in own:
                        setattr(model, name, neutral)
            yield
        finally:
            self._request, model.config = None, config
            for name, value in own.items():
                setattr(model, name, value)

    @torch.no_grad()
    def check(self, module: Any) -> None:
        """Compare with the model's own logits on eight tokens; all ranks take part.

        Raises:
            ValueError: the model changes its logits in a way that is not known here.
        """
        device = next(self.model.parameters()).device
        vocabulary = self.model.config.get_text_config().vocab_size
        ids_1T = (torch.arange(8, device=device) * 7 % vocabulary)[None]
        index_N = torch.arange(7, device=device)
        ours_N, entropy_N = self(module, index_N, ids_1T[0, 1:], input_ids=ids_1T)
        logits_TV = module(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
        logp_TV = (logits_TV / self.rule.temperature).log_softmax(-1)
        theirs_N = logp_TV.gather(1, ids_1T[0, 1:, None])[:, 0]
        gap = float((ours_N - theirs_N).abs().max())
        gap = max(gap, float((entropy_N - torch.special.entr(logp_TV.exp()).sum(-1)).abs().max()))
        exact = next(self.model.parameters()).dtype == torch.float32
        if not gap <= (1e-3 if exact else 0.2):
            raise ValueError(
                f"model: '{self.model.config.model_type}' changes its logits after the head in an "
                f"unknown way (scores differ by {gap:.2g}); known are "
                f"{', '.join(_AFTER_HEAD)}; use another model or extend trainer/logprobs.py"
            )
