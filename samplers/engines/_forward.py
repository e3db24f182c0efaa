"""What the torch engine computes: prefill, sampling and scoring, as functions of a model.

Shape suffixes: N rows, n those of which only the likeliest tokens are sampled, W of them that are
looked at, U distinct prompts, V vocabulary, P padded prompt length, B rows of a scoring batch,
T tokens.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from samplers.seeds import uniforms
from samplers.types import Floats, Ids

_SCORE_TOKENS = 16384
_HEAD = 1024
"""Likeliest tokens among which a nucleus is looked for, before all are sorted."""
FORWARD_LOGITS = 2**26
"""Logits of one forward (256 MB in fp32)."""
_IMPOSSIBLE = -87.0
"""Below this logprob no uniform number of 53 bits reaches a token."""


def additive_mask(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where seen; finite elsewhere, so that a padding row, which sees nothing, is no NaN."""
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)


@functools.cache
def _keeps_logits(kind: Any) -> bool:
    return "logits_to_keep" in inspect.signature(kind.forward).parameters


def widen_head(model: Any) -> None:
    """Make the head of a 16-bit model give float32 logits, as the learner computes them.

    Rounded to bfloat16, a logit of 20 is off by up to 0.06: more than the learner and the engine
    may differ. What the model does to its logits after the head is done in float32 then, too.
    """
    head = model.get_output_embeddings()
    if isinstance(head, torch.nn.Linear):
        head.forward = functools.partial(_wide, head)


def _wide(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    weight_VH, flat_NH = head.weight, hidden.flatten(0, -2)
    if weight_VH.is_cuda:  # products of 16-bit numbers, summed and kept in 32 bits
        logits_NV = torch.mm(flat_NH, weight_VH.t(), out_dtype=torch.float32)
    else:
        logits_NV = flat_NH.float() @ weight_VH.float().t()
    if head.bias is not None:
        logits_NV += head.bias
    return logits_NV.view(*hidden.shape[:-1], -1)


def last_logits(model: Any, **inputs: Any) -> torch.Tensor:
    """Logits [N, V] of the last column of a cached forward."""
    if _keeps_logits(model.__class__):
        inputs["logits_to_keep"] = 1
    return model(use_cache=True, **inputs).logits[:, -1]


def prefill(model: Any, prompts: Sequence[Ids]) -> tuple[torch.Tensor, DynamicCache]:
    """Logits after each prompt [U, V], and their KV, right-aligned.

    Padding is on the left: the last column is every row's last token, so any model that can
    return the logits of one position needs no more.
    """
    device = model.device
    lengths_U = np.array([len(ids) for ids in prompts])
    longest = int(lengths_U.max())
    ids_UP = np.zeros((len(prompts), longest), np.int64)
    for row, ids in zip(ids_UP, prompts, strict=True):
        row[longest - len(ids) :] = ids
    pads_U = torch.from_numpy(longest - lengths_U).to(device)
    columns = torch.arange(longest, device=device)
    mask = None
    if lengths_U.min() < longest:
        later = columns[None, None] > columns[None, :, None]
        padding = columns[None, None] < pads_U[:, None, None]
        mask = additive_mask((later | padding)[:, None], model.dtype)
    cache = DynamicCache()
    logits_UV = last_logits(
        model,
        input_ids=torch.from_numpy(ids_UP).to(device),
        position_ids=(columns[None] - pads_U[:, None]).clamp_(min=0),
        attention_mask=mask,
        past_key_values=cache,
    )
    return logits_UV, cache


def sample(
    logits_NV: torch.Tensor,
    temperature_N: NDArray[np.float32],
    seed_N: NDArray[np.uint64],
    position_N: NDArray[np.int64],
    top_p_N: NDArray[np.float64] | None = None,
    top_k_N: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], Floats]:
    """Tokens and their logprobs after temperature (of temperature 1 where it is 0, greedy), and
    after `top_p` and `top_k` of a row that is not greedy.

    Inverse CDF with one uniform number per token, a function of the row's seed and of how many
    tokens it has sampled: the same token in any batch. The sums are float64: float32 would lose
    every token rarer than 6e-8 behind a likely one.
    """
    device, logits_NV = logits_NV.device, logits_NV.float()
    greedy_N = temperature_N == 0
    if (temperature_N != 1).any():
        divisor_N = torch.from_numpy(np.where(greedy_N, np.float32(1), temperature_N))
        logits_NV = logits_NV / divisor_N.to(device)[:, None]
    logprobs_NV = logits_NV.log_softmax(-1)
    if top_p_N is not None and top_k_N is not None:
        cut = np.flatnonzero(((top_p_N < 1) | (top_k_N > 0)) & ~greedy_N)
        if len(cut):
            at_n = torch.from_numpy(cut).to(device)
            logprobs_NV[at_n] = _nucleus(logprobs_NV[at_n], top_p_N[cut], top_k_N[cut])
    if greedy_N.all():
        token_N1 = logits_NV.argmax(-1, keepdim=True)
    else:
        drawn_N = uniforms(seed_N, position_N.astype(np.uint64))
        cdf_NV = logprobs_NV.exp().double().cumsum_(-1)
        # Scaled to the sum as rounded, so that a token always exists; the first to reach the
        # target, so that it is never one of probability zero.
        target_N1 = torch.from_numpy(drawn_N).to(device)[:, None] * cdf_NV[:, -1:]
        token_N1 = torch.searchsorted(cdf_NV, target_N1)
        if greedy_N.any():
            best_N1 = logits_NV.argmax(-1, keepdim=True)
            token_N1 = torch.where(
                torch.from_numpy(greedy_N).to(device)[:, None], best_N1, token_N1
            )
    token_N = token_N1[:, 0].cpu().numpy()
    logprob_N = logprobs_NV.gather(-1, token_N1)[:, 0].cpu().numpy()
    # Sums in parallel may fall by a rounding between equals, so that a search ends beside its step.
    for n in np.flatnonzero(logprob_N < _IMPOSSIBLE):
        token_N[n] = int(logprobs_NV[n].argmax())
        logprob_N[n] = float(logprobs_NV[n, token_N[n]])
    return token_N, logprob_N


def _nucleus(
    logprobs_nV: torch.Tensor, top_p_n: NDArray[np.float64], top_k_n: NDArray[np.int64]
) -> torch.Tensor:
    """Logprobs among the `top_k` likeliest tokens (0: all) and, of these, among the fewest that
    have `top_p` of their probability; -inf elsewhere. Equal ones are in or out together, so that
    it does not matter in which order they are sorted."""
    device, vocab = logprobs_nV.device, logprobs_nV.shape[-1]
    few_n = (top_k_n > 0) & (top_k_n < vocab)
    width = int(max(top_k_n[few_n].max(initial=0), 0 if few_n.all() else min(_HEAD, vocab)))
    of_p_n1, few_n1 = (torch.from_numpy(one).to(device)[:, None] for one in (top_p_n, few_n))
    while True:
        head_nW = logprobs_nV.topk(width).values
        mass_nW = head_nW.double().exp().cumsum_(-1)
        last_n1 = torch.from_numpy(np.where(few_n, top_k_n, width) - 1).to(device)[:, None]
        whole_n1 = torch.where(few_n1, mass_nW.gather(-1, last_n1), 1.0)
        wanted_n1 = of_p_n1 * whole_n1
        if width == vocab or bool((mass_nW[:, -1:] >= wanted_n1).all()):
            break
        width = vocab
    first_n1 = (mass_nW < wanted_n1).sum(-1, keepdim=True)
    last_n1 = torch.where(of_p_n1 < 1, torch.minimum(first_n1, last_n1), last_n1)
    least_n1 = head_nW.gather(-1, last_n1)
    return logprobs_nV.masked_fill(logprobs_nV < least_n1, -torch.inf).log_softmax(-1)


def score(model: Any, ids: Sequence[Ids], temperature: float, vocab: int) -> list[Floats]:
    """Teacher-forced logprobs of ids[1:] of each sequence, batched by length."""
    out: list[Floats] = [np.zeros(0, np.float32)] * len(ids)
    order = sorted((i for i in range(len(ids)) if len(ids[i]) > 1), key=lambda i: len(ids[i]))
    while order:
        longest, batch = len(ids[order[-1]]), [order.pop()]
        while order and longest * (len(batch) + 1) <= _SCORE_TOKENS:
            batch.append(order.pop())
        flat_BT = _score_batch(model, [ids[i] for i in batch], temperature, vocab)
        for i, row in zip(batch, flat_BT, strict=True):
            out[i] = row[: len(ids[i]) - 1].copy()
    return out


def _score_batch(model: Any, ids: list[Ids], temperature: float, vocab: int) -> Floats:
    """[B, T - 1], padded on the right; in pieces over a cache where logits would be too many."""
    padded_BT = np.zeros((len(ids), len(ids[0])), np.int64)
    for row, one in zip(padded_BT, ids, strict=True):
        row[: len(one)] = one
    ids_BT = torch.from_numpy(padded_BT).to(model.device)
    total = ids_BT.shape[1] - 1
    piece = max(1, FORWARD_LOGITS // (len(ids) * vocab))
    cache = DynamicCache() if piece < total else None
    scores = []
    for start in range(0, total, piece):
        end = min(start + piece, total)
        logits = model(
            input_ids=ids_BT[:, start:end], past_key_values=cache, use_cache=cache is not None
        ).logits
        logprobs = (logits.float() / temperature).log_softmax(-1)
        scores.append(logprobs.gather(-1, ids_BT[:, start + 1 : end + 1, None])[..., 0])
    return torch.cat(scores, 1).cpu().numpy()
